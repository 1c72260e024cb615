"""A render thread that dies, hangs or loses its device is replaced; sessions see held frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from models.codes import Array, MotionCode
from models.config import ModelConfig
from models.runtime.engine import Appearance, DeviceLostError, Drawing, Engine, EngineError
from models.runtime.frames import CpuFrameRenderer, FrameRequest, FrameResult
from realtime.supervise import (
    CALM_NS,
    FIRST_RETRY_NS,
    HANG_NS,
    MAX_RETRY_NS,
    Progress,
    RestartDelay,
    is_hung,
)
from realtime.worker import RenderWorker
from tests.fakes import FakeClock, FakeEngine, FakeTracker, paint_face
from tests.realtime.worker_rig import CONFIG, Session, fake_session

pytestmark = pytest.mark.unit

WAIT_S = 5.0


def wait_for(condition: Callable[[], object]) -> None:
    """Real threads are at work: look every few milliseconds, give up after `WAIT_S`."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


# --- rules ------------------------------------------------------------------------------


def test_only_a_unit_of_work_that_takes_too_long_counts_as_hung() -> None:
    assert not is_hung(Progress("idle", 0), 1 << 60), "nothing to do is no hang"
    assert not is_hung(Progress("load", 0), 1 << 60), "a first load may compile for minutes"
    assert not is_hung(Progress("frame", 0), HANG_NS)
    assert is_hung(Progress("frame", 0), HANG_NS + 1)
    assert is_hung(Progress("webcam", 0), HANG_NS + 1)
    assert not is_hung(Progress("call", 0), HANG_NS + 1), "preparing a portrait takes a while"


def test_the_first_restart_is_immediate_and_a_series_slows_down() -> None:
    delay, now = RestartDelay(), 0
    delays = []
    for _ in range(12):
        delays.append(delay.next_ns(now))
        now += delays[-1] + 1_000_000
    assert delays[:3] == [0, FIRST_RETRY_NS, 2 * FIRST_RETRY_NS]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_RETRY_NS
    assert delay.next_ns(now + CALM_NS + MAX_RETRY_NS) == 0, "after a calm time it is forgiven"


# --- with threads -----------------------------------------------------------------------


@dataclass
class Factory:
    """Makes fake engines and remembers them; `spoil` changes the next one."""

    config: ModelConfig = CONFIG
    made: list[FakeEngine] = field(default_factory=list)
    fail: int = 0

    def __call__(self) -> Engine:
        if self.fail > 0 and self.made:
            self.fail -= 1
            raise EngineError("the device does not answer")
        self.made.append(FakeEngine(config=self.config))
        return self.made[-1]  # type: ignore[return-value]


class Threaded:
    """A started worker on a virtual clock, with real threads."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.factory = Factory()
        self.worker = RenderWorker(
            self.factory, make_tracker=FakeTracker, clock=self.clock  # type: ignore[arg-type]
        )  # fmt: skip
        self.worker.start()
        self.worker.wait_ready(WAIT_S)

    def session(self) -> Session:
        return fake_session(self.worker, self.clock)

    @property
    def engine(self) -> FakeEngine:
        return self.factory.made[-1]


@pytest.fixture
def rig() -> Iterator[Threaded]:
    """A started worker, whose every thread has ended when the test ends."""
    before = set(threading.enumerate())
    made = Threaded()
    yield made
    made.worker.stop()
    wait_for(lambda: not set(threading.enumerate()) - before)


def lose(error: BaseException) -> Callable[..., Drawing]:
    def draw(appearance: Appearance, driving: MotionCode) -> Drawing:
        raise error

    return draw


@pytest.mark.parametrize("error", [DeviceLostError("the driver is gone"), SystemExit()])
def test_a_lost_device_and_a_killed_thread_are_replaced_within_two_seconds(
    rig: Threaded, error: BaseException
) -> None:
    session = rig.session()
    session.submit(0)
    wait_for(lambda: session.frames)
    rig.engine.draw = lose(error)  # type: ignore[method-assign]
    began = time.monotonic()
    session.submit(1)
    wait_for(lambda: [h.frame_index for h in session.held] == [1])
    session.submit(2)
    wait_for(lambda: len(session.frames) == 2)
    assert time.monotonic() - began < 2.0
    assert [f.frame_index for f in session.frames] == [0, 2]
    assert session.order == [0, 1, 2]
    assert session.errors == [], "it is not the session's fault"
    assert len(rig.factory.made) == 2
    assert rig.worker.restarts == 1
    assert rig.worker.running
    assert rig.worker.failure == ""


def test_a_thread_that_hangs_is_left_behind_and_what_it_still_brings_is_thrown_away(
    rig: Threaded,
) -> None:
    session = rig.session()
    hung, release = threading.Event(), threading.Event()
    original = rig.engine.draw

    def hang(appearance: Appearance, driving: MotionCode) -> Drawing:
        hung.set()
        release.wait(WAIT_S)
        return original(appearance, driving)

    rig.engine.draw = hang  # type: ignore[method-assign]
    session.submit(0)
    assert hung.wait(WAIT_S)
    rig.clock.advance(1900)
    time.sleep(0.25)  # the watchdog has looked twice
    assert rig.worker.restarts == 0, "slow is not hung"
    rig.clock.advance(200)
    wait_for(lambda: session.held)
    session.submit(1)
    wait_for(lambda: session.frames)
    release.set()
    time.sleep(0.05)
    assert session.order == [0, 1], "the late result of the old engine is not told"
    assert rig.worker.restarts == 1


def test_an_engine_that_does_not_come_back_at_once_is_tried_again(rig: Threaded) -> None:
    session = rig.session()
    rig.factory.fail = 2
    rig.engine.draw = lose(DeviceLostError("gone"))  # type: ignore[method-assign]
    session.submit(0)
    wait_for(lambda: rig.factory.fail == 1)
    wait_for(lambda: not rig.worker.running)
    assert "does not answer" in rig.worker.failure or "gone" in rig.worker.failure
    for _ in range(20):
        rig.clock.advance(100)
        time.sleep(0.02)
    rig.clock.advance(1000)
    wait_for(lambda: rig.worker.running)
    assert rig.worker.failure == ""
    session.submit(1)
    wait_for(lambda: session.frames)


def test_other_work_that_was_lost_with_its_engine_runs_once_more(rig: Threaded) -> None:
    runs: list[int] = []

    def prepare(engine: Engine) -> str:
        runs.append(len(rig.factory.made))
        if len(runs) == 1:
            raise DeviceLostError("gone")
        return "prepared"

    assert rig.worker.call(prepare).result(WAIT_S) == "prepared"
    assert runs == [1, 2]

    def deadly(engine: Engine) -> None:
        raise DeviceLostError("gone")

    future = rig.worker.call(deadly)
    wait_for(lambda: rig.worker.restarts >= 2)
    rig.clock.advance(1000)
    with pytest.raises(EngineError, match="twice"):
        future.result(WAIT_S)


def test_a_tracker_never_outlives_its_engine(rig: Threaded) -> None:
    session = rig.session()
    session.webcam(paint_face())
    wait_for(lambda: session.motions)
    assert session.box.tracker is not None
    first = session.box.tracker
    rig.engine.draw = lose(DeviceLostError("gone"))  # type: ignore[method-assign]
    session.submit(0)
    wait_for(lambda: len(rig.factory.made) == 2 and rig.worker.running)
    rig.clock.advance(100)
    session.webcam(paint_face())
    wait_for(lambda: len(session.motions) == 2)
    assert session.box.tracker is not first
    assert not session.errors


# --- batches ----------------------------------------------------------------------------


class BatchRenderer:
    """Draws up to four frames at once; refuses all of a batch that holds a bad one."""

    max_batch = 4

    def __init__(self, engine: FakeEngine) -> None:
        self._one = CpuFrameRenderer(engine)  # type: ignore[arg-type]
        self.batches: list[int] = []

    def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
        self.batches.append(len(requests))
        if any(request.driving.pose[0] > 0.9 for request in requests):
            raise EngineError("a bad frame")
        return [self._one.render([request])[0] for request in requests]


class BatchEngine(FakeEngine):
    """A fake engine with a renderer of its own."""

    renderer: BatchRenderer

    def frame_renderer(self) -> BatchRenderer:
        self.renderer = BatchRenderer(self)
        return self.renderer

    def audio_batch(self, mel_BTM: Array) -> Array:
        return np.stack([self.audio(mel) for mel in mel_BTM])


def batching() -> tuple[RenderWorker, BatchEngine, list[Session]]:
    clock = FakeClock()
    engine = BatchEngine(config=CONFIG, clock=clock, cost_ms={"draw": 2.0})
    worker = RenderWorker(lambda: engine, make_tracker=FakeTracker, clock=clock)  # type: ignore[arg-type, return-value]
    worker.load()
    return worker, engine, [fake_session(worker, clock, tint=70 + 20 * k) for k in range(6)]


def test_sessions_that_are_due_share_a_batch_in_turn_and_nobody_waits_for_it() -> None:
    worker, engine, sessions = batching()
    sessions[0].submit(0)
    worker.step()
    assert engine.renderer.batches == [1], "one that is alone is drawn at once"
    for frame in (1, 2):
        for session in sessions:
            session.submit(frame)
    while worker.step():
        pass
    assert engine.renderer.batches == [1, 4, 4, 4]
    assert all([f.frame_index for f in s.frames][-2:] == [1, 2] for s in sessions)
    tints = [round(float(np.median(s.frames[-1].i420[:64]))) for s in sessions]
    assert tints == sorted(set(tints)), "each got its own portrait"
    assert worker.measure().frame_ns == pytest.approx(2e6, rel=0.01), "a frame's share of its batch"
    assert worker.measure().max_batch == 4


def test_one_bad_frame_of_a_batch_costs_only_its_own_session() -> None:
    worker, engine, sessions = batching()
    for k, session in enumerate(sessions[:4]):
        session.submit(0, yaw=1.0 if k == 2 else 0.0)
    while worker.step():
        pass
    assert engine.renderer.batches == [4, 1, 1, 1, 1]
    assert [len(s.frames) for s in sessions[:4]] == [1, 1, 0, 1]
    assert [len(s.errors) for s in sessions[:4]] == [0, 0, 1, 0]
    assert [(h.frame_index, h.reason) for h in sessions[2].held] == [(0, "failed")]
