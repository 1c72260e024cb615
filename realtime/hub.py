"""What one server owns besides HTTP: worker, encoders, portraits, sessions, metrics.

The hub lives on the event loop; `start` and `stop` frame its life. The engine loads in the
render worker's thread meanwhile: until `ready` is done, sessions are refused with 503.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.codes import Factor
from models.composite import compose
from models.portrait import decode_image, prepare_portrait
from models.runtime.engine import Engine
from models.tracking import FaceTracker
from realtime.errors import (
    BadRequestError,
    BrokenError,
    ForbiddenError,
    NotFoundError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
)
from realtime.metrics import Metrics
from realtime.pipeline import SourceError
from realtime.portraits import PortraitStore, Prepare
from realtime.protocol import SessionAnswer, SessionRequest, SourceKind
from realtime.rtc import BadDescriptionError, IceOptions, PeerOptions, ceiling_bps
from realtime.session import Session, SessionSpec
from realtime.settings import Settings
from realtime.sources import Clip, ClipError, load_clip
from realtime.worker import Compose, RenderWorker, Tracker

_log = logging.getLogger("visavis.server")

RETRY_FULL_S = 5
RETRY_LOADING_S = 3
LAG_EVERY_S = 0.1
LAG_ALARM_S = 0.050


@dataclass(frozen=True, slots=True)
class Parts:
    """What the hub is put together from; tests give fakes."""

    compose: Compose = compose
    make_tracker: Callable[[Engine], Tracker] = FaceTracker
    decode: Callable[[bytes], NDArray[np.uint8]] = decode_image
    prepare: Prepare = prepare_portrait


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
            engine_factory, compose=parts.compose, make_tracker=parts.make_tracker
        )
        self._encode_pool = ThreadPoolExecutor(settings.encode_threads, "encode")
        self.portraits = PortraitStore(
            self._worker,
            (settings.web_dir / "portraits", *settings.portrait_dirs),
            max_uploads=settings.max_uploads,
            decode=parts.decode,
            prepare=parts.prepare,
        )
        self._clips = _load_clips(settings.clip_dirs)
        self._sessions: dict[str, Session] = {}
        self._opening: dict[str, int] = {}
        self._idle = asyncio.Event()
        self._idle.set()
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
            asyncio.create_task(self._watch_lag(), name="loop-lag"),
        ]

    async def stop(self) -> None:
        """Close every session, then everything else."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        closing = [session.close("server stops") for session in self._sessions.values()]
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
        self.metrics.engine_ready.set(1)
        self.ready.set_result(self.engine)
        if self.settings.prepare_portraits:
            await self.portraits.prepare_bundled(self._idle)

    async def _watch_lag(self) -> None:
        """Measure how late the loop wakes: what must never block it shows up here.

        Loading the engine holds the interpreter for long stretches; that is not told.
        """
        told_at = 0.0
        while True:
            start = time.monotonic()
            await asyncio.sleep(LAG_EVERY_S)
            now = time.monotonic()
            lag = now - start - LAG_EVERY_S
            self.metrics.loop_lag.observe(max(0.0, lag))
            if lag > LAG_ALARM_S and self.engine is not None and now - told_at > 10.0:
                told_at = now
                _log.warning("the event loop was blocked for %.0f ms", lag * 1000)

    # --- sessions ---------------------------------------------------------------------

    @property
    def engine_reason(self) -> str:
        """Why this engine runs, or why none does."""
        if self.engine is None:
            return self.engine_error or "loading"
        return str(getattr(self.engine, "reason", "")) or self.engine.name

    @property
    def session_count(self) -> int:
        """Sessions open or being opened."""
        return len(self._sessions) + sum(self._opening.values())

    def require_engine(self) -> Engine:
        """Return the engine. Raises UnavailableError (loading), BrokenError (it cannot run)."""
        if self.engine is not None:
            return self.engine
        if self.engine_error:
            raise BrokenError("engine-unusable", self.engine_error)
        text = "The engine is still being loaded."
        raise UnavailableError("not-ready", text, retry_after_s=RETRY_LOADING_S)

    async def open_session(self, request: SessionRequest, address: str) -> SessionAnswer:
        """Make a session and answer its offer. Raises ProblemError kinds (400, 404, 429, 503)."""
        engine = self._admit(address)
        self._opening[address] = self._opening.get(address, 0) + 1
        session: Session | None = None
        try:
            portrait = await self.portraits.get(request.portrait)
            size = min(request.size, self.settings.max_size_px)
            spec = SessionSpec(
                portrait=portrait,
                size=size,
                config=engine.config,
                engine=engine.name,
                engine_reason=self.engine_reason,
                sources=_sources(request),
                clips=self._clips,
                idle_s=self.settings.idle_s,
                address=address,
                peer=self._peer_options(size),
            )
            session = Session(
                spec, self._worker, self._encode_pool, self.metrics, on_end=self._on_end
            )
            answer = await session.start(request.sdp)
        except (SourceError, BadDescriptionError) as error:
            if session is not None:
                await session.close("refused")
            code = "sdp-unusable" if isinstance(error, BadDescriptionError) else "source-unusable"
            raise BadRequestError(code, str(error)) from error
        finally:
            self._leave(address)
        self._sessions[session.id] = session
        self._idle.clear()
        self.metrics.sessions.set(len(self._sessions))
        return SessionAnswer(answer, "answer", session.id, session.token)

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
        places = self.settings.max_sessions
        if self.session_count >= places:
            self.metrics.refused.labels("full").inc()
            text = "The only place is taken." if places == 1 else f"All {places} places are taken."
            raise UnavailableError(
                "full", text, retry_after_s=RETRY_FULL_S, title="The server is full"
            )
        mine = sum(s.spec.address == address for s in self._sessions.values())
        mine += self._opening.get(address, 0)
        if 0 < self.settings.max_sessions_per_address <= mine:
            self.metrics.refused.labels("address").inc()
            text = "This address has as many sessions as one may have."
            raise TooManyError("too-many-sessions", text, retry_after_s=RETRY_FULL_S)
        return engine

    def _leave(self, address: str) -> None:
        self._opening[address] -= 1
        if self._opening[address] == 0:
            del self._opening[address]

    def _peer_options(self, size: int) -> PeerOptions:
        settings = self.settings
        return PeerOptions(
            ice=IceOptions(servers=settings.ice_servers, loopback=settings.loopback),
            public_ip=settings.public_ip,
            video_bps=ceiling_bps(size),
            connect_s=settings.connect_s,
            watchdog_s=settings.watchdog_s,
        )

    def _on_end(self, session: Session, reason: str) -> None:
        if self._sessions.pop(session.id, None) is not None:
            self.metrics.sessions_total.labels(reason.replace(" ", "_")).inc()
        self.metrics.sessions.set(len(self._sessions))
        if not self._sessions:
            self._idle.set()
        _log.info("session ended: %s", reason)


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
