"""The render worker: fair, bounded, isolated, and never late by queueing. Virtual time."""

from __future__ import annotations

import threading
from functools import partial

import cv2
import numpy as np
import pytest

from models.codes import MotionCode
from models.runtime.engine import Engine, EngineError
from realtime.admission import Demand, admit
from realtime.calibrate import measure_encoder, measure_engine
from realtime.worker import (
    CALL_DEPTH,
    RenderedFrame,
    RenderWorker,
    WorkerBusyError,
    to_i420,
)
from tests.fakes import (
    FakeClock,
    FakeEngine,
    FakeTracker,
    Pixels,
    fake_portrait,
    paint_face,
    read_face,
)
from tests.realtime.worker_rig import CONFIG, SIZE, Session, fake_session

pytestmark = pytest.mark.unit


class Rig:
    """A worker without a thread, with fakes around it."""

    def __init__(self, **cost_ms: float) -> None:
        self.clock = FakeClock()
        self.engine = FakeEngine(config=CONFIG, clock=self.clock, cost_ms=cost_ms)
        self.worker = RenderWorker(
            lambda: self.engine, make_tracker=self._tracker, clock=self.clock
        )
        self.trackers: list[FakeTracker] = []
        self.worker.load()

    def _tracker(self, engine: Engine) -> FakeTracker:
        assert engine is self.engine
        self.trackers.append(FakeTracker(self.engine))
        return self.trackers[-1]

    def session(self, tint: int = 120) -> Session:
        return fake_session(self.worker, self.clock, tint=tint)

    def drain(self) -> int:
        steps = 0
        while self.worker.step():
            steps += 1
        return steps


def _look(frame: RenderedFrame) -> float:
    """Grey level of the background of an I420 picture."""
    return float(np.median(frame.i420[:SIZE]))


def test_a_job_becomes_a_picture_of_its_portrait_and_motion() -> None:
    rig = Rig(audio=1.0, draw=9.0)
    session = rig.session(tint=100)
    session.submit(7, mouth=0.6)
    rig.clock.advance(3)
    assert rig.drain() == 1
    (frame,) = session.frames
    assert frame.frame_index == 7
    assert frame.i420.shape == (SIZE * 3 // 2, SIZE)
    assert frame.i420.dtype == np.uint8
    assert set(frame.spans) == {"queue", "audio", "draw", "compose", "convert"}
    assert frame.spans["queue"] == 3_000_000
    assert frame.spans["audio"] == 1_000_000
    assert frame.spans["draw"] == 9_000_000
    rgb = np.asarray(cv2.cvtColor(frame.i420, cv2.COLOR_YUV2RGB_I420), np.uint8)
    state = read_face(rgb)
    assert state.mouth == pytest.approx(0.6, abs=0.1)
    assert abs(state.tint - 100) <= 3


def test_two_sessions_never_see_each_other() -> None:
    rig = Rig()
    dark, light = rig.session(tint=70), rig.session(tint=170)
    for i in range(10):
        dark.submit(i, mouth=0.1)
        light.submit(i, mouth=0.9)
        rig.drain()
    assert [f.frame_index for f in dark.frames] == list(range(10))
    assert [f.frame_index for f in light.frames] == list(range(10))
    levels = {round(_look(f)) for f in dark.frames}, {round(_look(f)) for f in light.frames}
    assert max(levels[0]) < min(levels[1])
    dark.webcam(paint_face(MotionCode(pose=np.array([0.3, 0, 0, 0, 0, 0], np.float32))))
    light.webcam(paint_face())
    rig.drain()
    assert len(rig.trackers) == 2
    assert dark.motions[0].reading is not None
    assert dark.motions[0].reading.code.pose[0] == pytest.approx(0.3, abs=0.02)
    assert light.motions[0].reading is not None
    assert abs(light.motions[0].reading.code.pose[0]) < 0.02
    assert len(dark.motions) == len(light.motions) == 1


def test_a_full_mailbox_holds_the_oldest_frame_and_never_queues() -> None:
    rig = Rig()
    session = rig.session()
    for i in range(5):
        session.submit(i)
    rig.drain()
    assert [f.frame_index for f in session.frames] == [3, 4]
    assert [(h.frame_index, h.reason) for h in session.held] == [
        (0, "late"),
        (1, "late"),
        (2, "late"),
    ]
    assert all(h.lip is not None for h in session.held), "lips are computed all the same"
    assert session.order == sorted(session.order)
    assert rig.engine.calls["draw"] == 2
    assert rig.engine.calls["audio"] == 5
    assert session.box.stats.late == 3


def test_what_is_kept_for_skipped_frames_is_bounded_too() -> None:
    rig = Rig()
    session = rig.session()
    for i in range(50):
        session.submit(i)
    rig.drain()
    assert [f.frame_index for f in session.frames] == [48, 49]
    assert len(session.held) == 4
    assert session.box.stats.lips_dropped == 44
    assert session.box.stats.late == 48


def test_a_late_frame_gives_way_to_a_newer_one_but_not_to_nothing() -> None:
    rig = Rig()
    session = rig.session()
    session.submit(0)
    rig.clock.advance(70)
    rig.drain()
    assert [f.frame_index for f in session.frames] == [0], "late, but there is nothing newer"
    session.submit(1)
    rig.clock.advance(70)
    session.submit(2)
    rig.drain()
    assert [f.frame_index for f in session.frames] == [0, 2]
    assert [h.frame_index for h in session.held] == [1]


def test_a_burst_that_can_be_caught_up_loses_nothing() -> None:
    rig = Rig(draw=15.0)
    session = rig.session()
    session.submit(0)
    session.submit(1)
    rig.drain()
    assert [f.frame_index for f in session.frames] == [0, 1]
    assert not session.held


@pytest.mark.parametrize("draw_ms", [20.0, 55.0, 130.0])
def test_latency_does_not_grow_when_the_machine_is_too_slow(draw_ms: float) -> None:
    rig = Rig(draw=draw_ms)
    session = rig.session()
    start, submitted = rig.clock(), 0
    while submitted < 200:
        while rig.clock() - start >= submitted * 40_000_000 and submitted < 200:
            session.submit(submitted, ready_ns=start + submitted * 40_000_000)
            submitted += 1
        if not rig.worker.step():
            rig.clock.advance(1)
    rig.drain()
    waits = [f.spans["queue"] / 1e6 for f in session.frames]
    drawn = session.box.stats.drawn
    assert drawn + len(session.held) + session.box.stats.lips_dropped == 200
    assert drawn >= min(200, 0.9 * 200 * 40 / draw_ms)
    assert max(waits) <= 40 + draw_ms
    assert np.mean(waits[-20:]) <= np.mean(waits[5:25]) + 5, "no drift"
    assert rig.worker.behind == (draw_ms > 40)


def test_sessions_take_turns() -> None:
    rig = Rig(draw=30.0)
    greedy, modest = rig.session(70), rig.session(170)
    for i in range(40):
        for _ in range(3):
            greedy.submit(3 * i + _)
        modest.submit(i)
        rig.worker.step()
        rig.worker.step()
    assert abs(greedy.box.stats.drawn - modest.box.stats.drawn) <= 1


def test_a_failing_session_harms_nobody_and_goes_on() -> None:
    rig = Rig()
    bad, good = rig.session(70), rig.session(170)
    rig.engine.fail_draws = 1
    bad.submit(0)
    good.submit(0)
    rig.drain()
    assert [(h.frame_index, h.reason) for h in bad.held] == [(0, "failed")]
    assert isinstance(bad.errors[0], EngineError)
    assert [f.frame_index for f in good.frames] == [0]
    assert not good.errors
    bad.submit(1)
    rig.drain()
    assert [f.frame_index for f in bad.frames] == [1]
    assert bad.box.stats.failed == 1


def test_a_broken_sink_ends_its_own_session_only(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    broken, good = rig.session(), rig.session()

    def explode(frame: RenderedFrame) -> None:
        raise RuntimeError("loop is closed")

    broken.on_frame = explode  # type: ignore[method-assign]
    for i in range(3):
        broken.submit(i)
        good.submit(i)
        rig.drain()
    assert len(good.frames) == 3
    assert broken.box.stats.submitted == 1, "nothing is taken after it ended"
    assert "callback failed" in caplog.text


def test_a_closed_mailbox_gets_nothing() -> None:
    rig = Rig()
    session = rig.session()
    session.submit(0)
    session.webcam(paint_face())
    session.box.close()
    session.submit(1)
    session.webcam(paint_face())
    session.box.close()
    assert rig.drain() == 0
    assert not session.order


# --- webcam -----------------------------------------------------------------------------


def test_only_the_latest_picture_is_read() -> None:
    rig = Rig()
    session = rig.session()
    for i in range(5):
        session.webcam(paint_face(), at=i)
    rig.drain()
    assert [m.capture_48k for m in session.motions] == [4]
    assert session.box.stats.webcam_replaced == 4


def test_pictures_are_read_at_most_25_times_a_second() -> None:
    rig = Rig(motion=5.0)
    session = rig.session()
    end = rig.clock() + 4_000_000_000
    shown = rig.clock()
    while rig.clock() < end:
        if rig.clock() >= shown:
            session.webcam(paint_face())
            shown += 16_666_667
        if not rig.worker.step():
            rig.clock.advance(1)
    assert 90 <= len(session.motions) <= 101
    spans = session.motions[-1].spans
    assert spans["motion"] == 5_000_000
    assert 0 <= spans["track_queue"] <= 50_000_000


def test_frames_come_first_and_a_busy_machine_still_reads_12_times_a_second() -> None:
    rig = Rig(draw=45.0, motion=8.0)
    session = rig.session()
    start, frame, shown = rig.clock(), 0, rig.clock()
    while rig.clock() - start < 6_000_000_000:
        while rig.clock() - start >= frame * 40_000_000:
            session.submit(frame)
            frame += 1
        if rig.clock() >= shown:
            session.webcam(paint_face())
            shown = rig.clock() + 33_000_000
        if not rig.worker.step():
            rig.clock.advance(1)
    assert rig.worker.behind
    assert 6 <= len(session.motions) / 6 <= 12.5
    assert session.box.stats.drawn / 6 > 16


def test_a_picture_waits_for_frames_while_there_is_time() -> None:
    rig = Rig()
    session = rig.session()
    session.webcam(paint_face())
    rig.drain()
    rig.clock.advance(45)
    session.webcam(paint_face())
    session.submit(0)
    rig.worker.step()
    assert session.frames
    assert len(session.motions) == 1
    rig.worker.step()
    assert len(session.motions) == 2


def test_a_tracker_that_fails_is_replaced() -> None:
    rig = Rig()
    session = rig.session()
    black: Pixels = np.zeros((240, 320, 3), np.uint8)
    session.webcam(black)
    rig.drain()
    assert session.motions[-1].reading is None
    rig.trackers[-1].update = _explode  # type: ignore[method-assign]
    rig.clock.advance(100)
    session.webcam(black)
    rig.drain()
    assert "tracker" in str(session.errors[-1])
    rig.clock.advance(100)
    session.webcam(paint_face())
    rig.drain()
    assert session.motions[-1].reading is not None


def _explode(frame: Pixels) -> None:
    raise RuntimeError("tracker")


# --- calls and the thread ---------------------------------------------------------------


def test_calls_come_last_but_not_never() -> None:
    rig = Rig(draw=30.0)
    session = rig.session()
    future = rig.worker.call(lambda engine: engine.config.name)
    for i in range(20):
        session.submit(i)
        rig.worker.step()
        if future.done():
            break
    assert 5 < len(session.frames) < 12, "after a quarter of a second"
    assert future.result(0) == "live"


def test_calls_are_bounded_and_carry_their_errors() -> None:
    rig = Rig()

    def fail(engine: Engine) -> None:
        raise ValueError("no face")

    futures = [rig.worker.call(fail) for _ in range(CALL_DEPTH)]
    with pytest.raises(WorkerBusyError):
        rig.worker.call(fail)
    futures[1].cancel()
    rig.drain()
    with pytest.raises(ValueError, match="no face"):
        futures[0].result(0)
    assert futures[1].cancelled()


def test_the_engine_lives_in_the_workers_thread() -> None:
    made: list[int] = []
    done = threading.Event()

    def make() -> FakeEngine:
        made.append(threading.get_ident())
        return FakeEngine(config=CONFIG)

    worker = RenderWorker(make, make_tracker=FakeTracker)  # type: ignore[arg-type]
    worker.start()
    try:
        assert worker.wait_ready(10).name == "fake"
        session = Session(fake_portrait(), FakeClock())
        session.box = worker.open(session)
        thread: list[int] = []

        def on_frame(frame: RenderedFrame) -> None:
            thread.append(threading.get_ident())
            done.set()

        session.on_frame = on_frame  # type: ignore[method-assign]
        session.submit(0)
        assert done.wait(10)
        assert made == thread != [threading.get_ident()]
        assert worker.call(lambda engine: threading.get_ident()).result(10) == made[0]
        with pytest.raises(RuntimeError, match="already"):
            worker.start()
    finally:
        worker.stop()
    worker.stop()
    with pytest.raises(EngineError, match="stopped"):
        worker.call(lambda engine: None)


def test_an_engine_that_cannot_load_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Engine:
        raise EngineError("no weights")

    worker = RenderWorker(fail)
    worker.start()
    with pytest.raises(EngineError, match="no weights"):
        worker.wait_ready(10)
    worker.stop()
    assert "could not be loaded" in caplog.text


def test_i420_is_even_and_limited_range() -> None:
    white = np.full((4, 4, 3), 255, np.uint8)
    assert to_i420(white)[:4].max() == 235


# --- frames left out on purpose -----------------------------------------------------------


def test_a_frame_that_is_left_out_costs_its_lip_code_only_and_nobody_its_place() -> None:
    rig = Rig(audio=1.0, draw=30.0)
    session = rig.session()
    for frame in range(8):
        session.submit(frame, draw=frame % 2 == 0)
        rig.clock.advance(20)
        rig.drain()
    assert [f.frame_index for f in session.frames] == [0, 2, 4, 6]
    assert [(h.frame_index, h.reason) for h in session.held] == [
        (frame, "paced") for frame in (1, 3, 5, 7)
    ]
    assert all(h.lip is not None for h in session.held)
    assert session.order == list(range(8))
    assert session.box.stats.late == 0
    assert not rig.worker.behind, "on purpose is not late"


def test_what_was_skipped_late_and_on_purpose_leaves_in_the_order_of_frames() -> None:
    rig = Rig()
    session = rig.session()
    for frame in range(7):
        session.submit(frame, draw=frame % 2 == 0)
    rig.drain()
    assert session.order == sorted(session.order)
    assert [f.frame_index for f in session.frames] == [4, 6]


# --- load -------------------------------------------------------------------------------


def test_the_worker_publishes_what_its_work_costs_and_how_busy_it_is() -> None:
    rig = Rig(audio=1.0, draw=19.0, motion=8.0)
    assert rig.worker.measure().frame_ns == 0.0
    session = rig.session()
    for frame in range(50):
        session.submit(frame)
        if frame % 2:
            session.webcam(paint_face())
        start = rig.clock()
        rig.drain()
        rig.clock.advance(40 - (rig.clock() - start) / 1e6)
    load = rig.worker.measure()
    assert load.frame_ns == pytest.approx(20e6, rel=0.01)
    assert load.frame_p95_ns == pytest.approx(20e6, rel=0.01)
    assert load.webcam_ns == pytest.approx(8e6, rel=0.01)
    assert load.busy == pytest.approx(0.5 + 0.1, abs=0.06)
    assert load.headroom == pytest.approx(1 - load.busy)
    rig.clock.advance(2000)
    assert rig.worker.measure().busy == 0.0


def test_what_a_frame_costs_is_known_before_the_first_one_is_asked_for() -> None:
    clock = FakeClock()
    engine = FakeEngine(
        config=CONFIG, clock=clock, cost_ms={"audio": 2.0, "draw": 30.0, "motion": 7.0}
    )
    worker = RenderWorker(
        lambda: engine, clock=clock, calibrate=partial(measure_engine, size=SIZE, clock=clock)
    )
    worker.load()
    load = worker.measure()
    assert load.frame_ns == pytest.approx(32e6)
    assert load.webcam_ns == pytest.approx(7e6)
    assert admit(Demand(0, 0, load)).admitted
    assert admit(Demand(1, 0, load)).scarce == "render"
    # A real session's frames count for more, and soon for everything.
    session = fake_session(worker, clock, tint=120)
    engine.cost_ms = {"audio": 1.0, "draw": 4.0}
    for index in range(30):
        session.submit(index)
        clock.advance(40)
        while worker.step():
            pass
    assert worker.measure().frame_ns == pytest.approx(5e6, rel=0.3)
    assert admit(Demand(1, 0, worker.measure())).admitted


def test_an_engine_that_cannot_be_measured_still_serves() -> None:
    engine = FakeEngine(config=CONFIG, fail_draws=1)
    worker = RenderWorker(lambda: engine, calibrate=partial(measure_engine, size=SIZE))
    worker.load()
    assert worker.running
    assert worker.measure().frame_ns == 0.0


def test_an_encoder_takes_some_time() -> None:
    assert 1e4 < measure_encoder(64, 200_000) < 1e9
