"""What the render worker does next: fair between sessions, frames first, never late by queueing.

* Sessions take turns, one frame each; as many of them as the renderer takes at once share a
  batch. Nothing waits for a batch to fill: while one is drawn the next gathers by itself.
* A frame older than `LATE_NS` gives way to a newer one of its session: drawing what is already
  late would only delay what comes next.
* A webcam picture is read when no frame waits, at most 25 times a second; when frames come
  late, 12 times, but then in turn with the frames, so that a busy machine still follows the
  person. Pictures that are due at the same time share a batch, as frames do.
* Other work that needs the engine (calls) comes last, but waits no longer than
  `CALL_PATIENCE_NS`.

Pure; the worker guards every call with its lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from models.runtime.engine import Engine
from realtime.mailbox import Mailbox, MotionJob, RenderJob

CALL_DEPTH = 8
LATE_NS = 60_000_000
TRACK_NS = 40_000_000
TRACK_BEHIND_NS = 83_000_000
BEHIND_NS = 1_000_000_000
CALL_PATIENCE_NS = 250_000_000


class WorkerBusyError(RuntimeError):
    """Too much other work waits for the engine; try again later."""


@dataclass(slots=True)
class Turn:
    """One session's part of a batch."""

    box: Mailbox
    skipped: list[RenderJob]
    """Held frames that come before `job` and are owed a lip code."""
    job: RenderJob | None
    """The frame to draw; None when only lip codes are owed."""
    done: bool = False
    """Its result was told."""


@dataclass(slots=True)
class Frames:
    """A batch of frames, at most one of each session."""

    turns: list[Turn]


@dataclass(slots=True)
class Webcam:
    """One webcam picture."""

    box: Mailbox
    job: MotionJob


@dataclass(slots=True)
class Webcams:
    """Webcam pictures of different sessions, read together."""

    turns: list[Webcam]


@dataclass(slots=True)
class Call:
    """Other work that needs the engine."""

    run: Callable[[Engine], Any]
    future: Future[Any]
    since_ns: int
    retried: bool = False


Unit = Frames | Webcams | Call


@dataclass(slots=True)
class Schedule:
    """See the module's docstring."""

    boxes: deque[Mailbox] = field(default_factory=deque)
    calls: deque[Call] = field(default_factory=deque)
    behind_until_ns: int = 0
    _webcam_had_turn: bool = False

    def add_box(self, box: Mailbox) -> None:
        """Add a session; closed ones are forgotten."""
        self.boxes = deque(b for b in self.boxes if not b.closed)
        self.boxes.append(box)

    def add_call(self, call: Call) -> None:
        """Add other work. Raises WorkerBusyError."""
        if len(self.calls) >= CALL_DEPTH:
            raise WorkerBusyError("The server is busy preparing other portraits.")
        self.calls.append(call)

    def pick(self, now: int, max_batch: int) -> Unit | None:
        """Return the next unit of work, None when nothing may run now."""
        frame_waits = any(box.jobs for box in self.boxes)
        webcams = self._pick_webcams(now, frame_waits, max_batch)
        if webcams is not None:
            return webcams
        if self.calls and (not frame_waits or now - self.calls[0].since_ns > CALL_PATIENCE_NS):
            return self.calls.popleft()
        turns: list[Turn] = []
        for _ in range(len(self.boxes)):
            if len(turns) == max_batch:
                break
            box = self.boxes[0]
            self.boxes.rotate(-1)
            if box.jobs:
                turns.append(self._pick_frame(box, now))
            elif box.skipped and not frame_waits:
                turns.append(Turn(box, box.take_skipped(), None))
        if not turns:
            return None
        self._webcam_had_turn = False
        return Frames(turns)

    def wait_ns(self, now: int) -> int | None:
        """How long nothing can be due unless something new comes; None: for ever."""
        waiting = [box.track_from_ns for box in self.boxes if box.webcam is not None]
        if not waiting:
            return None
        return max(0, min(waiting) + self._track_interval(now) - now)

    def _track_interval(self, now: int) -> int:
        return TRACK_BEHIND_NS if now < self.behind_until_ns else TRACK_NS

    def _pick_frame(self, box: Mailbox, now: int) -> Turn:
        job = box.jobs.popleft()
        while box.jobs and now - job.ready_ns > LATE_NS:
            box.skip(job)
            job = box.jobs.popleft()
        skipped = box.take_skipped(job.frame_index)
        if any(late.draw for late in skipped):
            self.behind_until_ns = now + BEHIND_NS
        return Turn(box, skipped, job)

    def _pick_webcams(self, now: int, frame_waits: bool, max_batch: int) -> Webcams | None:
        interval = self._track_interval(now)
        if frame_waits:
            # Pictures get a turn only when they are long overdue, and never two in a row.
            if self._webcam_had_turn:
                return None
            interval = max(interval, TRACK_BEHIND_NS)
        due = [b for b in self.boxes if b.webcam is not None and now >= b.track_from_ns + interval]
        turns = []
        for box in sorted(due, key=lambda b: b.track_from_ns)[:max_batch]:
            assert box.webcam is not None
            turns.append(Webcam(box, box.webcam))
            box.webcam, box.track_from_ns = None, now
        if not turns:
            return None
        self._webcam_had_turn = True
        return Webcams(turns)
