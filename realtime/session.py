"""One conversation: a peer, a pipeline and a mailbox at the render worker.

    mic packet -> RtcPeer -> Pipeline -> Tick -> Mailbox (worker thread) -> RtcPeer -> picture
                                          └───── AudioPacer ────────────-> RtcPeer -> voice

Everything but the four `Sink` methods of `_Bridge` runs on the event loop.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import av
import numpy as np

from models.codes import Factor
from models.config import ModelConfig
from models.portrait import Portrait
from models.rates import FPS, FRAME_SAMPLES_48K
from realtime.control import Control, FaceNotices
from realtime.metrics import Metrics
from realtime.pacing import AudioPacer, SkewMeter
from realtime.pipeline import ALLOWED_SOURCES, Pipeline, Tick
from realtime.presets import preset_names
from realtime.protocol import (
    PROTOCOL_VERSION,
    Hello,
    Notice,
    ServerMessage,
    SourceKind,
    Stats,
    encode,
)
from realtime.rtc import AudioBlock, PeerOptions, RtcPeer
from realtime.settings import LIMITS
from realtime.sources import Clip, slider_list
from realtime.stages import Percentiles, StageRecorder
from realtime.worker import (
    HeldFrame,
    MotionResult,
    RenderedFrame,
    RenderWorker,
)

_log = logging.getLogger("visavis.session")

HOUSEKEEPING_S = 0.25
STATS_EVERY = 4
#: Peak level under which the microphone counts as silent, of 32767 (about -36 dB).
_QUIET = 500
_ERROR_NOTICE_S = 5.0
_MAX_INFLIGHT = 64
_TIMER_SLACK_NS = 500_000


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What one session is."""

    portrait: Portrait
    size: int
    config: ModelConfig
    engine: str
    engine_reason: str
    sources: Mapping[Factor, tuple[SourceKind, str | None]] = field(default_factory=dict)
    clips: Mapping[str, Clip] = field(default_factory=dict)
    idle_s: float = 0.0
    address: str = ""
    peer: PeerOptions = field(default_factory=PeerOptions)


class Subscription:
    """Server messages for one WebSocket; the oldest make room when it does not keep up."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque(maxlen=LIMITS.event_queue)
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, data: bytes) -> None:
        """Add one message."""
        self._queue.append(data)
        self._ready.set()

    def close(self) -> None:
        """The session has ended; `next` gives what is left, then None."""
        self._closed = True
        self._ready.set()

    async def next(self) -> bytes | None:
        """Return the next message, None after the end."""
        while not self._queue:
            if self._closed:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()


class _Bridge:
    """The worker's side: hops to the session's loop. Worker thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session: Session) -> None:
        self._loop = loop
        self._session = session

    def on_frame(self, frame: RenderedFrame) -> None:
        self._loop.call_soon_threadsafe(self._session._on_frame, frame)

    def on_held(self, frame: HeldFrame) -> None:
        self._loop.call_soon_threadsafe(self._session._on_held, frame)

    def on_motion(self, result: MotionResult) -> None:
        self._loop.call_soon_threadsafe(self._session._on_motion, result)

    def on_error(self, error: Exception) -> None:
        self._loop.call_soon_threadsafe(self._session._on_error, error)


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
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.id = secrets.token_urlsafe(12)
        self.token = secrets.token_urlsafe(32)
        self.spec = spec
        self.frames = 0
        self.late = 0
        self.held = 0
        self._clock = clock
        self._metrics = metrics
        self._on_end = on_end
        self._began_ns = clock()
        self._pipeline = Pipeline(
            spec.portrait, spec.config, size=spec.size, sources=spec.sources, clips=spec.clips,
            seed=secrets.randbits(31), clock=clock,
        )  # fmt: skip
        self._control = Control(self._pipeline, self._now)
        self._faces = FaceNotices()
        self._pacer = AudioPacer()
        self._skew = SkewMeter()
        self._stages = StageRecorder()
        self._added = Percentiles()
        self._inflight: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._block_ns = 0
        self._heard_at = self._now()
        self._frames_before = 0
        self._concealed = (0.0, 0.0)
        self._error_told_at = float("-inf")
        self._subscribers: set[Subscription] = set()
        self._timers: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._webcam_used = False
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._mailbox = worker.open(_Bridge(self._loop, self))
        self._peer = RtcPeer(self, encode_pool, spec.peer, on_encoded=self._on_encoded)
        self._task: asyncio.Task[None] | None = None
        self._note_sources()

    # --- outside ----------------------------------------------------------------------

    async def start(self, offer: str) -> str:
        """Answer the offer. Raises BadDescriptionError; the session must then be closed."""
        answer = await self._peer.accept(offer)
        self._task = asyncio.create_task(self._housekeeping(), name="session")
        return answer

    async def add_candidate(self, candidate: str) -> None:
        """Take a trickled ICE candidate. Raises BadDescriptionError."""
        await self._peer.add_candidate(candidate)

    def check_token(self, token: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    async def close(self, reason: str) -> None:
        """End the session and wait for it. Any number of times."""
        await self._peer.close(reason)
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def subscribe(self) -> Subscription | None:
        """Return a stream of server messages that begins with `hello`; None if too many listen."""
        if len(self._subscribers) >= LIMITS.subscribers or self._ended:
            return None
        subscription = Subscription()
        self._subscribers.add(subscription)
        subscription.put(encode(self._hello()))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop one stream."""
        self._subscribers.discard(subscription)

    # --- PeerHandler ------------------------------------------------------------------

    def on_connected(self) -> None:
        """ICE and DTLS are up."""
        self._heard_at = self._now()

    def on_audio(self, block: AudioBlock) -> None:
        """The next piece of the microphone's line."""
        self._block_ns = int(block.arrival_s * 1e9)
        if not block.concealed and int(np.abs(block.pcm).max()) > _QUIET:
            self._heard_at = self._now()
        for tick in self._pipeline.push_audio(block.pcm, block.index):
            self._on_tick(tick)
        self._arm("pipeline", self._pipeline.next_deadline_ns(), self._poll_pipeline)

    def on_video(self, frame: av.VideoFrame) -> None:
        """The latest webcam picture; read only while it drives something."""
        if self._webcam_used:
            self._mailbox.submit_webcam(self._pipeline.push_webcam(frame))

    def on_channel_open(self) -> None:
        """The control channel: say what this session is."""
        self._peer.send_message(encode(self._hello()))

    def on_message(self, data: bytes) -> None:
        """One control message."""
        replies = self._control.handle(data)
        self._note_sources()
        refused = any(isinstance(r, Notice) and r.level == "error" for r in replies)
        self._metrics.messages.labels("refused" if refused else "handled").inc()
        for reply in replies:
            self._send(reply)
        if self._control.abusive:
            self._end_soon("too many messages")

    def on_closed(self, reason: str) -> None:
        """The peer is gone: let go of everything. Called once."""
        self._ended = True
        self._mailbox.close()
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._task is not None:
            self._task.cancel()
        for subscription in self._subscribers:
            subscription.close()
        self._subscribers.clear()
        self._on_end(self, reason)

    # --- one frame's way --------------------------------------------------------------

    def _on_tick(self, tick: Tick) -> None:
        """A frame's audio window is full."""
        self._inflight[tick.frame_index] = (min(self._block_ns, tick.ready_ns), tick.ready_ns)
        while len(self._inflight) > _MAX_INFLIGHT:
            self._inflight.popitem(last=False)
        self._mailbox.submit(tick.job)
        self._pacer.push(tick.audio, tick.audio_sample, tick.ready_ns)
        self._arm("pacer", self._pacer.deadline_ns(), self._send_audio)

    def _poll_pipeline(self) -> None:
        self._block_ns = self._clock()
        for tick in self._pipeline.poll():
            self._on_tick(tick)
        self._arm("pipeline", self._pipeline.next_deadline_ns(), self._poll_pipeline)

    def _send_audio(self) -> None:
        now = self._clock()
        for packet in self._pacer.pop(now):
            self._peer.send_audio(packet.pcm, packet.index)
            if packet.index % FRAME_SAMPLES_48K == 0:
                self._note_skew(self._skew.on_voice(packet.index // FRAME_SAMPLES_48K, now))
        self._arm("pacer", self._pacer.deadline_ns(), self._send_audio)

    def _on_frame(self, frame: RenderedFrame) -> None:
        if self._ended:
            return
        self._record(frame.spans)
        self._peer.send_frame(frame.i420, frame.frame_index)

    def _on_held(self, frame: HeldFrame) -> None:
        if self._ended:
            return
        self._inflight.pop(frame.frame_index, None)
        self.held += 1
        self.late += frame.reason == "late"
        self._metrics.frames.labels(frame.reason).inc()

    def _on_motion(self, result: MotionResult) -> None:
        if not self._ended:
            self._record(result.spans)
            self._pipeline.on_motion(result)

    def _on_error(self, error: Exception) -> None:
        if self._ended or self._now() - self._error_told_at < _ERROR_NOTICE_S:
            return
        self._error_told_at = self._now()
        _log.error("a frame of session %s failed", self.id, exc_info=error)
        text = "The server could not draw a picture; the last one stays."
        self._send(Notice("error", "frame_failed", text))

    def _on_encoded(self, frame_index: int, encode_ms: float, key: bool) -> None:
        """The frame's packets leave now: the end of what we add."""
        now = self._clock()
        if self.frames == 0:
            self._metrics.time_to_first_frame.observe((now - self._began_ns) / 1e9)
        self.frames += 1
        self._metrics.frames.labels("sent").inc()
        self._metrics.key_frames.inc(key)
        self._record({"encode": int(encode_ms * 1e6)})
        self._note_skew(self._skew.on_picture(frame_index, now))
        arrived_ns, ready_ns = self._inflight.pop(frame_index, (0, 0))
        if ready_ns:
            self._pacer.on_picture(now - ready_ns)
            self._record({"receive": ready_ns - arrived_ns})
            self._added.add(now - arrived_ns)
            self._metrics.added_latency.observe((now - arrived_ns) / 1e9)

    def _record(self, spans: Mapping[str, int]) -> None:
        self._stages.add_spans(spans)
        for name, duration_ns in spans.items():
            self._metrics.stage.labels(name).observe(duration_ns / 1e9)

    def _note_skew(self, skew_ns: int | None) -> None:
        if skew_ns is not None:
            self._metrics.av_skew.observe(skew_ns / 1e9)

    # --- housekeeping -----------------------------------------------------------------

    async def _housekeeping(self) -> None:
        """Notices four times a second, statistics once; ends an idle session."""
        count = 0
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            count += 1
            status = self._pipeline.webcam.status if self._webcam_used else "off"
            if status == "tracking":
                self._heard_at = self._now()
            notice = self._faces.update(status, self._now())
            if notice is not None:
                self._send(notice)
            if count % STATS_EVERY == 0:
                self._send(self._statistics())
            quiet_s = self._now() - max(self._heard_at, self._control.acted_at)
            if 0 < self.spec.idle_s < quiet_s:
                text = "The conversation was ended because nothing happened for a long time."
                self._send(Notice("info", "idle", text))
                self._end_soon("idle")
                return

    def _statistics(self) -> Stats:
        peer = self._peer.stats()
        fps = (self.frames - self._frames_before) / (HOUSEKEEPING_S * STATS_EVERY)
        self._frames_before = self.frames
        concealed, filled = self._concealed
        self._metrics.audio_concealed.inc((peer.concealed_ms - concealed) / 1e3)
        self._metrics.audio_filled.inc((peer.filled_ms - filled) / 1e3)
        self._concealed = (peer.concealed_ms, peer.filled_ms)
        return Stats(
            fps=round(fps, 1),
            added_latency_ms=self._added.summary(),
            algorithmic_latency_ms=self.spec.config.lookahead_ms,
            av_skew_ms=round(self._skew.skew_ms, 2),
            frames=self.frames,
            late=self.late,
            held=self.held,
            dropped=peer.frames_replaced,
            stages=self._stages.summary(),
            webcam=self._pipeline.webcam.status if self._webcam_used else "off",
        )

    def _hello(self) -> Hello:
        return Hello(
            version=PROTOCOL_VERSION,
            session_id=self.id,
            engine=self.spec.engine,
            engine_reason=self.spec.engine_reason,
            portrait=self.spec.portrait.name,
            size=self.spec.size,
            fps=FPS,
            algorithmic_latency_ms=self.spec.config.lookahead_ms,
            presets=preset_names(),
            clips=sorted(self.spec.clips),
            sliders={factor: slider_list(factor) for factor in ALLOWED_SOURCES},
            allowed_sources={f: list(kinds) for f, kinds in ALLOWED_SOURCES.items()},
            factors=self._pipeline.states(),
        )

    def _note_sources(self) -> None:
        self._webcam_used = any(s.source == "webcam" for s in self._pipeline.states())

    def _send(self, message: ServerMessage) -> None:
        if self._ended:
            return
        data = encode(message)
        self._peer.send_message(data)
        for subscription in self._subscribers:
            subscription.put(data)

    def _end_soon(self, reason: str) -> None:
        self._peer.close_soon(reason)

    def _now(self) -> float:
        return self._clock() / 1e9

    def _arm(self, name: str, deadline_ns: int | None, run: Callable[[], None]) -> None:
        """Call `run` at `deadline_ns`; an armed timer stays if it is early enough.

        One that fires too early finds nothing due and arms itself again.
        """
        if deadline_ns is None or self._ended:
            return
        armed = self._timers.get(name)
        if armed is not None:
            if armed[0] <= deadline_ns + _TIMER_SLACK_NS:
                return
            armed[1].cancel()

        def fire() -> None:
            self._timers.pop(name, None)
            run()

        delay_s = max(0.0, (deadline_ns - self._clock()) / 1e9)
        self._timers[name] = (deadline_ns, self._loop.call_later(delay_s, fire))
