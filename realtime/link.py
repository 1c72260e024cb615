"""The way of sound and pictures between one peer and its session's pipeline.

    mic packet -> RtcPeer -> Pipeline -> Tick -> Mailbox (render thread) -> RtcPeer -> picture
                                          └───── AudioPacer ────────────-> RtcPeer -> voice

A link lives as long as its peer; the session outlives it (`Session.resume`). Everything but
the four `Sink` methods of `_Bridge` runs on the event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import av
import numpy as np

from models.mark import put_mark
from models.rates import FRAME_SAMPLES_48K, FRAME_TICKS_90K
from realtime.pacing import AudioPacer, SkewMeter
from realtime.pipeline import Pipeline, Tick
from realtime.rtc import AudioBlock, PeerOptions, PeerStats, make_peer
from realtime.stamp import stamp
from realtime.tally import Tally
from realtime.trace import Trace
from realtime.worker import HeldFrame, Mailbox, MotionResult, RenderedFrame, RenderWorker

_log = logging.getLogger("visavis.link")
MAX_INFLIGHT = 64
HELD_TOLD_NS = 5_000_000_000
#: Peak level under which the microphone counts as silent, of 32767 (about -36 dB).
_QUIET = 500
_TIMER_SLACK_NS = 500_000


class LinkOwner(Protocol):
    """The session, as its link sees it. Event loop."""

    id: str
    pipeline: Pipeline
    tally: Tally
    trace: Trace | None
    webcam_used: bool

    def draws(self, frame_index: int) -> bool:
        """Whether this frame shall be drawn at the present quality."""

    def on_connected(self) -> None:
        """Media can flow."""

    def on_channel_open(self) -> None:
        """Messages can be sent."""

    def on_heard(self) -> None:
        """Somebody speaks."""

    def on_message(self, data: bytes) -> None:
        """One control message."""

    def on_draw_error(self, error: Exception) -> None:
        """A job of this session failed."""

    def on_link_closed(self, link: Link, reason: str) -> None:
        """The peer is gone. Called once."""


@dataclass(frozen=True, slots=True)
class LinkParts:
    """What a link is made of besides its session."""

    worker: RenderWorker
    encode_pool: Executor
    peer: PeerOptions
    stamp: bool = False
    clock: Callable[[], int] = time.monotonic_ns


class _Bridge:
    """The worker's side: hops to the session's loop. Render thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link) -> None:
        self._loop = loop
        self._link = link

    def on_frame(self, frame: RenderedFrame) -> None:
        self._loop.call_soon_threadsafe(self._link._on_frame, frame)

    def on_held(self, frame: HeldFrame) -> None:
        self._loop.call_soon_threadsafe(self._link._on_held, frame)

    def on_motion(self, result: MotionResult) -> None:
        self._loop.call_soon_threadsafe(self._link._on_motion, result)

    def on_error(self, error: Exception) -> None:
        self._loop.call_soon_threadsafe(self._link._on_error, error)


class Link:
    """See the module's docstring."""

    def __init__(self, owner: LinkOwner, parts: LinkParts) -> None:
        self.skew = SkewMeter()
        self.pacer = AudioPacer()
        self.closed = False
        self._held_told_ns = -HELD_TOLD_NS
        self._owner = owner
        self._pipeline = owner.pipeline
        self._tally = owner.tally
        self._stamp = parts.stamp
        self._clock = parts.clock
        self._began_ns = parts.clock()
        self._block_ns = 0
        self._inflight: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._timers: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._loop = asyncio.get_running_loop()
        self._mailbox: Mailbox = parts.worker.open(_Bridge(self._loop, self))
        self._peer = make_peer(self, parts.encode_pool, parts.peer, on_encoded=self._on_encoded)

    # --- outside ----------------------------------------------------------------------

    async def accept(self, offer: str) -> str:
        """Answer the offer. After BadDescriptionError or NoResourcesError close the link."""
        return await self._peer.accept(offer)

    async def add_candidate(self, candidate: str) -> None:
        """Take a trickled ICE candidate. Raises BadDescriptionError."""
        await self._peer.add_candidate(candidate)

    def send(self, data: bytes) -> bool:
        """Send one control message if the channel takes it."""
        return self._peer.send_message(data)

    def stats(self) -> PeerStats:
        """Counters of the connection."""
        return self._peer.stats()

    def limit_video(self, bps: int) -> None:
        """Let the pictures take at most `bps`."""
        self._peer.set_video_ceiling(bps)

    def close_soon(self, reason: str) -> None:
        """Begin to close and return at once."""
        self._peer.close_soon(reason)

    async def close(self, reason: str) -> None:
        """Close and wait for it. Any number of times."""
        await self._peer.close(reason)

    # --- PeerHandler ------------------------------------------------------------------

    def on_connected(self) -> None:
        """ICE and DTLS are up. The session's clock may have run before this peer came."""
        if self._pipeline.session_sample:
            self._peer.set_capture_origin(self._pipeline.session_sample)
        self._owner.on_connected()

    def on_channel_open(self) -> None:
        """The control channel works."""
        self._owner.on_channel_open()

    def on_audio(self, block: AudioBlock) -> None:
        """The next piece of the microphone's line."""
        self._block_ns = int(block.arrival_s * 1e9)
        if not block.concealed and int(np.abs(block.pcm).max()) > _QUIET:
            self._owner.on_heard()
        for tick in self._pipeline.push_audio(block.pcm, block.index):
            self._on_tick(tick)
        self._arm("pipeline", self._pipeline.next_deadline_ns(), self._poll_pipeline)

    def on_video(self, frame: av.VideoFrame) -> None:
        """The latest webcam picture; read only while it drives something."""
        if self._owner.webcam_used:
            self._mailbox.submit_webcam(self._pipeline.push_webcam(frame))

    def on_message(self, data: bytes) -> None:
        """One control message."""
        self._owner.on_message(data)

    def on_closed(self, reason: str) -> None:
        """The peer is gone: let go of worker and timers. Called once."""
        self.closed = True
        self._mailbox.close()
        for _, timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._owner.on_link_closed(self, reason)

    # --- one frame's way --------------------------------------------------------------

    def _on_tick(self, tick: Tick) -> None:
        """A frame's audio window is full."""
        job, draw = tick.job, self._owner.draws(tick.frame_index)
        if draw:
            self._tally.due += 1
            self._inflight[tick.frame_index] = (min(self._block_ns, tick.ready_ns), tick.ready_ns)
            while len(self._inflight) > MAX_INFLIGHT:
                self._inflight.popitem(last=False)
        else:
            job = dataclasses.replace(job, draw=False)
        if (trace := self._owner.trace) is not None:
            # How loud the frame's own sound is lets a measuring client find the frame's place.
            level = float(np.sqrt(np.mean(tick.audio.astype(np.float64) ** 2)))
            trace.instant("tick", tick.ready_ns, frame=tick.frame_index, level=round(level, 2))
        self._mailbox.submit(job)
        self.pacer.push(tick.audio, tick.audio_sample, tick.ready_ns)
        self._arm("pacer", self.pacer.deadline_ns(), self._send_audio)

    def _poll_pipeline(self) -> None:
        self._block_ns = self._clock()
        for tick in self._pipeline.poll():
            self._on_tick(tick)
        self._arm("pipeline", self._pipeline.next_deadline_ns(), self._poll_pipeline)

    def _send_audio(self) -> None:
        now = self._clock()
        for packet in self.pacer.pop(now):
            self._peer.send_audio(packet.pcm, packet.index)
            if packet.index % FRAME_SAMPLES_48K == 0:
                frame = packet.index // FRAME_SAMPLES_48K
                self._tally.on_skew(self.skew.on_voice(frame, now))
        self._arm("pacer", self.pacer.deadline_ns(), self._send_audio)

    def _on_frame(self, frame: RenderedFrame) -> None:
        if self.closed:
            return
        self._tally.record(frame.spans)
        if (trace := self._owner.trace) is not None:
            ready_ns = self._inflight.get(frame.frame_index, (0, 0))[1]
            trace.stages(frame.frame_index, ready_ns, frame.spans, self._clock())
        if self._pipeline.marked:
            put_mark(frame.i420)
        if self._stamp:
            stamp(frame.i420, frame.frame_index)
        self._peer.send_frame(frame.i420, frame.frame_index)

    def _on_held(self, frame: HeldFrame) -> None:
        if self.closed:
            return
        self._inflight.pop(frame.frame_index, None)
        self._tally.on_held(frame.reason)
        now = self._clock()
        if (trace := self._owner.trace) is not None:
            trace.instant("held", now, frame=frame.frame_index, reason=frame.reason)
        if now - self._held_told_ns > HELD_TOLD_NS:
            # One of a burst is told; how many there were is in the metrics.
            self._held_told_ns = now
            pts = frame.frame_index * FRAME_TICKS_90K
            told = {"session": self._owner.id, "pts": pts, "reason": frame.reason}
            _log.info("a frame was held", extra=told)

    def _on_motion(self, result: MotionResult) -> None:
        if self.closed:
            return
        self._tally.record(result.spans)
        if (trace := self._owner.trace) is not None:
            now, took = self._clock(), result.spans.get("motion", 0)
            trace.overlapping("webcam", "motion", result.capture_48k, now - took, now)
        self._pipeline.on_motion(result)

    def _on_error(self, error: Exception) -> None:
        if not self.closed:
            self._owner.on_draw_error(error)

    def _on_encoded(self, frame_index: int, encode_ms: float, key: bool) -> None:
        """The frame's packets leave now: the end of what we add."""
        now, encode_ns = self._clock(), int(encode_ms * 1e6)
        self._tally.on_sent(encode_ns, key=key, since_offer_ns=now - self._began_ns)
        self._tally.on_skew(self.skew.on_picture(frame_index, now))
        arrived_ns, ready_ns = self._inflight.pop(frame_index, (0, 0))
        if ready_ns:
            self.pacer.on_picture(now - ready_ns)
            self._tally.record({"receive": ready_ns - arrived_ns})
            self._tally.on_added(now - arrived_ns)
            if (trace := self._owner.trace) is not None:
                trace.sent(frame_index, (arrived_ns, ready_ns, now), encode_ns, key)

    def _arm(self, name: str, deadline_ns: int | None, run: Callable[[], None]) -> None:
        """Call `run` at `deadline_ns`; an armed timer stays if it is early enough.

        One that fires too early finds nothing due and arms itself again.
        """
        if deadline_ns is None or self.closed:
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
