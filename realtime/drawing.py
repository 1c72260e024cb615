"""Carries out units of work on one engine; belongs to the render thread that made the engine.

An exception in one session's job is told to that session and harms nobody else; frames of a
batch that failed are drawn again one by one, so that only the culprit is held. A lost device
(`DeviceLostError`) ends the thread: the worker holds what was in hand and makes a new engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import av
import numpy as np

from models.codes import Array
from models.runtime.engine import DeviceLostError, Engine, ReadsYuv, YuvPicture
from models.runtime.frames import FrameRenderer, FrameRequest
from models.together import Outcome, update_together
from models.tracking import FaceTracker
from realtime.decoded import to_rgb, yuv_picture
from realtime.load import Cost
from realtime.mailbox import (
    HeldFrame,
    Mailbox,
    MotionResult,
    Pixels,
    RenderedFrame,
    RenderJob,
    Tracker,
)
from realtime.schedule import Call, Frames, Turn, Unit, Webcam, Webcams

T = TypeVar("T")
_log = logging.getLogger("visavis.worker")


class Draughtsman:
    """One engine with its renderer, at work. Render thread only, but for `retired`."""

    def __init__(
        self,
        engine: Engine,
        renderer: FrameRenderer,
        *,
        make_tracker: Callable[[Engine], Tracker],
        clock: Callable[[], int],
        costs: tuple[Cost, Cost],
    ) -> None:
        """`costs`: of one drawn frame, and of one webcam picture."""
        self.engine = engine
        self.renderer = renderer
        self.retired = False
        """Set from outside when this engine is given up: nothing it still brings is told."""
        self._make_tracker = make_tracker
        self._clock = clock
        self._frame_cost, self._webcam_cost = costs

    def run(self, unit: Unit) -> None:
        """Do one unit. Raises DeviceLostError."""
        if isinstance(unit, Frames):
            self._run_frames(unit.turns)
        elif isinstance(unit, Webcams):
            self._run_webcams(unit.turns)
        else:
            self._run_call(unit)

    # --- frames -----------------------------------------------------------------------

    def _run_frames(self, turns: list[Turn]) -> None:
        for turn in turns:
            for late in turn.skipped:
                self._run_skipped(turn.box, late)
        drawn = [turn for turn in turns if turn.job is not None]
        if not drawn:
            return
        start = self._clock()
        try:
            self._draw(drawn)
        except DeviceLostError:
            raise
        except Exception as error:
            if len(drawn) == 1:
                self._fail(drawn[0], start, error)
            else:
                for turn in drawn:
                    self._run_frames([Turn(turn.box, [], turn.job)])
                    turn.done = True
            return
        if not self.retired:
            self._frame_cost.add((self._clock() - start) / len(drawn))

    def _draw(self, turns: list[Turn]) -> None:
        jobs = [turn.job for turn in turns if turn.job is not None]
        start = self._clock()
        lips = self._lips(jobs)
        heard = self._clock()
        requests = [
            FrameRequest(job.appearance, job.source_HWC, job.snapshot.resolve(lip))
            for job, lip in zip(jobs, lips, strict=True)
        ]
        results = self.renderer.render(requests)
        for turn, job, lip, result in zip(turns, jobs, lips, results, strict=True):
            spans = {"queue": start - job.ready_ns, "audio": heard - start, **result.spans}
            turn.box.stats.drawn += 1
            turn.done = True
            frame = RenderedFrame(job.frame_index, result.i420, spans, lip)
            self.tell(turn.box, turn.box.sink.on_frame, frame)

    def _lips(self, jobs: list[RenderJob]) -> list[Array]:
        if len(jobs) == 1:
            return [self.engine.audio(jobs[0].mel_TM)]
        return list(self.engine.audio_batch(np.stack([job.mel_TM for job in jobs])))

    def _fail(self, turn: Turn, start: int, error: Exception) -> None:
        assert turn.job is not None
        turn.box.stats.failed += 1
        turn.done = True
        spans = {"queue": start - turn.job.ready_ns}
        held = HeldFrame(turn.job.frame_index, "failed", spans, None)
        self.tell(turn.box, turn.box.sink.on_held, held)
        self.tell(turn.box, turn.box.sink.on_error, error)

    def _run_skipped(self, box: Mailbox, job: RenderJob) -> None:
        start = self._clock()
        lip: Array | None = None
        try:
            lip = self.engine.audio(job.mel_TM)
        except DeviceLostError:
            raise
        except Exception as error:
            self.tell(box, box.sink.on_error, error)
        spans = {"queue": start - job.ready_ns, "audio": self._clock() - start}
        held = HeldFrame(job.frame_index, "late" if job.draw else "paced", spans, lip)
        self.tell(box, box.sink.on_held, held)

    # --- webcam pictures and other work -----------------------------------------------

    def _run_webcams(self, turns: list[Webcam]) -> None:
        start = self._clock()
        trackers, outcomes = self._track(turns)
        end = self._clock()
        if self.retired:
            return
        self._webcam_cost.add((end - start) / len(turns))
        for turn, tracker, outcome in zip(turns, trackers, outcomes, strict=True):
            box, job = turn.box, turn.job
            if isinstance(outcome, Exception):
                # A tracker that failed half-way is not to be trusted with the next picture.
                box.tracker = None
                self.tell(box, box.sink.on_error, outcome)
                continue
            box.tracker = tracker
            box.stats.webcam_read += 1
            spans = {"track_queue": start - job.arrived_ns, "motion": end - start}
            self.tell(box, box.sink.on_motion, MotionResult(outcome, job.capture_48k, spans))

    def _track(self, turns: list[Webcam]) -> tuple[list[Tracker | None], list[Outcome]]:
        """Trackers, and what they say of their pictures or what went wrong.

        Raises DeviceLostError.
        """
        trackers: list[Tracker | None] = [turn.box.tracker for turn in turns]
        outcomes: list[Outcome] = [None] * len(turns)
        together: dict[int, tuple[FaceTracker, Pixels | YuvPicture]] = {}
        for i, turn in enumerate(turns):
            try:
                tracker = trackers[i] or self._make_tracker(self.engine)
                trackers[i] = tracker
                seen = self._seen(turn.job.frame)
                if isinstance(tracker, FaceTracker) and len(turns) > 1:
                    together[i] = (tracker, seen)
                else:
                    outcomes[i] = tracker.update(seen)
            except DeviceLostError:
                raise
            except Exception as error:
                outcomes[i] = error
        found = update_together(self.engine, list(together.values()))
        for i, outcome in zip(together, found, strict=True):
            outcomes[i] = outcome
        return trackers, outcomes

    def _seen(self, frame: Pixels | av.VideoFrame) -> Pixels | YuvPicture:
        """What the tracker gets: a decoded frame's planes where the engine reads them, or RGB."""
        if not isinstance(frame, av.VideoFrame):
            return frame
        planes = yuv_picture(frame) if isinstance(self.engine, ReadsYuv) else None
        return planes or to_rgb(frame)

    def _run_call(self, call: Call) -> None:
        if not call.retried and not call.future.set_running_or_notify_cancel():
            return
        try:
            result: Any = call.run(self.engine)
        except DeviceLostError:
            raise
        except Exception as error:
            if not self.retired:
                call.future.set_exception(error)
        else:
            if not self.retired:
                call.future.set_result(result)

    def tell(self, box: Mailbox, deliver: Callable[[T], None], result: T) -> None:
        """Deliver to one session; a sink that raises harms only itself."""
        if box.closed or self.retired:
            return
        tell(box, deliver, result)


def tell(box: Mailbox, deliver: Callable[[T], None], result: T) -> None:
    """Deliver to one session. A sink that raises loses its place, and nobody else's."""
    try:
        deliver(result)
    except Exception:
        # Its loop is gone or its callback is broken: for the worker the session ends here.
        _log.exception("a session's callback failed; the session gets no more frames")
        box.close()
