"""One conversation: who drives what, what the person is told, and a peer while there is one.

The way of sound and pictures is `realtime.link`'s. A session outlives its peer: one that vanished
(no packets, a closed connection, a network that changed) leaves it *parked* for `resume_s`, in
which `resume` with a new offer brings the same portrait, codes, sources and clock back. A parked
session holds no place, no worker and no connection.

    opening ──peer──> live ──peer vanished──> parked ──resume──> live
                       │                        └──resume_s──> ended
                       └──asked to end, idle, flood──> ended

Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor

from realtime.adapt import Adaptation
from realtime.control import Control, FaceNotices, QualityNotices
from realtime.link import Link, LinkParts
from realtime.metrics import Metrics
from realtime.pipeline import Pipeline
from realtime.protocol import (
    Notice,
    ServerMessage,
    Stats,
    encode,
)
from realtime.receiver import ReceiverLog
from realtime.rtc import (
    BadDescriptionError,
    NoResourcesError,
    PeerStats,
)
from realtime.settings import LIMITS
from realtime.spec import SessionSpec, hello
from realtime.subscription import Subscription
from realtime.tally import Tally
from realtime.trace import Trace
from realtime.worker import RenderWorker

__all__ = ["Session", "SessionSpec", "Subscription"]

_log = logging.getLogger("visavis.session")

HOUSEKEEPING_S = 0.25
STATS_EVERY = 4
_ERROR_NOTICE_S = 5.0


class Session:
    """See the module's docstring. Raises SourceError for sources that cannot be."""

    def __init__(
        self,
        spec: SessionSpec,
        worker: RenderWorker,
        encode_pool: Executor,
        metrics: Metrics,
        *,
        on_end: Callable[[Session, str], None],
        on_park: Callable[[Session], None] = lambda session: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.id = spec.prefix + secrets.token_urlsafe(12)
        self.token = secrets.token_urlsafe(32)
        self.spec = spec
        self.pipeline = Pipeline(
            spec.portrait, spec.config, size=spec.size, sources=spec.sources, clips=spec.clips,
            seed=secrets.randbits(31), clock=clock,
        )  # fmt: skip
        self.pipeline.marked = spec.marked or spec.mark_required
        self.tally = Tally(metrics)
        self.trace = Trace(self.id) if spec.trace else None
        self._receiver = ReceiverLog(metrics)
        self.webcam_used = False
        self._worker = worker
        self._metrics = metrics
        self._on_end, self._on_park = on_end, on_park
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._parts = LinkParts(worker, encode_pool, spec.peer, stamp=spec.stamp, clock=clock)
        self._control = Control(self.pipeline, self._now, mark_required=spec.mark_required)
        self._faces = FaceNotices()
        self._adaptation = Adaptation(
            spec.size, spec.peer.video_bps, self.pipeline, self.tally, clock
        )
        self._told_quality = QualityNotices()
        self._lost_told = (0, 0)
        self._heard_at = self._now()
        self._frames_before = 0
        self._error_told_at = float("-inf")
        self._subscribers: set[Subscription] = set()
        self._was_connected = False
        self._ending = ""
        self._ended = False
        self._park_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = Link(self, self._parts)
        self._resuming: Link | None = None
        self._replaced: set[Link] = set()
        self._note_sources()

    # --- life -------------------------------------------------------------------------

    async def start(self, offer: str) -> str:
        """Answer the offer. After BadDescriptionError or NoResourcesError close the session."""
        assert self._link is not None
        answer = await self._link.accept(offer)
        self._begin_housekeeping()
        return answer

    @property
    def parked(self) -> bool:
        """Whether the session waits for its peer to come back."""
        return self._link is None and not self._ended

    @property
    def resuming(self) -> bool:
        """Whether an offer to resume is being answered."""
        return self._resuming is not None

    async def resume(self, offer: str) -> str:
        """Take a new peer in the place of the old or vanished one.

        Raises BadDescriptionError, NoResourcesError; then everything is as before. One at a time.
        """
        link = self._resuming = Link(self, self._parts)
        try:
            answer = await link.accept(offer)
        except (BadDescriptionError, NoResourcesError):
            await link.close("refused")
            raise
        finally:
            self._resuming = None
        if self._ended:
            await link.close("ended")
            raise BadDescriptionError("The session has ended.")
        old, self._link = self._link, link
        if old is not None:
            self._replaced.add(old)
            old.close_soon("resumed")
        if self._park_timer is not None:
            self._park_timer.cancel()
            self._park_timer = None
        self.tally.new_peer()
        self._lost_told = (0, 0)
        self._heard_at = self._now()
        self._adaptation.restart(link)
        self._begin_housekeeping()
        return answer

    async def add_candidate(self, candidate: str) -> None:
        """Take a trickled ICE candidate. Raises BadDescriptionError."""
        if self._link is not None:
            await self._link.add_candidate(candidate)

    def check_token(self, token: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    async def close(self, reason: str) -> None:
        """End the session and wait for it. Any number of times."""
        self._ending = self._ending or reason
        for link in (self._resuming, *self._replaced):
            if link is not None:
                await link.close(reason)
        if self._link is not None:
            await self._link.close(reason)
        else:
            self._finish(reason)
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _end_soon(self, reason: str) -> None:
        self._ending = self._ending or reason
        if self._link is not None:
            self._link.close_soon(reason)

    def on_link_closed(self, link: Link, reason: str) -> None:
        """The peer is gone: park, or end. A peer that was replaced does not matter any more."""
        self._replaced.discard(link)
        if link is not self._link:
            return
        self._link = None
        if self._task is not None:
            self._task.cancel()
        vanished = self._was_connected and not self._ending and reason != "internal error"
        if vanished and self.spec.resume_s > 0:
            self._park_timer = self._loop.call_later(
                self.spec.resume_s, self._finish, "peer did not come back"
            )
            _log.info("session waits for its peer", extra={"session": self.id, "reason": reason})
            self._on_park(self)
        else:
            self._finish(self._ending or reason)

    def _finish(self, reason: str) -> None:
        if self._ended:
            return
        self._ended = True
        if self._park_timer is not None:
            self._park_timer.cancel()
        for subscription in self._subscribers:
            subscription.close()
        self._subscribers.clear()
        self._on_end(self, reason)

    # --- those who listen -------------------------------------------------------------

    def subscribe(self) -> Subscription | None:
        """Return a stream of server messages that begins with `hello`; None if too many listen."""
        if len(self._subscribers) >= LIMITS.subscribers or self._ended:
            return None
        subscription = Subscription()
        self._subscribers.add(subscription)
        subscription.put(self._hello())
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop one stream."""
        self._subscribers.discard(subscription)

    def begin_trace(self) -> None:
        """Keep a trace from now on, in a ring of fixed size."""
        self.trace = self.trace or Trace(self.id)

    def end_trace(self) -> None:
        """Forget the trace."""
        self.trace = None

    # --- LinkOwner --------------------------------------------------------------------

    def draws(self, frame_index: int) -> bool:
        """Whether this frame shall be drawn at the present quality."""
        return self._adaptation.draws(frame_index)

    def on_connected(self) -> None:
        """Media can flow."""
        if self._was_connected:
            self.pipeline.restart()
        self._was_connected = True
        self._heard_at = self._now()

    def on_heard(self) -> None:
        """Somebody speaks."""
        self._heard_at = self._now()

    def on_channel_open(self) -> None:
        """The control channel: say what this session is, and how it stands."""
        if self._link is not None:
            self._link.send(self._hello())
            if self.pipeline.paused or self.pipeline.marked:
                self._link.send(encode(self._control.state()))

    def on_message(self, data: bytes) -> None:
        """One control message."""
        if self._ending:
            return
        replies = self._control.handle(data)
        self._note_sources()
        refused = any(isinstance(r, Notice) and r.level == "error" for r in replies)
        self._metrics.messages.labels("refused" if refused else "handled").inc()
        for reply in replies:
            self._send(reply)
        if self._control.abusive:
            _log.error("a client floods its control channel", extra={"session": self.id})
            self._metrics.abuse.labels("messages").inc()
            self._end_soon("too many messages")

    def on_draw_error(self, error: Exception) -> None:
        """A job of this session failed."""
        if self._ended or self._now() - self._error_told_at < _ERROR_NOTICE_S:
            return
        self._error_told_at = self._now()
        _log.error("a frame failed", exc_info=error, extra={"session": self.id})
        text = "The server could not draw a picture; the last one stays."
        self._send(Notice("error", "frame_failed", text))

    # --- housekeeping -----------------------------------------------------------------

    def _begin_housekeeping(self) -> None:
        if self._task is None or self._task.done() or self._task.cancelling():
            self._task = asyncio.create_task(self._housekeeping(), name="session")

    async def _housekeeping(self) -> None:
        """Quality and notices four times a second, statistics once; ends an idle session."""
        count = 0
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            if self._link is None:
                return
            count += 1
            status = self.pipeline.webcam.status if self.webcam_used else "off"
            if status == "tracking":
                self._heard_at = self._now()
            peer = self._link.stats()
            if self._adaptation.update(self._link, peer, self._worker.measure()):
                self._note_quality()
            for notice in (
                self._faces.update(status, self._now()),
                self._told_quality.update(self._adaptation.quality(), self._now()),
            ):
                if notice is not None:
                    self._send(notice)
            if count % STATS_EVERY == 0:
                self._send(self._statistics(self._link, peer))
            if self.trace is not None:
                self._trace_counters(self.trace, self._link, peer)
            self._receiver.take(self._control.client_stats, self.trace, self._clock())
            quiet_s = self._now() - max(self._heard_at, self._control.acted_at)
            if 0 < self.spec.idle_s < quiet_s:
                text = "The conversation was ended because nothing happened for a long time."
                self._send(Notice("info", "idle", text))
                self._end_soon("idle")
                return

    @property
    def level(self) -> int:
        """Rung of the ladder of quality; 0 is full."""
        return self._adaptation.level

    def _statistics(self, link: Link, peer: PeerStats) -> Stats:
        fps = (self.tally.frames - self._frames_before) / (HOUSEKEEPING_S * STATS_EVERY)
        self._frames_before = self.tally.frames
        self.tally.on_peer(peer)
        return Stats(
            fps=round(fps, 1),
            added_latency_ms=self.tally.added(),
            algorithmic_latency_ms=self.spec.config.lookahead_ms,
            av_skew_ms=round(link.skew.skew_ms, 2),
            frames=self.tally.frames,
            late=self.tally.late,
            held=self.tally.held,
            dropped=peer.frames_replaced,
            stages=self.tally.stages(),
            webcam=self.pipeline.webcam.status if self.webcam_used else "off",
            quality=self._adaptation.quality(),
        )

    def _trace_counters(self, trace: Trace, link: Link, peer: PeerStats) -> None:
        now = self._clock()
        lost = (peer.audio_lost, peer.video_lost)
        if lost != self._lost_told:
            audio, video = (new - old for new, old in zip(lost, self._lost_told, strict=True))
            trace.instant("loss", now, audio=audio, video=video)
            self._lost_told = lost
        trace.counter("skew_ms", now, skew_ms=round(link.skew.skew_ms, 2))
        trace.counter("voice_lag_ms", now, voice_lag_ms=round(link.pacer.lag_ns / 1e6, 2))
        trace.counter("target_kbps", now, target_kbps=peer.target_bps / 1000)
        trace.counter("quality", now, level=self.level)

    def _hello(self) -> bytes:
        return encode(hello(self.spec, self.id, self.pipeline.states()))

    def _note_quality(self) -> None:
        quality = self._adaptation.quality()
        self._metrics.quality_changes.labels(quality.reason).inc()
        extra = {"session": self.id, "reason": quality.reason}
        _log.info("quality is now %s", quality.name, extra=extra)

    def _note_sources(self) -> None:
        self.webcam_used = any(s.source == "webcam" for s in self.pipeline.states())

    def _send(self, message: ServerMessage) -> None:
        if self._ended:
            return
        data = encode(message)
        if self._link is not None:
            self._link.send(data)
        for subscription in self._subscribers:
            subscription.put(data)

    def _now(self) -> float:
        return self._clock() / 1e9
