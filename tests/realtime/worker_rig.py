"""A sink that keeps everything, for the tests of the render worker."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.codes import MotionCode
from models.config import ModelConfig
from models.portrait import Portrait
from realtime.router import Snapshot
from realtime.worker import (
    HeldFrame,
    Mailbox,
    MotionJob,
    MotionResult,
    RenderedFrame,
    RenderJob,
    RenderWorker,
)
from tests.fakes import LIP_FULL, FakeClock, Pixels, fake_portrait

SIZE = 64
CONFIG = ModelConfig(image_size=64)


@dataclass
class Session:
    """A sink that keeps everything, and the mailbox that belongs to it."""

    portrait: Portrait
    clock: FakeClock
    box: Mailbox = field(init=False)
    frames: list[RenderedFrame] = field(default_factory=list)
    held: list[HeldFrame] = field(default_factory=list)
    motions: list[MotionResult] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    def on_frame(self, frame: RenderedFrame) -> None:
        self.frames.append(frame)
        self.order.append(frame.frame_index)

    def on_held(self, frame: HeldFrame) -> None:
        self.held.append(frame)
        self.order.append(frame.frame_index)

    def on_motion(self, result: MotionResult) -> None:
        self.motions.append(result)

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)

    def submit(
        self,
        frame: int,
        *,
        mouth: float = 0.0,
        yaw: float = 0.0,
        draw: bool = True,
        ready_ns: int | None = None,
    ) -> None:
        lip = np.zeros(16, np.float32)
        lip[0] = mouth * LIP_FULL
        pose = np.array([yaw, 0, 0, 0, 0, 0], np.float32)
        snapshot = Snapshot(MotionCode(lip=lip, pose=pose), 0.0)
        mel = np.zeros((CONFIG.mel_window, 80), np.float32)
        source = self.portrait.image[::8, ::8].copy()
        ready = self.clock() if ready_ns is None else ready_ns
        job = RenderJob(frame, ready, mel, snapshot, self.portrait.appearance, source, draw)
        self.box.submit(job)

    def webcam(self, frame: Pixels, at: int = 0) -> None:
        self.box.submit_webcam(MotionJob(frame, at, self.clock()))


def fake_session(worker: RenderWorker, clock: FakeClock, *, tint: int = 120) -> Session:
    """A session of `worker` with a portrait of background grey `tint`."""
    session = Session(fake_portrait(tint=tint), clock)
    session.box = worker.open(session)
    return session
