"""What one server owns besides HTTP: worker, encoders, portraits, sessions, metrics.

The hub lives on the event loop; `start` and `stop` frame its life. The engine loads in the
render worker's thread meanwhile: until `ready` is done, sessions are refused with 503.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.codes import Factor
from models.composite import compose
from models.portrait import Portrait, decode_image, prepare_portrait
from models.runtime.engine import Engine
from models.tracking import FaceTracker
from realtime.admission import Demand, Verdict, admit, headroom
from realtime.calibrate import measure_encoder, measure_engine
from realtime.errors import (
    BadRequestError,
    BrokenError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    ProblemError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
)
from realtime.limits import address_key
from realtime.loop_watch import LoopWatch
from realtime.metrics import Metrics
from realtime.pipeline import SourceError
from realtime.portraits import PortraitStore, Prepare
from realtime.protocol import SessionAnswer, SessionRequest, SourceKind
from realtime.rtc import (
    BadDescriptionError,
    IceOptions,
    NoResourcesError,
    PeerOptions,
    ceiling_bps,
)
from realtime.session import Session, SessionSpec
from realtime.settings import LIMITS, Settings
from realtime.sources import Clip, ClipError, load_clip
from realtime.worker import Compose, RenderWorker, Tracker

_log = logging.getLogger("visavis.server")

RETRY_FULL_S = 5
RETRY_LOADING_S = 3
#: What `realtime.admission` calls scarce, in words.
SCARCE = {"render": "time to draw", "encode": "time to encode", "loop": "time to send"}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the hub is put together from; tests give fakes."""

    compose: Compose = compose
    make_tracker: Callable[[Engine], Tracker] = FaceTracker
    decode: Callable[[bytes], NDArray[np.uint8]] = decode_image
    prepare: Prepare = prepare_portrait
    admit: Callable[[Demand], Verdict] = admit


class Hub:
    """See the module's docstring."""

    def __init__(
        self,
        settings: Settings,
        engine_factory: Callable[[], Engine],
        parts: Parts | None = None,
    ) -> None:
        parts = parts or Parts()
        self.settings = settings
        self.metrics = Metrics()
        self.engine: Engine | None = None
        self.engine_error = ""
        self.ready: asyncio.Future[Engine] | None = None
        """Done when the engine is warm; fails when it could not be loaded."""
        self._worker = RenderWorker(
            engine_factory, compose=parts.compose, make_tracker=parts.make_tracker,
            calibrate=partial(measure_engine, size=settings.max_size_px),
        )  # fmt: skip
        self._encode_pool = ThreadPoolExecutor(settings.encode_threads, "encode")
        self.portraits = PortraitStore(
            self._worker,
            (settings.web_dir / "portraits", *settings.portrait_dirs),
            max_uploads=settings.max_uploads,
            decode=parts.decode,
            prepare=parts.prepare,
            prefix=settings.session_prefix,
        )
        self._clips = _load_clips(settings.clip_dirs)
        self._sessions: dict[str, Session] = {}
        self._judge = parts.admit
        #: What encoding a frame costs, measured at start: counts while nobody's does.
        self._encode_ns = 0.0
        self._opening: dict[str, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop_watch = LoopWatch(self.metrics, quiet=lambda: self.engine is None)
        self._restarts_told = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()

    # --- life -------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the worker; returns before the engine is loaded."""
        loop = asyncio.get_running_loop()
        self.ready = loop.create_future()
        # Nobody may be waiting for it: an unseen failure is in `engine_error` anyway.
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._worker.start()
        self._tasks = [
            asyncio.create_task(self._wait_for_engine(), name="engine"),
            asyncio.create_task(self._loop_watch.run(), name="loop-watch"),
        ]

    async def stop(self) -> None:
        """Close every session, then everything else."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = [session.close("server stops") for session in list(self._sessions.values())]
        await asyncio.gather(*closing, *self._closing, return_exceptions=True)
        await self.portraits.close()
        await asyncio.to_thread(self._worker.stop)
        self._encode_pool.shutdown(wait=True)
        if self.ready is not None and not self.ready.done():
            self.ready.cancel()

    async def _wait_for_engine(self) -> None:
        assert self.ready is not None
        try:
            while self.engine is None:
                try:
                    self.engine = await asyncio.to_thread(self._worker.wait_ready, 0.2)
                except TimeoutError:
                    continue
        except Exception as error:
            # Told to whoever asks: readiness, new sessions, the command line.
            self.engine_error = str(error) or type(error).__name__
            self.ready.set_exception(error)
            return
        self._encode_ns = await self._measure_encoder()
        self.metrics.engine_ready.set(1)
        self.ready.set_result(self.engine)
        if self.settings.prepare_portraits:
            await self.portraits.prepare_bundled(self._idle)

    async def _measure_encoder(self) -> float:
        size, loop = self.settings.max_size_px, asyncio.get_running_loop()
        bps = self._peer_options(size).video_bps
        try:
            return await loop.run_in_executor(self._encode_pool, measure_encoder, size, bps)
        except Exception:
            _log.warning("what encoding costs could not be measured", exc_info=True)
            return 0.0

    # --- sessions ---------------------------------------------------------------------

    @property
    def engine_reason(self) -> str:
        """Why this engine runs, or why none does."""
        if self.engine is None:
            return self.engine_error or "loading"
        return str(getattr(self.engine, "reason", "")) or self.engine.name

    @property
    def session_count(self) -> int:
        """Sessions open or being opened; those that wait for a vanished peer hold no place."""
        live = sum(not session.parked for session in self._sessions.values())
        return live + sum(self._opening.values())

    def require_engine(self) -> Engine:
        """Return the engine. Raises UnavailableError (loading), BrokenError (it cannot run)."""
        if self.engine is not None and self._worker.running:
            return self.engine
        if self.engine is not None:
            text = f"The engine is being started again: {self._worker.failure or 'it was lost'}."
            raise UnavailableError("not-ready", text, retry_after_s=RETRY_LOADING_S)
        if self.engine_error:
            raise BrokenError("engine-unusable", self.engine_error)
        text = "The engine is still being loaded."
        raise UnavailableError("not-ready", text, retry_after_s=RETRY_LOADING_S)

    async def open_session(self, request: SessionRequest, address: str) -> SessionAnswer:
        """Make a session and answer its offer. Raises ProblemError kinds (400, 404, 429, 503)."""
        address = address_key(address)
        engine = self._admit(address)
        self._opening[address] = self._opening.get(address, 0) + 1
        session: Session | None = None
        try:
            portrait = await self.portraits.get(request.portrait)
            spec = self._spec(request, portrait, engine, address)
            session = Session(
                spec, self._worker, self._encode_pool, self.metrics,
                on_end=self._on_end, on_park=self._on_park,
            )  # fmt: skip
            answer = await session.start(request.sdp)
        except BaseException as error:
            if session is not None:
                await session.close("refused")
            if isinstance(error, (SourceError, BadDescriptionError, NoResourcesError)):
                raise self._refusal(error) from error
            raise
        finally:
            self._leave(address)
        self._sessions[session.id] = session
        self._note_sessions()
        return SessionAnswer(answer, "answer", session.id, session.token)

    async def resume_session(self, id: str, token: str | None, offer: str) -> SessionAnswer:
        """Give a session a new peer. Raises ProblemError kinds (400, 401, 403, 404, 409, 503).

        A session whose peer vanished gave its place up; if others took it meanwhile, this is a
        503 like any other, and the session goes on waiting until its time is over.
        """
        session = self.session(id, token)
        if session.resuming:
            raise ConflictError("resuming", "This session is being resumed already.")
        if session.parked:
            self._admit_place()
        try:
            answer = await session.resume(offer)
        except (BadDescriptionError, NoResourcesError) as error:
            raise self._refusal(error) from error
        self.metrics.resumed.inc()
        self._note_sessions()
        return SessionAnswer(answer, "answer", session.id, session.token)

    def _spec(
        self, request: SessionRequest, portrait: Portrait, engine: Engine, address: str
    ) -> SessionSpec:
        settings = self.settings
        size = min(request.size, settings.max_size_px)
        return SessionSpec(
            portrait=portrait,
            size=size,
            config=engine.config,
            engine=engine.name,
            engine_reason=self.engine_reason,
            sources=_sources(request),
            clips=self._clips,
            idle_s=settings.idle_s,
            resume_s=settings.resume_s,
            address=address,
            peer=self._peer_options(size),
            prefix=settings.session_prefix,
            stamp=settings.stamp,
            trace=settings.trace,
            marked=request.marked, mark_required=settings.mark,
        )  # fmt: skip

    def session(self, id: str, token: str | None) -> Session:
        """Find a session and check its token. Raises NotFound, Unauthorized, ForbiddenError."""
        session = self._sessions.get(id)
        if session is None:
            raise NotFoundError("session-unknown", "There is no such session (any more).")
        if not token:
            raise UnauthorizedError("token-missing", "Send the session's token.")
        if not session.check_token(token):
            raise ForbiddenError("token-wrong", "This token is not this session's.")
        return session

    def _admit(self, address: str) -> Engine:
        if self.engine is None:
            self.metrics.refused.labels("not_ready").inc()
        engine = self.require_engine()
        self._admit_place()
        mine = sum(s.spec.address == address for s in self._sessions.values() if not s.parked)
        mine += self._opening.get(address, 0)
        if 0 < self.settings.max_sessions_per_address <= mine:
            self.metrics.refused.labels("address").inc()
            text = "This address has as many sessions as one may have."
            raise TooManyError("too-many-sessions", text, retry_after_s=RETRY_FULL_S)
        return engine

    def _admit_place(self) -> None:
        """Raise UnavailableError when one more session does not fit."""
        places = self.settings.max_sessions
        if self.session_count >= places:
            text = "The only place is taken." if places == 1 else f"All {places} places are taken."
        else:
            verdict = self._judge(self.demand())
            if verdict.admitted:
                return
            text = f"Those who are here need all of the server's {SCARCE[verdict.scarce]}."
        self.metrics.refused.labels("full").inc()
        raise UnavailableError("full", text, retry_after_s=RETRY_FULL_S, title="The server is full")

    def _refusal(self, error: Exception) -> ProblemError:
        """What the client is told. Used-up sockets are a full server, not a wrong offer."""
        if not isinstance(error, NoResourcesError):
            code = "sdp-unusable" if isinstance(error, BadDescriptionError) else "source-unusable"
            return BadRequestError(code, str(error))
        self.metrics.refused.labels("no_socket").inc()
        _log.error("a session was refused: %s", error)
        title = "The server is full"
        return UnavailableError("no-socket", str(error), retry_after_s=RETRY_FULL_S, title=title)

    def demand(self) -> Demand:
        """What the present sessions cost together, as measured."""
        live = [session for session in self._sessions.values() if not session.parked]
        encode = [s.tally.encode_ns for s in live if s.tally.encode_ns]
        return Demand(
            sessions=self.session_count,
            webcams=sum(session.webcam_used for session in live),
            worker=self._worker.measure(),
            encode_ns=sum(encode) / len(encode) if encode else self._encode_ns,
            encode_threads=self.settings.encode_threads,
            loop_busy=self._loop_watch.busy,
        )

    def publish(self) -> None:
        """Bring the gauges up to date; called before they are read."""
        demand, load = self.demand(), self._worker.measure()
        m = self.metrics
        m.worker_busy.set(load.busy)
        m.worker_headroom.set(headroom(demand))
        m.frame_cost.labels("mean").set(load.frame_ns / 1e9)
        m.frame_cost.labels("p95").set(load.frame_p95_ns / 1e9)
        m.worker_restarts.inc(load.restarts - self._restarts_told)
        self._restarts_told = load.restarts
        live = [session.level for session in self._sessions.values() if not session.parked]
        m.quality_level.set(max(live, default=0))
        self._note_sessions()

    def _leave(self, address: str) -> None:
        self._opening[address] -= 1
        if self._opening[address] == 0:
            del self._opening[address]

    def _peer_options(self, size: int) -> PeerOptions:
        settings = self.settings
        return PeerOptions(
            ice=IceOptions(
                servers=settings.ice_servers,
                loopback=settings.loopback,
                udp_ports=settings.udp_ports,
            ),
            public_ip=settings.public_ip,
            video_bps=min(ceiling_bps(size), settings.max_video_bps or ceiling_bps(size)),
            playout_delay_ms=settings.playout_delay_ms,
            stock=settings.rtc == "stock",
            connect_s=settings.connect_s,
            watchdog_s=settings.watchdog_s,
        )

    def _on_end(self, session: Session, reason: str) -> None:
        if self._sessions.pop(session.id, None) is not None:
            self.metrics.sessions_total.labels(reason.replace(" ", "_")).inc()
        self._note_sessions()
        _log.info("session ended", extra={"session": session.id, "reason": reason})

    def _on_park(self, session: Session) -> None:
        """A peer vanished. Those who wait longest end when too many wait."""
        parked = [s for s in self._sessions.values() if s.parked]
        for oldest in parked[: max(0, len(parked) - LIMITS.parked)]:
            task = asyncio.create_task(oldest.close("too many wait"), name="session-close")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._note_sessions()

    def _note_sessions(self) -> None:
        parked = sum(session.parked for session in self._sessions.values())
        live = len(self._sessions) - parked
        self.metrics.sessions.set(live)
        self.metrics.parked.set(parked)
        if live:
            self._idle.clear()
        else:
            self._idle.set()


def _sources(request: SessionRequest) -> Mapping[Factor, tuple[SourceKind, str | None]]:
    return {factor: (choice.source, choice.name) for factor, choice in request.sources.items()}


def _load_clips(folders: tuple[Path, ...]) -> dict[str, Clip]:
    clips = {}
    for folder in folders:
        for path in sorted(folder.glob("*.npz")):
            try:
                clips[path.stem] = load_clip(path)
            except ClipError as error:
                _log.warning("clip %s is skipped: %s", path.name, error)
    return clips
