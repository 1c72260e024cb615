"""The one render worker: a thread that owns the engine and serves all sessions fairly.

Sessions put jobs into their own `Mailbox` (`realtime.mailbox`); `realtime.schedule` chooses,
`realtime.drawing` carries out; results come back through the session's sink, called in the
render thread (the owner hops to its loop with `call_soon_threadsafe`).

The thread is supervised (`realtime.supervise`): one that dies, loses its device or hangs is
replaced by a new engine in a new thread. Sessions notice held frames and nothing else: what
moves them lives in their pipelines, and the voice never passes through here.

Nothing of one session is kept where another can see it: a job carries all it needs, the face
tracker lives in the mailbox.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from models.codes import Array
from models.composite import compose
from models.runtime.engine import DeviceLostError, Drawing, Engine, EngineError
from models.runtime.frames import FrameRenderer, frame_renderer, to_i420
from models.tracking import FaceTracker
from realtime.calibrate import Costs
from realtime.drawing import Draughtsman, tell
from realtime.load import BusyMeter, Cost, WorkerLoad
from realtime.mailbox import (
    HeldFrame,
    Mailbox,
    MotionJob,
    MotionResult,
    Pixels,
    RenderedFrame,
    RenderJob,
    Sink,
    Tracker,
)
from realtime.schedule import CALL_DEPTH, Call, Frames, Schedule, Unit, Webcams, WorkerBusyError
from realtime.supervise import (
    CHECK_EVERY_S,
    MAX_ABANDONED,
    Activity,
    Progress,
    RestartDelay,
    is_hung,
)

__all__ = [
    "CALL_DEPTH", "Compose", "HeldFrame", "Mailbox", "MotionJob", "MotionResult",
    "RenderJob", "RenderWorker", "RenderedFrame", "Sink", "Tracker", "WorkerBusyError",
    "run_networks", "to_i420",
]  # fmt: skip

Compose = Callable[[Drawing, Pixels, int], Pixels]
Clock = Callable[[], int]
#: Measures what frames and webcam pictures cost on a freshly loaded engine.
Calibrate = Callable[[Engine, FrameRenderer], Costs]
T = TypeVar("T")
_log = logging.getLogger("visavis.worker")


def run_networks(
    engine: Engine, job: RenderJob, clock: Clock
) -> tuple[Drawing, Array, dict[str, int]]:
    """Audio and generator: the drawing, the lip code (16,) and spans in ns.

    The way of one frame through the networks when it goes to a file.
    """
    t0 = clock()
    lip = engine.audio(job.mel_TM)
    t1 = clock()
    drawing = engine.draw(job.appearance, job.snapshot.resolve(lip))
    return drawing, lip, {"audio": t1 - t0, "draw": clock() - t1}


@dataclass(eq=False, slots=True)
class _Life:
    """One render thread with its engine, from start to end."""

    progress: Progress
    thread: threading.Thread | None = None
    draughtsman: Draughtsman | None = None
    unit: Unit | None = None
    """The work in hand."""
    over: bool = False
    """Lost or stopped: it must take no more work."""


class RenderWorker:
    """See the module's docstring. `start` runs it in threads of its own.

    `engine_factory` is called in the render thread, again after every loss. Tests drive it
    without threads: `load`, then `step` as long as it returns True, on one thread; and `check`.
    """

    def __init__(
        self,
        engine_factory: Callable[[], Engine],
        *,
        compose: Compose = compose,
        make_tracker: Callable[[Engine], Tracker] = FaceTracker,
        calibrate: Calibrate | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.failure = ""
        """Why there is no engine at present; empty while one runs or is loaded at first."""
        self.restarts = 0
        self._engine_factory = engine_factory
        self._compose = compose
        self._make_tracker = make_tracker
        self._calibrate = calibrate
        self._clock = clock
        self._ready: Future[Engine] = Future()
        self._wake = threading.Condition()
        self._schedule = Schedule()
        self._stopping = False
        self._life: _Life | None = None
        self._watchdog: threading.Thread | None = None
        self._attention = threading.Event()
        self._delay = RestartDelay()
        self._restart_at_ns: int | None = None
        self._abandoned = 0
        self._frame_cost, self._webcam_cost = Cost(), Cost()
        self._busy = BusyMeter(clock)

    # --- life -------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; the render thread loads the engine, see `wait_ready`."""
        if self._watchdog is not None:
            raise RuntimeError("the render worker runs already")
        self._spawn("load")
        watchdog = threading.Thread(target=self._watch, name="render-watchdog", daemon=True)
        watchdog.start()
        # Known only once it runs: a load that fails at once ends the threads it knows of.
        self._watchdog = watchdog

    def wait_ready(self, timeout_s: float | None = None) -> Engine:
        """Block until the first engine is loaded; return it, for its name and configuration only.

        Raises EngineError (or what the factory raised), TimeoutError.
        """
        return self._ready.result(timeout_s)

    def load(self) -> None:
        """Create the engine in the calling thread, from now on the worker's. Raises EngineError."""
        self._life = life = _Life(Progress("load", self._clock()))
        try:
            self._load(life)
        except BaseException as error:
            self._ready.set_exception(error)
            raise

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the threads after the work in hand; waiting calls are cancelled. Idempotent."""
        with self._wake:
            self._stopping = True
            for call in self._schedule.calls:
                call.future.cancel()
            self._schedule.calls.clear()
            self._wake.notify_all()
        self._attention.set()
        life = self._life
        for thread in (self._watchdog, life.thread if life else None):
            if thread is not None and thread is not threading.current_thread():
                thread.join(timeout_s)

    # --- any thread -------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Whether a frame came late during the last second."""
        return self._clock() < self._schedule.behind_until_ns

    @property
    def running(self) -> bool:
        """Whether there is an engine that takes work."""
        life = self._life
        return life is not None and life.draughtsman is not None and not life.over

    def measure(self) -> WorkerLoad:
        """How busy the worker is and what its work costs now."""
        life = self._life
        since, max_batch = None, 1
        if life is not None and life.draughtsman is not None:
            max_batch = life.draughtsman.renderer.max_batch
            progress = life.progress
            since = progress.since_ns if progress.activity != "idle" else None
        return WorkerLoad(
            busy=self._busy.fraction(since),
            frame_ns=self._frame_cost.mean_ns,
            frame_p95_ns=self._frame_cost.p95_ns,
            webcam_ns=self._webcam_cost.mean_ns,
            max_batch=max_batch,
            restarts=self.restarts,
        )

    def open(self, sink: Sink) -> Mailbox:
        """Add a session."""
        box = Mailbox(sink, self._wake)
        with self._wake:
            self._schedule.add_box(box)
        return box

    def call(self, run: Callable[[Engine], T]) -> Future[T]:
        """Run `run(engine)` in the render thread when it has time.

        It blocks all frames while it runs: keep it short, or cut it. If the engine is lost
        meanwhile, it runs once more on the next one. Raises WorkerBusyError when too many calls
        wait, EngineError when the worker is not running.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._stopping:
                raise EngineError("The render worker has stopped.")
            self._schedule.add_call(Call(run, future, self._clock()))
            self._wake.notify()
        return future

    # --- the render thread ------------------------------------------------------------

    def step(self) -> bool:
        """Do one unit of work in the calling thread; False when there is none now."""
        life = self._life
        if life is None or life.draughtsman is None:
            raise EngineError("The engine is not loaded.")
        with self._wake:
            unit = self._take(life)
        if unit is None:
            return False
        self._do(life, unit)
        return True

    def _spawn(self, activity: Activity) -> None:
        life = _Life(Progress(activity, self._clock()))
        life.thread = threading.Thread(target=self._run, args=(life,), name="render", daemon=True)
        self._life = life
        life.thread.start()

    def _load(self, life: _Life) -> None:
        engine = self._engine_factory()
        renderer = frame_renderer(engine, compose=self._compose, clock=self._clock)
        self._measure_first(engine, renderer)
        draughtsman = Draughtsman(
            engine, renderer, make_tracker=self._make_tracker, clock=self._clock,
            costs=(self._frame_cost, self._webcam_cost),
        )  # fmt: skip
        with self._wake:
            life.draughtsman = draughtsman
            life.progress = Progress("idle", self._clock())
            # A thread that was given up while it loaded comes too late.
            draughtsman.retired = life.over
            if not life.over:
                self.failure = ""
        if not self._ready.done():
            self._ready.set_result(engine)

    def _measure_first(self, engine: Engine, renderer: FrameRenderer) -> None:
        """Know what work costs before there is any; an engine made anew is known already."""
        if self._calibrate is None or self._frame_cost.count:
            return
        try:
            costs = self._calibrate(engine, renderer)
        except DeviceLostError:
            raise
        except Exception:
            # Whoever asks this engine for frames will be told what is wrong with it.
            _log.warning("what a frame costs could not be measured", exc_info=True)
            return
        self._frame_cost.add(costs.frame_ns)
        self._webcam_cost.add(costs.webcam_ns)

    def _run(self, life: _Life) -> None:
        try:
            self._load(life)
            while (unit := self._wait(life)) is not None:
                self._do(life, unit)
        except BaseException as error:
            # Whatever ended the thread, the watchdog replaces it; a first engine that cannot be
            # loaded is told by `wait_ready`, where somebody can act on it.
            self.failure = str(error) or type(error).__name__
            if not self._ready.done():
                _log.exception("the engine could not be loaded")
                self._ready.set_exception(error)
                self.stop()
            else:
                _log.exception("the render thread ends: %s", self.failure)
        finally:
            self._attention.set()

    def _wait(self, life: _Life) -> Unit | None:
        """Block until there is work for `life`; None when it must end."""
        with self._wake:
            while not (self._stopping or life.over):
                unit = self._take(life)
                if unit is not None:
                    return unit
                wait_ns = self._schedule.wait_ns(self._clock())
                self._wake.wait(None if wait_ns is None else wait_ns / 1e9)
        return None

    def _take(self, life: _Life) -> Unit | None:
        """Pick a unit and write down that it is in hand. Under the lock."""
        assert life.draughtsman is not None
        now = self._clock()
        unit = self._schedule.pick(now, life.draughtsman.renderer.max_batch)
        if unit is not None:
            life.unit = unit
            life.progress = Progress(_activity(unit), now)
        return unit

    def _do(self, life: _Life, unit: Unit) -> None:
        assert life.draughtsman is not None
        start = life.progress.since_ns
        life.draughtsman.run(unit)
        with self._wake:
            if not life.over:
                life.unit = None
                now = self._clock()
                self._busy.add(start, now)
                life.progress = Progress("idle", now)

    # --- supervision ------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping:
            self._attention.wait(CHECK_EVERY_S)
            self._attention.clear()
            self.check()

    def check(self) -> None:
        """Replace a render thread that died or hangs. The watchdog's; tests call it."""
        now = self._clock()
        life = self._life
        if self._stopping or life is None:
            return
        if life.over:
            if self._restart_at_ns is not None and now >= self._restart_at_ns:
                self._restart_at_ns = None
                self._spawn("reload")
        elif life.thread is not None and not life.thread.is_alive():
            self._lose(life, now)
        elif is_hung(life.progress, now):
            self.failure = f"no progress for {(now - life.progress.since_ns) / 1e9:.1f} s"
            _log.error("the render thread hangs in %s; it is replaced", life.progress.activity)
            self._abandoned += 1
            self._lose(life, now)

    def _lose(self, life: _Life, now: int) -> None:
        """Give up a thread and its engine: hold what was in hand, and plan the next one."""
        with self._wake:
            life.over = True
            if life.draughtsman is not None:
                life.draughtsman.retired = True
            unit, life.unit = life.unit, None
            for box in self._schedule.boxes:
                # It belongs to the engine that is gone.
                box.tracker = None
            if isinstance(unit, Call) and not unit.future.done():
                self._return_call(unit)
        if isinstance(unit, Frames):
            _hold(unit)
        if self._abandoned > MAX_ABANDONED:
            self.failure = "too many render threads hang; the server must be started again"
            _log.critical(self.failure)
            return
        self.restarts += 1
        self._restart_at_ns = now + self._delay.next_ns(now)
        _log.error("engine and render thread are made anew (%d so far)", self.restarts)
        self._attention.set()

    def _return_call(self, call: Call) -> None:
        """Work that was lost with its engine is tried once more, on the next one."""
        if call.retried:
            call.future.set_exception(EngineError("The engine was lost twice over this work."))
            return
        call.retried = True
        self._schedule.calls.appendleft(call)


def _activity(unit: Unit) -> Activity:
    if isinstance(unit, Frames):
        return "frame"
    return "webcam" if isinstance(unit, Webcams) else "call"


def _hold(unit: Frames) -> None:
    """Tell the sessions of a lost batch that their frame is not drawn."""
    for turn in unit.turns:
        if turn.job is not None and not turn.done and not turn.box.closed:
            turn.done = True
            turn.box.stats.failed += 1
            held = HeldFrame(turn.job.frame_index, "failed", {}, None)
            tell(turn.box, turn.box.sink.on_held, held)
