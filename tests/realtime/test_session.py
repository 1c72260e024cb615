"""Pacing, control messages, notices and the session's life."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import uvloop

from models.config import ModelConfig
from models.mark import mark_place
from realtime.control import Control, FaceNotices
from realtime.limits import RateLimit
from realtime.pacing import LEAD_NS, MAX_LAG_NS, AudioPacer, SkewMeter
from realtime.pipeline import Pipeline
from realtime.protocol import Notice, Pong, ServerMessage, State
from realtime.session import Subscription
from realtime.settings import LIMITS, Limits, Settings
from tests.fakes import FakeClock, FakeEngine, fake_portrait, paint_face
from tests.serving import client, make_web, serving, until

pytestmark = pytest.mark.unit

MS = 1_000_000


# --- pacing ---------------------------------------------------------------------------


def frame_of(index: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.full(1920, index, np.int16)


def play(pacer: AudioPacer, ready_ms: list[float], until_ms: int) -> list[tuple[int, int]]:
    """Push frame k at ready_ms[k], pop every millisecond: (time, sample) of every packet."""
    out, waiting = [], list(enumerate(ready_ms))
    for now in range(until_ms):
        while waiting and waiting[0][1] <= now:
            k, at = waiting.pop(0)
            pacer.push(frame_of(k), k * 1920, int(at * MS))
        out += [(now, packet.index) for packet in pacer.pop(now * MS)]
    return out


def test_voice_leaves_at_the_pace_it_was_spoken() -> None:
    pacer = AudioPacer()
    out = play(pacer, [k * 40.0 for k in range(10)], 500)
    assert [index for _, index in out] == list(range(0, 19200, 480))
    assert np.diff([at for at, _ in out]).tolist() == [10] * 39
    assert out[0][0] * MS == pacer.lag_ns - LEAD_NS


def test_one_late_frame_delays_nothing_after_it() -> None:
    ready = [k * 40.0 for k in range(10)]
    ready[4] += 35
    out = play(AudioPacer(), ready, 500)
    assert [index for _, index in out] == list(range(0, 19200, 480))
    steady = play(AudioPacer(), [k * 40.0 for k in range(10)], 500)
    assert out[20:] == steady[20:]
    assert all(at - expected <= 35 for (at, _), (expected, _) in zip(out, steady, strict=True))


def test_the_first_pictures_set_the_voice_at_once() -> None:
    pacer = AudioPacer()
    for delay in (95, 400, 90, 92, 88):
        pacer.on_picture(delay * MS)
    assert pacer.lag_ns == 92 * MS, "one slow picture does not move it"


def test_the_queue_is_bounded_and_the_lag_follows_the_usual_delay() -> None:
    pacer = AudioPacer()
    for k in range(100):
        pacer.push(frame_of(k), k * 1920, k * 40 * MS)
    assert len(pacer) == 50
    assert pacer.dropped == 350
    for _ in range(400):
        pacer.on_picture(31 * MS)
    assert abs(pacer.lag_ns - 31 * MS) <= 0.5 * MS
    for _ in range(1000):
        pacer.on_picture(500 * MS)
    assert pacer.lag_ns == MAX_LAG_NS


def test_skew_is_picture_minus_voice_whichever_comes_first() -> None:
    meter = SkewMeter()
    assert meter.skew_ms == 0.0
    assert meter.on_voice(1, 100 * MS) is None
    assert meter.on_picture(1, 112 * MS) == 12 * MS
    assert meter.on_picture(2, 140 * MS) is None
    assert meter.on_voice(2, 150 * MS) == -10 * MS
    meter.on_picture(3, 0)
    assert meter.skew_ms == pytest.approx(1.0)
    for k in range(10, 500):
        meter.on_voice(k, 0)
    assert meter.on_picture(10, 5) is None


# --- control --------------------------------------------------------------------------


def make_control(limits: Limits = LIMITS) -> tuple[Control, FakeClock]:
    clock = FakeClock()
    pipeline = Pipeline(fake_portrait(), ModelConfig(), size=256, clock=clock)
    return Control(pipeline, clock.monotonic, limits), clock


def say(control: Control, **message: object) -> list[ServerMessage]:
    return control.handle(json.dumps(message).encode())


def test_changes_are_answered_with_the_new_state() -> None:
    control, _ = make_control()
    (state,) = say(control, type="set_source", factor="exp", source="preset", name="smile")
    assert isinstance(state, State)
    exp = next(f for f in state.factors if f.factor == "exp")
    assert (exp.source, exp.name) == ("preset", "smile")
    (state,) = say(control, type="set_gain", factor="lip", gain=1.5)
    assert isinstance(state, State)
    assert next(f for f in state.factors if f.factor == "lip").gain == 1.5
    (state,) = say(control, type="pause", paused=True)
    assert isinstance(state, State)
    assert state.paused
    assert isinstance(say(control, type="recenter")[0], State)
    assert isinstance(say(control, type="set_slider", factor="pose", values={"yaw": 0.5})[0], State)


def test_the_mark_can_be_switched_unless_the_server_demands_it() -> None:
    control, clock = make_control()
    assert [s.marked for s in say(control, type="set_mark", marked=True)] == [True]  # type: ignore[union-attr]
    assert [s.marked for s in say(control, type="set_mark", marked=False)] == [False]  # type: ignore[union-attr]
    pipeline = Pipeline(fake_portrait(), ModelConfig(), size=256, clock=clock)
    pipeline.marked = True
    strict = Control(pipeline, clock.monotonic, mark_required=True)
    notice, state = say(strict, type="set_mark", marked=False)
    assert isinstance(notice, Notice)
    assert "marks every picture" in notice.message
    assert isinstance(state, State)
    assert state.marked
    assert pipeline.marked


def test_ping_is_answered_and_statistics_are_kept() -> None:
    control, _ = make_control()
    assert say(control, type="ping", t_ms=12.5) == [Pong(12.5)]
    assert say(control, type="client_stats", fps=24.9) == []
    assert control.client_stats is not None
    assert control.client_stats.fps == 24.9


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"type":"nonsense"}',
        b'{"type":"set_gain","factor":"lip","gain":99}',
        b'{"type":"set_gain","factor":"lip","gain":1,"more":1}',
        b'{"type":"set_source","factor":"nose","source":"mic"}',
        b'{"type":"set_source","factor":"exp","source":"preset","name":"no/such"}',
        b'{"type":"set_source","factor":"pose","source":"mic"}',
        b'{"type":"set_source","factor":"exp","source":"preset","name":"nobody"}',
        b'{"type":"set_slider","factor":"pose","values":{"nobody":1}}',
        b'{"type":"set_slider","factor":"pose","values":{"yaw":1e9}}',
        b'{"type":"ping","t_ms":"soon"}',
        b'{"type":"pause","paused":true,"pad":"' + b"x" * 20_000 + b'"}',
    ],
)
def test_a_bad_message_is_refused_in_words_and_changes_nothing(data: bytes) -> None:
    control, _ = make_control()
    before = control.state()
    replies = control.handle(data)
    assert isinstance(replies[0], Notice)
    assert replies[0].level == "error"
    assert control.state() == before


def test_too_many_messages_are_ignored_then_end_the_session() -> None:
    control, clock = make_control(Limits(messages_per_s=10, message_burst=5, message_abuse=20))
    replies = [say(control, type="ping", t_ms=k) for k in range(10)]
    assert replies[4] == [Pong(4)]
    assert [r.code for r in replies[5] if isinstance(r, Notice)] == ["too_many_messages"]
    assert replies[6:] == [[], [], [], []]
    clock.advance(1000)
    assert say(control, type="ping", t_ms=1) == [Pong(1)]
    assert not control.abusive
    for k in range(40):
        say(control, type="ping", t_ms=k)
    assert control.abusive


def test_rate_limit_refills_to_its_burst_only() -> None:
    clock = FakeClock()
    limit = RateLimit(2.0, 3, clock.monotonic)
    assert [limit.allow() for _ in range(4)] == [True, True, True, False]
    clock.advance(500)
    assert [limit.allow(), limit.allow()] == [True, False]
    clock.advance(60_000)
    assert sum(limit.allow() for _ in range(10)) == 3


def test_a_missing_face_is_told_late_and_a_found_one_soon_and_neither_twice() -> None:
    notices = FaceNotices()

    def codes(status: str, start: float, seconds: float) -> list[tuple[float, str]]:
        found = []
        for k in range(int(seconds * 4)):
            at = start + k / 4
            if (notice := notices.update(status, at)) is not None:  # type: ignore[arg-type]
                found.append((at - start, notice.code))
        return found

    assert codes("tracking", 0, 5) == []
    assert codes("searching", 5, 1.75) == []
    assert codes("tracking", 6.75, 1) == []
    assert codes("searching", 8, 10) == [(2.0, "face_missing")]
    assert codes("tracking", 18, 0.25) == []
    assert codes("searching", 18.25, 3) == []
    assert codes("tracking", 22, 3) == [(0.5, "face_found")]
    assert codes("searching", 25, 3) == [(2.0, "face_missing")]
    assert codes("off", 28, 3) == []
    assert codes("tracking", 31, 3) == []


# --- subscriptions --------------------------------------------------------------------


async def test_a_slow_listener_loses_the_oldest_messages_not_memory() -> None:
    subscription = Subscription()
    for k in range(LIMITS.event_queue + 10):
        subscription.put(str(k).encode())
    assert await subscription.next() == b"10"
    subscription.close()
    rest = []
    while (data := await subscription.next()) is not None:
        rest.append(data)
    assert len(rest) == LIMITS.event_queue - 1
    assert await subscription.next() is None


# --- a session over a real connection -------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(web_dir=make_web(tmp_path / "web", {"grey": 120}), max_sessions=2)


async def test_hello_state_stats_and_pause(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        sources = {"exp": {"source": "preset", "name": "smile"}}
        assert (await made.open("grey", size=256, sources=sources)).status_code == 201
        hello = await made.message("hello")
        assert hello["engine"] == "fake"
        assert hello["portrait"] == "Grey"
        assert hello["size"] == 256
        assert hello["algorithmic_latency_ms"] == 80
        assert {f["factor"]: f["source"] for f in hello["factors"]}["exp"] == "preset"
        made.send(type="set_gain", factor="exp", gain=0.5)
        state = await made.message("state")
        assert next(f for f in state["factors"] if f["factor"] == "exp")["gain"] == 0.5
        made.send(type="ping", t_ms=7)
        await made.message("pong", t_ms=7)
        made.send(type="nonsense")
        assert (await made.message("notice"))["level"] == "error"
        stats = await made.message("stats")
        assert stats["webcam"] == "off"
        # Nobody speaks: the clock runs and pictures come all the same.
        await until(lambda: len(made.frames) > 5)


def letters(frame: av.VideoFrame) -> bool:
    """Whether a decoded picture has bright letters on the mark's dark pill."""
    x, y, width, height = mark_place(frame.width)
    luma = frame.to_ndarray(format="gray")[y : y + height, x : x + width]
    return bool(np.ptp(luma) > 90)


@pytest.mark.parametrize("required", [False, True])
async def test_pictures_carry_the_mark_as_asked(settings: Settings, required: bool) -> None:
    settings = dataclasses.replace(settings, mark=required)
    async with serving(settings) as running, client(running) as made:
        body = {} if required else {"marked": True}
        assert (await made.open("grey", size=256, **body)).status_code == 201
        assert (await made.message("hello"))["mark_required"] is required
        assert (await made.message("state"))["marked"] is True
        await until(lambda: len(made.frames) > 3)
        assert all(letters(frame) for _, frame in made.frames), "from the first picture on"
        made.send(type="set_mark", marked=False)
        await (made.message("notice") if required else made.message("state", marked=False))
        seen = len(made.frames)
        await until(lambda: len(made.frames) > seen + 12)
        assert letters(made.frames[-1][1]) is required


async def test_a_webcam_without_a_face_is_told(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        webcam = {"source": "webcam"}
        sources = {"pose": webcam, "eye": webcam, "exp": webcam}
        assert (await made.open("grey", size=256, sources=sources)).status_code == 201
        await made.message("hello")
        black = np.full((384, 256), 128, np.uint8)
        black[:256] = 0
        index = 0

        async def show(i420: np.ndarray[tuple[int, int], np.dtype[np.uint8]], code: str) -> None:
            nonlocal index
            async with asyncio.timeout(6):
                while not any(m.get("code") == code for m in made.messages):
                    made.peer.send_frame(i420, index)
                    index += 1
                    await asyncio.sleep(0.04)

        await show(black, "face_missing")
        face = cv2.cvtColor(paint_face(size=256), cv2.COLOR_RGB2YUV_I420)
        await show(np.asarray(face, np.uint8), "face_found")
        assert (await made.message("stats", webcam="tracking"))["webcam"] == "tracking"


async def test_an_idle_session_is_ended_with_a_word(tmp_path: Path) -> None:
    web = make_web(tmp_path / "web", {"grey": 120})
    async with serving(Settings(web_dir=web, idle_s=0.6)) as running, client(running) as made:
        assert (await made.open("grey", size=256)).status_code == 201
        await made.message("notice", code="idle")
        async with asyncio.timeout(3):
            await made.closed.wait()
        await until(lambda: running.hub.session_count == 0)


async def test_frames_that_fail_are_held_and_told_and_the_voice_goes_on(
    settings: Settings,
) -> None:
    engine = FakeEngine(fail_draws=10**9)
    async with (
        serving(settings, engine_factory=lambda: engine) as running,  # type: ignore[arg-type, return-value]
        client(running) as made,
    ):
        assert (await made.open("grey", size=256)).status_code == 201
        tone = (8000 * np.sin(np.arange(48000) * 0.03)).astype(np.int16)
        await made.speak(tone)
        notice = await made.message("notice", code="frame_failed")
        assert "Traceback" not in notice["message"]
        await asyncio.sleep(0.3)
        assert made.frames == []
        heard = np.concatenate([b.pcm for b in made.blocks if not b.concealed])
        assert np.abs(heard).max() > 5000
        engine.fail_draws = 0
        await until(lambda: made.frames)


def test_a_session_runs_on_uvloop(settings: Settings) -> None:
    async def converse() -> int:
        async with serving(settings) as running, client(running) as made:
            assert (await made.open("grey", size=256)).status_code == 201
            await made.speak(np.zeros(24000, np.int16))
            return len(made.frames)

    assert uvloop.run(converse()) > 5
