"""The one render worker: a thread that owns the engine and serves all sessions fairly.

Sessions put jobs into their own `Mailbox`; results come back through the session's sink,
called in the worker's thread (the owner hops to its loop with `call_soon_threadsafe`).

* A mailbox holds two frames. A third one displaces the oldest, and a frame older than
  `LATE_NS` gives way to a newer one: drawing what is already late would only delay what
  comes next. Such a frame is *held* (the viewer keeps the last picture); its lip code is
  still computed.
* Sessions take turns, one frame each.
* A webcam picture is read when no frame waits, at most 25 times a second; when frames
  come late, 12 times, but then in turn with the frames, so that a busy machine still
  follows the person. Only the latest picture of a session is kept.
* Other work that needs the engine (`call`, e.g. preparing a portrait) comes last, but
  waits no longer than `CALL_PATIENCE_NS`.

An exception in one session's job is told to that session and harms nobody else. Nothing
of one session is kept where another can see it: a job carries all it needs, the face
tracker lives in the mailbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.composite import compose
from models.runtime.engine import Appearance, Drawing, Engine, EngineError, MotionReading
from models.tracking import FaceTracker
from realtime.router import Snapshot

Pixels = NDArray[np.uint8]
Compose = Callable[[Drawing, Pixels, int], Pixels]
Clock = Callable[[], int]
Spans = Mapping[str, int]
T = TypeVar("T")
_log = logging.getLogger("visavis.worker")

MAILBOX_DEPTH = 2
#: Frames whose drawing is skipped but whose lip code is still owed.
SKIPPED_DEPTH = 4
CALL_DEPTH = 8
LATE_NS = 60_000_000
TRACK_NS = 40_000_000
TRACK_BEHIND_NS = 83_000_000
BEHIND_NS = 1_000_000_000
CALL_PATIENCE_NS = 250_000_000


class WorkerBusyError(RuntimeError):
    """Too much other work waits for the engine; try again later."""


class Tracker(Protocol):
    """`models.tracking.FaceTracker`: stateful, one per webcam."""

    def update(self, frame: Pixels, /) -> MotionReading | None:
        """(H, W, 3) uint8 RGB -> motion, None when no face is seen."""


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


@dataclass(frozen=True, slots=True)
class MotionJob:
    """One webcam picture to read."""

    frame: Pixels | av.VideoFrame
    """(H, W, 3) uint8 RGB, or a decoded frame that is converted in the worker."""
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
    reason: Literal["late", "failed"]
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
        if len(self.skipped) >= SKIPPED_DEPTH:
            self.skipped.popleft()
            self.stats.lips_dropped += 1
        self.skipped.append(job)


@dataclass(slots=True)
class _Call:
    run: Callable[[Engine], Any]
    future: Future[Any]
    since_ns: int


def run_networks(
    engine: Engine, job: RenderJob, clock: Clock
) -> tuple[Drawing, Array, dict[str, int]]:
    """Audio and generator: the drawing, the lip code (16,) and spans in ns.

    The way of one frame through the networks, shared by live sessions and files.
    """
    t0 = clock()
    lip = engine.audio(job.mel_TM)
    t1 = clock()
    drawing = engine.draw(job.appearance, job.snapshot.resolve(lip))
    return drawing, lip, {"audio": t1 - t0, "draw": clock() - t1}


def to_i420(rgb_HWC: Pixels) -> Pixels:
    """(N, N, 3) uint8 RGB -> (N * 3 / 2, N) uint8 I420, a fresh array."""
    return np.asarray(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2YUV_I420), np.uint8)


class RenderWorker:
    """See the module's docstring. `start` runs it in its own thread.

    `engine_factory` is called in the worker's thread. Tests drive it without a thread:
    `load`, then `step` as long as it returns True, on one thread.
    """

    def __init__(
        self,
        engine_factory: Callable[[], Engine],
        *,
        compose: Compose = compose,
        make_tracker: Callable[[Engine], Tracker] = FaceTracker,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._engine_factory = engine_factory
        self._compose = compose
        self._make_tracker = make_tracker
        self._clock = clock
        self._engine: Engine | None = None
        self._ready: Future[Engine] = Future()
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition()
        self._stopping = False
        self._boxes: deque[Mailbox] = deque()
        self._calls: deque[_Call] = deque()
        self._behind_until_ns = 0
        self._webcam_had_turn = False

    # --- life -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which loads the engine; see `wait_ready`."""
        if self._thread is not None:
            raise RuntimeError("the render worker runs already")
        self._thread = threading.Thread(target=self._run, name="render", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout_s: float | None = None) -> Engine:
        """Block until the engine is loaded and return it, for its name and configuration only.

        Raises EngineError (or what the factory raised), TimeoutError.
        """
        return self._ready.result(timeout_s)

    def load(self) -> None:
        """Create the engine in the calling thread, from now on the worker's. Raises EngineError."""
        try:
            self._engine = self._engine_factory()
        except BaseException as error:
            self._ready.set_exception(error)
            raise
        self._ready.set_result(self._engine)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after the work in hand; waiting calls are cancelled. Idempotent."""
        with self._wake:
            self._stopping = True
            for call in self._calls:
                call.future.cancel()
            self._calls.clear()
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def behind(self) -> bool:
        """Whether a frame came late during the last second."""
        return self._clock() < self._behind_until_ns

    # --- any thread -------------------------------------------------------------------

    def open(self, sink: Sink) -> Mailbox:
        """Add a session."""
        box = Mailbox(sink, self._wake)
        with self._wake:
            self._boxes = deque(b for b in self._boxes if not b.closed)
            self._boxes.append(box)
        return box

    def call(self, run: Callable[[Engine], T]) -> Future[T]:
        """Run `run(engine)` in the worker's thread when it has time.

        It blocks all frames while it runs: keep it short, or cut it. Raises
        WorkerBusyError when too many calls wait, EngineError when the worker is not running.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._stopping:
                raise EngineError("The render worker has stopped.")
            if len(self._calls) >= CALL_DEPTH:
                raise WorkerBusyError("The server is busy preparing other portraits.")
            self._calls.append(_Call(run, future, self._clock()))
            self._wake.notify()
        return future

    # --- choosing, under the lock -----------------------------------------------------

    def _pick(self) -> Callable[[], None] | None:
        """Return the next unit of work, None when nothing may run now."""
        now = self._clock()
        frame_waits = any(box.jobs for box in self._boxes)
        webcam = self._pick_webcam(now, frame_waits)
        if webcam is not None:
            return webcam
        if self._calls and (not frame_waits or now - self._calls[0].since_ns > CALL_PATIENCE_NS):
            call = self._calls.popleft()
            return lambda: self._run_call(call)
        for _ in range(len(self._boxes)):
            box = self._boxes[0]
            self._boxes.rotate(-1)
            if box.jobs:
                self._webcam_had_turn = False
                return self._pick_frame(box, now)
        return None

    def _pick_frame(self, box: Mailbox, now: int) -> Callable[[], None]:
        job = box.jobs.popleft()
        while box.jobs and now - job.ready_ns > LATE_NS:
            box.skip(job)
            job = box.jobs.popleft()
        if box.skipped:
            self._behind_until_ns = now + BEHIND_NS
        skipped = list(box.skipped)
        box.skipped.clear()
        return lambda: self._run_frame(box, skipped, job)

    def _pick_webcam(self, now: int, frame_waits: bool) -> Callable[[], None] | None:
        behind = now < self._behind_until_ns
        interval = TRACK_BEHIND_NS if behind else TRACK_NS
        due = [b for b in self._boxes if b.webcam is not None and now >= b.track_from_ns + interval]
        if not due:
            return None
        box = min(due, key=lambda b: b.track_from_ns)
        # While frames wait, a picture gets a turn only when it is long overdue, and
        # never two in a row.
        overdue = now >= box.track_from_ns + TRACK_BEHIND_NS and not self._webcam_had_turn
        if frame_waits and not overdue:
            return None
        job = box.webcam
        assert job is not None
        box.webcam, box.track_from_ns = None, now
        self._webcam_had_turn = True
        return lambda: self._run_webcam(box, job)

    def _wait_s(self) -> float | None:
        """How long nothing can be due unless something new comes; None: for ever."""
        waiting = [box.track_from_ns for box in self._boxes if box.webcam is not None]
        if not waiting:
            return None
        now = self._clock()
        interval = TRACK_BEHIND_NS if now < self._behind_until_ns else TRACK_NS
        return max(0.0, min(waiting) + interval - now) / 1e9

    # --- the worker's thread ----------------------------------------------------------

    def step(self) -> bool:
        """Do one unit of work; False when there is none now."""
        with self._wake:
            unit = self._pick()
        if unit is None:
            return False
        unit()
        return True

    def _run(self) -> None:
        try:
            self.load()
        except Exception:
            # `wait_ready` raises it where somebody can act on it.
            _log.exception("the engine could not be loaded")
            self.stop()
            return
        while True:
            with self._wake:
                unit = None
                while not self._stopping and (unit := self._pick()) is None:
                    self._wake.wait(self._wait_s())
                if self._stopping:
                    return
            assert unit is not None
            unit()

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise EngineError("The engine is not loaded.")
        return self._engine

    def _run_frame(self, box: Mailbox, skipped: list[RenderJob], job: RenderJob) -> None:
        for late in skipped:
            self._run_skipped(box, late)
        start = self._clock()
        try:
            drawing, lip, spans = run_networks(self._loaded(), job, self._clock)
            drawn = self._clock()
            rgb = self._compose(drawing, job.source_HWC, len(job.source_HWC))
            composed = self._clock()
            i420 = to_i420(rgb)
            spans["queue"] = start - job.ready_ns
            spans["compose"] = composed - drawn
            spans["convert"] = self._clock() - composed
        except Exception as error:
            box.stats.failed += 1
            held = HeldFrame(job.frame_index, "failed", {"queue": start - job.ready_ns}, None)
            self._tell(box, box.sink.on_held, held)
            self._tell(box, box.sink.on_error, error)
            return
        box.stats.drawn += 1
        frame = RenderedFrame(job.frame_index, i420, spans, lip)
        self._tell(box, box.sink.on_frame, frame)

    def _run_skipped(self, box: Mailbox, job: RenderJob) -> None:
        start = self._clock()
        lip: Array | None = None
        try:
            lip = self._loaded().audio(job.mel_TM)
        except Exception as error:
            self._tell(box, box.sink.on_error, error)
        spans = {"queue": start - job.ready_ns, "audio": self._clock() - start}
        held = HeldFrame(job.frame_index, "late", spans, lip)
        self._tell(box, box.sink.on_held, held)

    def _run_webcam(self, box: Mailbox, job: MotionJob) -> None:
        start = self._clock()
        try:
            frame = job.frame
            if isinstance(frame, av.VideoFrame):
                frame = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            if box.tracker is None:
                box.tracker = self._make_tracker(self._loaded())
            reading = box.tracker.update(frame)
        except Exception as error:
            # A tracker that failed half-way is not to be trusted with the next picture.
            box.tracker = None
            self._tell(box, box.sink.on_error, error)
            return
        box.stats.webcam_read += 1
        spans = {"track_queue": start - job.arrived_ns, "motion": self._clock() - start}
        result = MotionResult(reading, job.capture_48k, spans)
        self._tell(box, box.sink.on_motion, result)

    def _run_call(self, call: _Call) -> None:
        if not call.future.set_running_or_notify_cancel():
            return
        try:
            result = call.run(self._loaded())
        except Exception as error:
            call.future.set_exception(error)
        else:
            call.future.set_result(result)

    def _tell(self, box: Mailbox, deliver: Callable[[T], None], result: T) -> None:
        """Deliver to one session; a sink that raises harms only itself."""
        if box.closed:
            return
        try:
            deliver(result)
        except Exception:
            # Its loop is gone or its callback is broken: for the worker the session ends here.
            _log.exception("a session's callback failed; the session gets no more frames")
            box.close()
