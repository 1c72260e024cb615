"""The packet pacer in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.rtc.pacer import MAX_PACKETS, MAX_WAIT_S, MIN_STEP_S, PACING_FACTOR, PacketPacer

pytestmark = pytest.mark.unit

TARGET = 2_000_000
PACKET = 1200


def drain(pacer: PacketPacer[str], now: float, until: float) -> list[tuple[float, str]]:
    """Pop whenever the pacer asks."""
    out = [(now, item) for item in pacer.pop(now)]
    while (due := pacer.deadline(now)) is not None and due <= until:
        now = due
        out += [(now, item) for item in pacer.pop(now)]
    return out


def test_an_average_frame_leaves_at_once() -> None:
    pacer: PacketPacer[str] = PacketPacer(TARGET)
    for k in range(8):
        pacer.push_video(f"v{k}", PACKET)
    assert pacer.pop(5.0) == [f"v{k}" for k in range(8)]
    assert pacer.deadline(5.0) is None


def test_a_key_frame_is_spread_but_gone_within_a_frame_interval() -> None:
    pacer: PacketPacer[str] = PacketPacer(TARGET)
    for k in range(35):
        pacer.push_video(f"v{k}", PACKET)
    out = drain(pacer, 5.0, 6.0)
    assert [item for _, item in out] == [f"v{k}" for k in range(35)]
    first = sum(at == 5.0 for at, _ in out)
    assert first <= 10
    assert max(sum(at == t for at, _ in out) for t in {at for at, _ in out if at > 5.0}) <= 3
    assert 0.015 < out[-1][0] - 5.0 <= MAX_WAIT_S + MIN_STEP_S


def test_sound_overtakes_and_repairs_come_before_new_pictures() -> None:
    pacer: PacketPacer[str] = PacketPacer(TARGET)
    for k in range(30):
        pacer.push_video(f"v{k}", PACKET)
    before = pacer.pop(5.0)
    pacer.push_video("r1", PACKET, repair=True)
    pacer.push_video("r2", PACKET, repair=True)
    pacer.push_audio("a", 200)
    assert pacer.deadline(5.001) == 5.001
    out = [item for _, item in drain(pacer, 5.001, 6.0)]
    assert out[:3] == ["a", "r1", "r2"]
    assert before + out[3:] == [f"v{k}" for k in range(30)]


def test_steady_video_never_exceeds_the_pacing_rate_and_never_waits_long() -> None:
    pacer: PacketPacer[str] = PacketPacer(TARGET)
    now, sent, waits, pushed = 10.0, 0, [], {}
    for frame in range(100):
        size = 24 if frame % 25 == 0 else 7
        for k in range(size):
            pacer.push_video(f"{frame}.{k}", PACKET)
            pushed[f"{frame}.{k}"] = now
        for at, item in drain(pacer, now, now + 0.0399):
            waits.append(at - pushed[item])
            sent += 1
        now += 0.040
    assert sent == len(pushed)
    assert max(waits) <= MAX_WAIT_S + MIN_STEP_S


def test_a_lower_target_paces_slower() -> None:
    spans = []
    for target in (TARGET, TARGET // 4):
        pacer: PacketPacer[str] = PacketPacer(target)
        for _ in range(12):
            pacer.push_video("v", PACKET)
        spans.append(drain(pacer, 1.0, 2.0)[-1][0])
    assert spans[1] > spans[0]


def test_a_flood_is_dropped_whole_and_told() -> None:
    pacer: PacketPacer[str] = PacketPacer(TARGET)
    kept = [pacer.push_video("v", PACKET) for _ in range(MAX_PACKETS + 1)]
    assert kept == [True] * MAX_PACKETS + [False]
    assert len(pacer) == pacer.queued_bytes == 0
    assert pacer.dropped == MAX_PACKETS + 1
    for _ in range(MAX_PACKETS + 5):
        pacer.push_audio("a", 100)
    assert len(pacer) == MAX_PACKETS


@given(
    st.lists(
        st.tuples(st.floats(0, 0.05), st.sampled_from("avr"), st.integers(1, 1500)), max_size=120
    ),
    st.integers(50_000, 8_000_000),
)
def test_everything_leaves_once_in_order_of_its_kind(
    script: list[tuple[float, str, int]], target: int
) -> None:
    pacer: PacketPacer[str] = PacketPacer(target)
    now, out, pushed = 1.0, [], []
    for k, (wait, kind, size) in enumerate(script):
        out += drain(pacer, now, now + wait)
        now += wait
        pushed.append(f"{kind}{k}")
        if kind == "a":
            pacer.push_audio(pushed[-1], size)
        else:
            pacer.push_video(pushed[-1], size, repair=kind == "r")
    out += drain(pacer, now, now + 10.0)
    assert len(pacer) == pacer.queued_bytes == 0
    for kind in "avr":
        mine = [item for _, item in out if item[0] == kind]
        assert mine == [item for item in pushed if item[0] == kind]
    assert pacer._rate == PACING_FACTOR * target / 8
