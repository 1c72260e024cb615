"""When the returned voice leaves, in virtual time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.pacing import (
    LEAD_NS,
    MAX_LAG_NS,
    MAX_PACKETS,
    PACKET_NS,
    PACKET_SAMPLES,
    START_LAG_NS,
    AudioPacer,
    SkewMeter,
)

pytestmark = pytest.mark.unit

MS = 1_000_000
FRAME_NS = 40 * MS
FRAME = 1920


def frame(number: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.arange(FRAME, dtype=np.int16) + np.int16(number)


def run(pacer: AudioPacer, until_ns: int) -> list[tuple[int, int]]:
    """(time, sample index) of everything that leaves until then, popped at each deadline."""
    out = []
    while (due := pacer.deadline_ns()) is not None and due <= until_ns:
        out += [(due, packet.index) for packet in pacer.pop(due)]
    return out


def talk(pacer: AudioPacer, delays_ms: list[float], late_ms: list[float]) -> list[tuple[int, int]]:
    """Frame f is ready at 40 f + late ms; its picture leaves `delay` later. Returns departures."""
    out: list[tuple[int, int]] = []
    ready = 0
    for number, (delay, late) in enumerate(zip(delays_ms, late_ms, strict=True)):
        ready = max(ready, number * FRAME_NS + int(late * MS))
        out += run(pacer, ready)
        pacer.push(frame(number), number * FRAME, ready)
        pacer.on_picture(int(delay * MS))
    return out + run(pacer, ready + 1000 * MS)


def test_a_frame_of_sound_leaves_in_ten_ms_steps_before_its_picture() -> None:
    pacer = AudioPacer()
    pacer.push(frame(0), 0, 1_000 * MS)
    first = 1_000 * MS + START_LAG_NS - LEAD_NS
    assert run(pacer, 2_000 * MS) == [(first + k * PACKET_NS, k * PACKET_SAMPLES) for k in range(4)]
    assert pacer.deadline_ns() is None


def test_a_packet_holds_the_samples_of_its_index() -> None:
    pacer = AudioPacer()
    pacer.push(frame(3), 3 * FRAME, 0)
    packets = pacer.pop(10**12)
    assert np.array_equal(np.concatenate([p.pcm for p in packets]), frame(3))
    assert [p.index for p in packets] == [3 * FRAME + k * 480 for k in range(4)]


def test_the_first_pictures_set_the_lag_and_later_ones_move_it() -> None:
    pacer = AudioPacer()
    for _ in range(9):
        pacer.on_picture(60 * MS)
    assert pacer.lag_ns == 60 * MS
    for _ in range(40):
        pacer.on_picture(30 * MS)
    assert pacer.lag_ns == 50 * MS
    for _ in range(2000):
        pacer.on_picture(900 * MS)
    assert pacer.lag_ns == MAX_LAG_NS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 400), min_size=10, max_size=50),
    st.lists(st.floats(0, 300), min_size=10, max_size=50),
)
def test_after_any_burst_the_voice_is_as_fresh_as_before(
    delays: list[float], late: list[float]
) -> None:
    burst = min(len(delays), len(late))
    usual = 50
    delays_ms = [20.0] * usual + delays[:burst] + [20.0] * 100
    late_ms = [0.0] * usual + late[:burst] + [0.0] * 100
    pacer = AudioPacer()
    out = talk(pacer, delays_ms, late_ms)
    indices = [index for _, index in out]
    assert indices == sorted(set(indices))
    assert pacer.dropped == 0
    assert [t for t, _ in out] == sorted(t for t, _ in out)
    age = {index: at - index * 10 * MS // 480 for at, index in out}
    before = [age[i] for i in age if 30 * FRAME <= i < usual * FRAME]
    # Two seconds later. The lag moves a quarter millisecond a frame, so it is back as well.
    after = [age[i] for i in age if i >= (usual + burst + 50) * FRAME]
    assert max(after) <= max(before) + 5 * MS
    assert len(out) == 4 * len(delays_ms)


def test_a_late_frame_pulls_waiting_sound_forward_instead_of_delaying_the_next() -> None:
    pacer = AudioPacer()
    pacer.push(frame(0), 0, 100 * MS)
    pacer.push(frame(1), FRAME, 105 * MS)
    out = run(pacer, 1_000 * MS)
    assert [index for _, index in out] == [k * 480 for k in range(8)]
    first = next(at for at, index in out if index == FRAME)
    assert first == 105 * MS + START_LAG_NS - LEAD_NS


def test_nothing_piles_up_when_nobody_pops() -> None:
    pacer = AudioPacer()
    for number in range(100):
        pacer.push(frame(number), number * FRAME, number * FRAME_NS)
    assert len(pacer) == MAX_PACKETS
    assert pacer.dropped == 400 - MAX_PACKETS
    assert pacer.pop(10**12)[-1].index == 100 * FRAME - 480


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 10**9)), max_size=300))
def test_skew_is_picture_minus_voice_whatever_the_order(
    events: list[tuple[bool, int, int]],
) -> None:
    meter = SkewMeter(window=10)
    waiting: dict[tuple[bool, int], int] = {}
    for is_voice, index, at in events:
        note = meter.on_voice if is_voice else meter.on_picture
        skew = note(index, at)
        if skew is not None:
            other = waiting.pop((not is_voice, index))
            assert skew == (other - at if is_voice else at - other)
        else:
            waiting[is_voice, index] = at
    assert len(meter._voices) <= 10
    assert len(meter._pictures) <= 10
