"""One transport's media in both directions: pacing, transport-wide feedback, safe parsing.

`MediaPath` takes the place of two methods of aiortc's DTLS transport, through which every
RTP and RTCP packet comes in, and is what our senders send through. Incoming bytes that
cannot be parsed are counted and dropped; aiortc's own loop ends the connection at some of
them. Everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from aiortc import rtp
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import AnyRtcpPacket, RtcpPacket, RtpPacket

from realtime.rtc.bitrate import path_ceiling_bps
from realtime.rtc.estimator import BandwidthEstimator
from realtime.rtc.extensions import TRANSPORT_CC, ExtensionMap
from realtime.rtc.pacer import PacketPacer
from realtime.rtc.timing import ntp_now
from realtime.rtc.transport_cc import (
    FEEDBACK_FORMAT,
    FEEDBACK_INTERVAL_S,
    ArrivalLog,
    Feedback,
    SendHistory,
    pack_feedback,
    parse_feedback,
)

#: RTP header, our extensions and the SRTP tag around a payload.
OVERHEAD_BYTES = 12 + 24 + 16
_PARSE_ERRORS = (ValueError, struct.error, IndexError)


@dataclass(slots=True)
class PathStats:
    """Counters since the start."""

    malformed: int = 0
    feedback_sent: int = 0
    feedback_received: int = 0
    pacer_max_ms: float = 0.0
    """Longest time that a packet waited in the pacer."""


class MediaPath:
    """See the module's docstring. `rtcp_ssrc` is set before media flows."""

    def __init__(self, transport: RTCDtlsTransport, start_bps: int) -> None:
        self.transport = transport
        self.extensions = ExtensionMap()
        self.estimator = BandwidthEstimator(path_ceiling_bps(start_bps))
        self.stats = PathStats()
        self.rtcp_ssrc: int | None = None
        self.round_trip_s = 0.1
        self.on_estimate: Callable[[int], None] = lambda bps: None
        self.on_overflow: Callable[[], None] = lambda: None
        self._pacer: PacketPacer[tuple[RtpPacket, float]] = PacketPacer(start_bps)
        self._history = SendHistory()
        self._arrivals = ArrivalLog()
        self._media_ssrc = 0
        self._flushing = False
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        transport._rtp_header_extensions_map = self.extensions
        transport._handle_rtp_data = self._on_rtp  # type: ignore[method-assign]
        transport._handle_rtcp_data = self._on_rtcp  # type: ignore[method-assign]

    @property
    def transport_wide(self) -> bool:
        """Whether the other side reports arrivals (once a report came)."""
        return self.stats.feedback_received > 0

    @property
    def queued(self) -> int:
        """Packets in the pacer."""
        return len(self._pacer)

    def set_target(self, bps: int) -> None:
        """The encoder aims at `bps` now."""
        self._pacer.set_target(bps)

    async def close(self) -> None:
        """Stop; forgets what waits."""
        self._closed = True
        self._pacer.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- out --------------------------------------------------------------------------

    async def send(self, packets: list[RtpPacket], kind: str, *, repair: bool = False) -> None:
        """Send packets of one stream, paced; returns without waiting for the pacer."""
        if self._closed:
            return
        now = time.monotonic()
        for packet in packets:
            item, size = (packet, now), len(packet.payload) + OVERHEAD_BYTES
            if kind == "audio":
                self._pacer.push_audio(item, size)
            elif not self._pacer.push_video(item, size, repair=repair):
                self.on_overflow()
                break
        await self._flush()

    async def _flush(self) -> None:
        """Send what is due and set the timer for the rest."""
        if self._flushing:
            # Whoever is sending looks at the queue again before it ends.
            return
        self._flushing = True
        try:
            while due := self._pacer.pop(time.monotonic()):
                for packet, queued_s in due:
                    await self._transmit(packet, queued_s)
        finally:
            self._flushing = False
        now = time.monotonic()
        deadline = self._pacer.deadline(now)
        if deadline is not None:
            self._arm("pacer", deadline - now, self._flush)

    async def _transmit(self, packet: RtpPacket, queued_s: float) -> None:
        now = time.monotonic()
        self.stats.pacer_max_ms = max(self.stats.pacer_max_ms, (now - queued_s) * 1000)
        if packet.extensions.abs_send_time is not None:
            packet.extensions.abs_send_time = (ntp_now() >> 14) & 0x00FFFFFF
        if self.extensions.has(TRANSPORT_CC):
            size = len(packet.payload) + OVERHEAD_BYTES
            packet.extensions.transport_sequence_number = self._history.add(size, now)
        with contextlib.suppress(ConnectionError):
            await self.transport._send_rtp(packet.serialize(self.extensions))

    # --- in ---------------------------------------------------------------------------

    async def _on_rtp(self, data: bytes, arrival_time_ms: int) -> None:
        """In place of the transport's method: one decrypted RTP packet."""
        now = time.monotonic()
        try:
            packet = RtpPacket.parse(data, self.extensions)
        except _PARSE_ERRORS:
            self.stats.malformed += 1
            return
        sequence = packet.extensions.transport_sequence_number
        if sequence is not None:
            self._arrivals.add(sequence, now)
            self._media_ssrc = packet.ssrc
            if "feedback" not in self._timers:
                self._arm("feedback", FEEDBACK_INTERVAL_S, self._send_feedback)
        receiver = self.transport._rtp_router.route_rtp(packet)
        if receiver is not None:
            await receiver._handle_rtp_packet(packet, arrival_time_ms=arrival_time_ms)

    async def _on_rtcp(self, data: bytes) -> None:
        """In place of the transport's method: one decrypted compound RTCP packet."""
        for chunk in split_rtcp(data):
            kind, form = chunk[1], chunk[0] & 0x1F
            try:
                if kind == rtp.RTCP_RTPFB and form == FEEDBACK_FORMAT:
                    self._on_feedback(parse_feedback(chunk[12:]))
                    continue
                packets = RtcpPacket.parse(chunk)
            except _PARSE_ERRORS:
                self.stats.malformed += 1
                continue
            for packet in packets:
                await self._route(packet)

    async def _route(self, packet: AnyRtcpPacket) -> None:
        router = self.transport._rtp_router
        try:
            recipients = router.route_rtcp(packet)
        except _PARSE_ERRORS:
            self.stats.malformed += 1
            return
        if isinstance(packet, rtp.RtcpPsfbPacket) and packet.fmt == rtp.RTCP_PSFB_FIR:
            # A full intra request names its stream in the FCI (RFC 5104 4.3.1).
            for at in range(0, len(packet.fci) - 7, 8):
                sender = router.senders.get(int.from_bytes(packet.fci[at : at + 4]))
                if sender is not None:
                    recipients.add(sender)
        for recipient in recipients:
            await recipient._handle_rtcp_packet(packet)

    def _on_feedback(self, feedback: Feedback) -> None:
        self.stats.feedback_received += 1
        results = self._history.on_feedback(feedback)
        if results:
            now = time.monotonic()
            self.on_estimate(self.estimator.on_results(results, now, self.round_trip_s))

    async def _send_feedback(self) -> None:
        if self.rtcp_ssrc is None:
            return
        for feedback in self._arrivals.build(time.monotonic()):
            self.stats.feedback_sent += 1
            data = feedback_packet(self.rtcp_ssrc, self._media_ssrc, feedback)
            with contextlib.suppress(ConnectionError):
                await self.transport._send_rtp(data)

    # --- timers -----------------------------------------------------------------------

    def _arm(
        self, name: str, delay_s: float, run: Callable[[], Coroutine[None, None, None]]
    ) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        if self._closed:
            return
        loop = asyncio.get_running_loop()

        def fire() -> None:
            self._timers.pop(name, None)
            task = loop.create_task(run(), name=f"path-{name}")
            self._tasks.add(task)
            task.add_done_callback(self._done)

        self._timers[name] = loop.call_later(max(0.0, delay_s), fire)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{task.get_name()} failed", "exception": error}
            )


def split_rtcp(data: bytes) -> list[bytes]:
    """Cut a compound RTCP packet into its packets; a malformed rest is left out."""
    chunks = []
    at = 0
    while at + 4 <= len(data):
        end = at + 4 + 4 * int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            break
        chunks.append(data[at:end])
        at = end
    return chunks


def feedback_packet(ssrc: int, media_ssrc: int, feedback: Feedback) -> bytes:
    """A complete RTCP packet (RTPFB, format 15) around one report."""
    fci = pack_feedback(feedback)
    padding = -len(fci) % 4
    body = struct.pack("!LL", ssrc, media_ssrc) + fci
    if padding:
        body += bytes(padding - 1) + bytes([padding])
    first = 0x80 | (0x20 if padding else 0) | FEEDBACK_FORMAT
    return struct.pack("!BBH", first, rtp.RTCP_RTPFB, len(body) // 4) + body
