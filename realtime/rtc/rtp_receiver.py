"""One incoming RTP stream: packets, reports and timers.

`RtpReceiver` stands in for aiortc's `RTCRtpReceiver` towards its peer connection and DTLS
transport. What to hold and what to skip is decided by `audio_receive` and
`video_receive`, which know no I/O; subclasses feed them, and this module arms their timers
and sends reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from aiortc import rtp
from aiortc.codecs import is_rtx
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import AnyRtcpPacket, RtpPacket
from aiortc.stats import RTCStatsReport

from realtime.rtc.extensions import Extensions
from realtime.rtc.timing import RemoteClock

MAX_ENCODED_FRAMES = 30
MAX_SOURCES = 4


class RtpReceiver:
    """One incoming stream; subclasses take `_on_media` packets. Event loop only."""

    def __init__(self, kind: str, transport: RTCDtlsTransport, clock_hz: int) -> None:
        self.kind = kind
        self.transport = transport
        self.remote_clock = RemoteClock(clock_hz)
        self._clock_hz = clock_hz
        self._enabled = True
        self._track: MediaStreamTrack | None = None
        self._rtcp_ssrc: int | None = None
        self._media_ssrc: int | None = None
        self._payload_types: set[int] = set()
        self._rtx: dict[int, int] = {}
        self._streams: dict[int, StreamStatistics] = {}
        self._last_report: dict[int, tuple[int, float]] = {}
        self._rtcp_task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due: set[asyncio.Task[None]] = set()
        self._stopped = False

    # --- what aiortc calls ------------------------------------------------------------

    @property
    def track(self) -> MediaStreamTrack | None:
        """aiortc's own track object; this project reads media from callbacks instead."""
        return self._track

    def setTransport(self, transport: RTCDtlsTransport) -> None:  # noqa: N802
        """Bundling moves the stream to another transport before it starts."""
        self.transport = transport

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        self._rtcp_ssrc = ssrc

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Start: negotiation is done and DTLS is up."""
        if self._rtcp_task is not None or self._stopped:
            return
        for codec in parameters.codecs:
            if codec.payloadType is None:
                continue
            apt = codec.parameters.get("apt")
            if is_rtx(codec) and isinstance(apt, int):
                self._rtx[codec.payloadType] = apt
            else:
                self._payload_types.add(codec.payloadType)
                self._on_codec(codec.payloadType, codec.mimeType)
        self.transport._register_rtp_receiver(self, parameters)
        self._rtcp_task = asyncio.create_task(self._run_rtcp(), name=f"rr-{self.kind}")
        self._started()

    async def stop(self) -> None:
        """Stop for good."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._rtcp_task = self._rtcp_task, None
        if task is not None:
            self.transport._unregister_rtp_receiver(self)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*self._due, return_exceptions=True)

    async def getStats(self) -> RTCStatsReport:  # noqa: N802
        """Part of aiortc's surface; this project's figures are attributes."""
        return RTCStatsReport()

    def _handle_disconnect(self) -> None:
        """DTLS went away; the peer's own watchdog closes the session."""

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, rtp.RtcpSrPacket):
            info = packet.sender_info
            self.remote_clock.on_report(info.ntp_timestamp, info.rtp_timestamp)
            short = (info.ntp_timestamp >> 16) & 0xFFFFFFFF
            if packet.ssrc in self._streams:
                self._last_report[packet.ssrc] = (short, time.monotonic())

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        if not self._enabled or self._stopped:
            return
        if packet.ssrc not in self._streams:
            if len(self._streams) >= MAX_SOURCES:
                return
            self._streams[packet.ssrc] = StreamStatistics(self._clock_hz)
        await self._estimate(packet, arrival_time_ms)
        self._streams[packet.ssrc].add(packet)
        if packet.payload_type in self._rtx:
            if self._media_ssrc is None or len(packet.payload) < 2:
                return
            packet = rtp.unwrap_rtx(packet, self._rtx[packet.payload_type], self._media_ssrc)
        elif packet.ssrc != self._media_ssrc:
            changed = self._media_ssrc is not None
            self._media_ssrc = packet.ssrc
            if changed:
                self.remote_clock.reset()
                self._source_changed()
        extensions = packet.extensions
        if isinstance(extensions, Extensions) and extensions.abs_capture_time is not None:
            self.remote_clock.on_capture(extensions.abs_capture_time, packet.timestamp)
        if packet.payload_type in self._payload_types:
            self._on_media(packet)
            await self._run_due()

    # --- subclasses -------------------------------------------------------------------

    def _on_codec(self, payload_type: int, mime: str) -> None:
        """A codec that was negotiated."""

    def _started(self) -> None:
        """The stream may flow from now on."""

    def _source_changed(self) -> None:
        """The sender uses a new SSRC."""

    def _on_media(self, packet: RtpPacket) -> None:
        """One media packet, RTX unwrapped."""
        raise NotImplementedError

    async def _run_due(self) -> None:
        """Do what is due now and arm the timer for what is due later."""
        raise NotImplementedError

    async def _estimate(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        """Bandwidth estimation, where the kind has any."""

    def _arm(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None and not self._stopped:
            delay = max(0.001, deadline - time.monotonic())
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        task = asyncio.create_task(self._run_due(), name=f"due-{self.kind}")
        self._due.add(task)
        task.add_done_callback(self._due_done)

    def _due_done(self, task: asyncio.Task[None]) -> None:
        self._due.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"{self.kind} receiver failed", "exception": error}
            )

    # --- RTCP -------------------------------------------------------------------------

    async def _run_rtcp(self) -> None:
        while True:
            await asyncio.sleep(0.5 + 0.5 * random.random())
            reports = [self._report(ssrc, stream) for ssrc, stream in self._streams.items()]
            if reports and self._rtcp_ssrc is not None:
                await self._send_rtcp(rtp.RtcpRrPacket(ssrc=self._rtcp_ssrc, reports=reports))

    def _report(self, ssrc: int, stream: StreamStatistics) -> rtp.RtcpReceiverInfo:
        lsr, at = self._last_report.get(ssrc, (0, 0.0))
        dlsr = int((time.monotonic() - at) * 65536) & 0xFFFFFFFF if lsr else 0
        return rtp.RtcpReceiverInfo(
            ssrc=ssrc,
            fraction_lost=stream.fraction_lost,
            packets_lost=stream.packets_lost,
            highest_sequence=(stream.cycles + (stream.max_seq or 0)) & 0xFFFFFFFF,
            jitter=stream.jitter,
            lsr=lsr,
            dlsr=dlsr,
        )

    async def _send_rtcp(self, packet: AnyRtcpPacket) -> None:
        with contextlib.suppress(ConnectionError):
            await self.transport._send_rtp(bytes(packet))
