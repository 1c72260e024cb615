"""Webcam pictures that are due together are read together, on an engine that batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.codes import MotionCode
from models.face import CANONICAL_POINTS, GROUPS
from models.runtime.engine import DeviceLostError, MotionReading
from models.runtime.frames import FrameRequest, FrameResult
from models.tracking import FaceTracker
from realtime.drawing import Draughtsman
from realtime.load import Cost
from realtime.schedule import TRACK_BEHIND_NS, Schedule, Webcams
from realtime.worker import MotionJob, RenderWorker
from tests.fakes import FakeClock, FakeEngine, Pixels
from tests.realtime.worker_rig import CONFIG, Session, fake_session

pytestmark = pytest.mark.unit


class Renderer:
    """Takes batches; draws nothing."""

    max_batch = 16

    def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
        raise AssertionError("no frame is asked for")


class Reader:
    """Reads a crop's level as yaw; cannot read level 13, is lost at 66."""

    name = "reader"
    config = CONFIG

    def __init__(self) -> None:
        self.runs: list[int] = []

    def motion(self, face_HWC: Pixels) -> MotionReading:
        return self.motion_batch([face_HWC])[0]

    def motion_batch(self, faces: Sequence[Pixels]) -> list[MotionReading]:
        self.runs.append(len(faces))
        return [self._reading(int(face[32, 32, 0])) for face in faces]

    def _reading(self, level: int) -> MotionReading:
        if level == 66:
            raise DeviceLostError("gone")
        if level == 13:
            raise ValueError("unreadable")
        landmarks = np.full((152, 2), 0.5, np.float32)
        for name, point in zip(("eye_left", "eye_right", "lips_outer"), CANONICAL_POINTS,
                               strict=True):  # fmt: skip
            landmarks[GROUPS[name]] = point
        pose = np.array([level / 1000, 0, 0, 0, 0, 0], np.float32)
        return MotionReading(MotionCode(pose=pose), landmarks)


def found_already(engine: object) -> FaceTracker:
    """A tracker that needs no detector, for pictures of 64 pixels."""
    tracker = FaceTracker(engine)  # type: ignore[arg-type]
    tracker._points = CANONICAL_POINTS * 64
    tracker._smooth.push(tracker._points.reshape(-1))
    return tracker


class Rig:
    def __init__(self, sessions: int) -> None:
        self.clock = FakeClock()
        self.clock.advance(1000)
        self.engine = Reader()
        worker = RenderWorker(FakeEngine, clock=self.clock)
        self.sessions: list[Session] = [fake_session(worker, self.clock) for _ in range(sessions)]
        self.schedule = Schedule()
        for session in self.sessions:
            self.schedule.add_box(session.box)
        self.draughtsman = Draughtsman(
            self.engine, Renderer(), make_tracker=found_already, clock=self.clock,  # type: ignore[arg-type]
            costs=(Cost(), Cost()),
        )  # fmt: skip

    def show(self, *levels: int) -> None:
        for session, level in zip(self.sessions, levels, strict=False):
            session.webcam(np.full((64, 64, 3), level, np.uint8))

    def run(self, max_batch: int = 16) -> int:
        """Pictures of the next unit, which is run."""
        unit = self.schedule.pick(self.clock(), max_batch)
        if unit is None:
            return 0
        assert isinstance(unit, Webcams)
        self.draughtsman.run(unit)
        return len(unit.turns)

    @property
    def yaws(self) -> list[int]:
        readings = [s.motions[-1].reading for s in self.sessions if s.motions]
        return [round(float(r.code.pose[0]) * 1000) for r in readings if r is not None]


def test_pictures_that_are_due_share_one_run() -> None:
    rig = Rig(3)
    rig.show(10, 20, 30)
    assert rig.run() == 3
    assert rig.run() == 0
    assert rig.engine.runs == [3]
    assert rig.yaws == [10, 20, 30]
    assert all(s.box.stats.webcam_read == 1 and not s.errors for s in rig.sessions)


def test_an_engine_that_takes_one_gets_one_at_a_time() -> None:
    rig = Rig(3)
    rig.show(10, 20, 30)
    assert [rig.run(max_batch=1) for _ in range(4)] == [1, 1, 1, 0]
    assert rig.engine.runs == [1, 1, 1]
    assert rig.yaws == [10, 20, 30]


def test_a_picture_that_cannot_be_read_is_told_to_its_session_only() -> None:
    rig = Rig(3)
    rig.show(10, 13, 30)
    rig.run()
    assert rig.yaws == [10, 30]
    assert [len(s.errors) for s in rig.sessions] == [0, 1, 0]
    assert rig.sessions[1].box.tracker is None, "not to be trusted with the next picture"
    assert rig.sessions[0].box.tracker is not None


def test_a_lost_device_is_no_sessions_fault() -> None:
    rig = Rig(2)
    rig.show(10, 66)
    with pytest.raises(DeviceLostError):
        rig.run()
    assert not any(s.errors or s.motions for s in rig.sessions)


def test_what_a_retired_engine_reads_is_not_told() -> None:
    rig = Rig(2)
    rig.show(10, 20)
    rig.draughtsman.retired = True
    rig.run()
    assert not any(s.motions or s.box.tracker for s in rig.sessions)


def test_while_frames_wait_only_overdue_pictures_are_read_and_never_twice_in_a_row() -> None:
    rig = Rig(3)
    frame = np.full((64, 64, 3), 10, np.uint8)
    now = rig.clock()
    for session, age in zip(rig.sessions, (TRACK_BEHIND_NS, TRACK_BEHIND_NS, 50_000_000),
                            strict=True):  # fmt: skip
        session.box.track_from_ns = now - age
        session.box.submit_webcam(MotionJob(frame, 0, now))
    rig.sessions[0].submit(0)
    rig.sessions[0].submit(1)
    unit = rig.schedule.pick(now, 16)
    assert isinstance(unit, Webcams)
    assert [turn.box for turn in unit.turns] == [s.box for s in rig.sessions[:2]]
    rig.sessions[2].box.track_from_ns = 0
    assert not isinstance(rig.schedule.pick(now, 16), Webcams), "now it is the frames' turn"
