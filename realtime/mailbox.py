"""What sessions and the render worker hand to each other, and each session's place for it.

A mailbox holds two frames. A third one displaces the oldest: such a frame is *held* (the
viewer keeps the last picture), its lip code is still owed. Of the webcam only the latest
picture is kept. So a session takes the same little memory however slow the machine is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.runtime.engine import Appearance, MotionReading, YuvPicture
from realtime.router import Snapshot

Pixels = NDArray[np.uint8]
Spans = Mapping[str, int]

MAILBOX_DEPTH = 2
#: Frames whose drawing is skipped but whose lip code is still owed.
SKIPPED_DEPTH = 4


class Tracker(Protocol):
    """`models.tracking.FaceTracker`: stateful, one per webcam."""

    def update(self, frame: Pixels | YuvPicture, /) -> MotionReading | None:
        """(H, W, 3) uint8 RGB -> motion, None when no face is seen.

        A decoded picture comes only where the engine reads it (`ReadsYuv`).
        """


@dataclass(frozen=True, slots=True)
class RenderJob:
    """Everything that one video frame needs; immutable."""

    frame_index: int
    ready_ns: int
    """When its audio window was full, on the worker's clock."""
    mel_TM: Array
    """(config.mel_window, 80) float32."""
    snapshot: Snapshot
    appearance: Appearance
    source_HWC: Pixels
    """(N, N, 3) uint8 RGB, the portrait at the size of the output; N is even."""
    draw: bool = True
    """False: left out on purpose (`realtime.degrade`); only its lip code is computed."""


@dataclass(frozen=True, slots=True)
class MotionJob:
    """One webcam picture to read."""

    frame: Pixels | av.VideoFrame
    """(H, W, 3) uint8 RGB, or a decoded frame; the worker converts it unless the engine does."""
    capture_48k: int
    """When it was taken, in 48 kHz samples of the session clock."""
    arrived_ns: int


@dataclass(frozen=True, slots=True)
class RenderedFrame:
    """A drawn frame. Spans in nanoseconds: queue, audio, draw, compose, convert."""

    frame_index: int
    i420: Pixels
    """(N * 3 / 2, N) uint8, BT.601 limited range; the receiver's to keep."""
    spans: Spans
    lip: Array
    """(16,) lip code of the frame's audio."""


@dataclass(frozen=True, slots=True)
class HeldFrame:
    """A frame that was not drawn: the viewer keeps the last one."""

    frame_index: int
    reason: Literal["late", "failed", "paced"]
    """`paced`: left out on purpose."""
    spans: Spans
    lip: Array | None


@dataclass(frozen=True, slots=True)
class MotionResult:
    """What a webcam picture said; `reading` is None without a face. Spans: track_queue, motion."""

    reading: MotionReading | None
    capture_48k: int
    spans: Spans


class Sink(Protocol):
    """Receives the results of one session, in the worker's thread; must return at once."""

    def on_frame(self, frame: RenderedFrame) -> None:
        """A frame is drawn; frame indices ascend over `on_frame` and `on_held` together."""

    def on_held(self, frame: HeldFrame) -> None:
        """A frame is not drawn."""

    def on_motion(self, result: MotionResult) -> None:
        """A webcam picture is read."""

    def on_error(self, error: Exception) -> None:
        """A job of this session failed (its frame, if any, is held)."""


@dataclass(slots=True)
class MailboxStats:
    """Counters of one session; written under the worker's lock or in its thread."""

    submitted: int = 0
    drawn: int = 0
    late: int = 0
    paced: int = 0
    failed: int = 0
    lips_dropped: int = 0
    webcam_submitted: int = 0
    webcam_replaced: int = 0
    webcam_read: int = 0


class Mailbox:
    """One session's place in the worker; made by `RenderWorker.open`. Methods are thread-safe."""

    def __init__(self, sink: Sink, wake: threading.Condition) -> None:
        self.stats = MailboxStats()
        self.sink = sink
        self.closed = False
        # What follows is the worker's, guarded by `wake`.
        self.jobs: deque[RenderJob] = deque()
        self.skipped: deque[RenderJob] = deque()
        self.webcam: MotionJob | None = None
        self.tracker: Tracker | None = None
        self.track_from_ns = 0
        self._wake = wake

    def submit(self, job: RenderJob) -> None:
        """Put one frame in; never blocks. Frame indices must ascend."""
        with self._wake:
            if self.closed:
                return
            self.stats.submitted += 1
            if not job.draw:
                # Not at the cost of a frame that waits and shall be drawn.
                self._owe(job)
                self.stats.paced += 1
            else:
                if len(self.jobs) >= MAILBOX_DEPTH:
                    self.skip(self.jobs.popleft())
                self.jobs.append(job)
            self._wake.notify()

    def submit_webcam(self, job: MotionJob) -> None:
        """Put the latest webcam picture in; replaces one that still waits."""
        with self._wake:
            if self.closed:
                return
            self.stats.webcam_submitted += 1
            self.stats.webcam_replaced += self.webcam is not None
            self.webcam = job
            self._wake.notify()

    def close(self) -> None:
        """Forget all jobs. A callback that is under way may still end after this returns."""
        with self._wake:
            self.closed = True
            self.jobs.clear()
            self.skipped.clear()
            self.webcam = self.tracker = None

    def skip(self, job: RenderJob) -> None:
        """Give up drawing `job`; its lip code is owed. Under the lock."""
        self.stats.late += 1
        self._owe(job)

    def take_skipped(self, before: int | None = None) -> list[RenderJob]:
        """Take the frames that are owed a lip code and come before frame `before`. Under the lock.

        None: all of them.
        """
        taken = []
        while self.skipped and (before is None or self.skipped[0].frame_index < before):
            taken.append(self.skipped.popleft())
        return taken

    def _owe(self, job: RenderJob) -> None:
        if len(self.skipped) >= SKIPPED_DEPTH:
            self.skipped.popleft()
            self.stats.lips_dropped += 1
        self.skipped.append(job)
        if len(self.skipped) > 1 and self.skipped[-2].frame_index > job.frame_index:
            # One left out on purpose came in between; results leave in the order of frames.
            self.skipped = deque(sorted(self.skipped, key=lambda job: job.frame_index))
