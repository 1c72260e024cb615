"""One outgoing RTP stream: event-driven, one capture clock, sender reports at once.

`RtpSender` stands in for aiortc's `RTCRtpSender` towards its peer connection and DTLS
transport, and differs where latency and lip-sync are decided: media is pushed into it
(no track, no wall-clock sleep), RTP timestamps are capture positions, sender reports map
them to the capture clock, and the history for retransmission is eight times as long.
Everything runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import secrets
import struct
import time
import uuid
from collections.abc import Callable

from aiortc import rtp
from aiortc.codecs import is_rtx
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpSendParameters
from aiortc.rtp import AnyRtcpPacket, RtpPacket
from aiortc.stats import RTCStatsReport

from realtime.rtc.extensions import Extensions
from realtime.rtc.media_path import MediaPath
from realtime.rtc.red import RED_MIME
from realtime.rtc.timing import CaptureClock

HISTORY_PACKETS = 1024
REPORT_INTERVAL_S = 1.0
#: Sound says its capture time with the first packet and then once a second.
CAPTURE_TIME_EVERY = 100
_RTT_WEIGHT = 0.15

PathOf = Callable[[RTCDtlsTransport], MediaPath]


class RtpSender:
    """One outgoing stream. `capture` is set by the peer before the first media."""

    def __init__(
        self, kind: str, transport: RTCDtlsTransport, path_of: PathOf, clock_hz: int
    ) -> None:
        self.kind = kind
        self.transport = transport
        self.capture: CaptureClock | None = None
        self.round_trip_s: float | None = None
        self.packets_sent = 0
        self.bytes_sent = 0
        self.packets_lost = 0
        self.nacks_received = 0
        self.retransmitted = 0
        self.plis_received = 0
        self.playout_delay_ms: tuple[int, int] | None = None
        """Asked of the receiver with every frame, where the extension is negotiated."""
        self._path_of = path_of
        self._clock_hz = clock_hz
        self._enabled = True
        self._ssrc = secrets.randbits(32)
        self._rtx_ssrc = secrets.randbits(32)
        self._stream_id = str(uuid.uuid4())
        self._track_id = str(uuid.uuid4())
        self._origin = secrets.randbits(32)
        self._sequence = secrets.randbits(15)
        self._rtx_sequence = secrets.randbits(15)
        self._payload_type: int | None = None
        self._rtx_payload_type: int | None = None
        self._red_payload_type: int | None = None
        self._cname = ""
        self._mid = ""
        self._history: dict[int, RtpPacket] = {}
        self._last_ticks: int | None = None
        self._frames_marked = 0
        self._reports_out: dict[int, float] = {}
        self._rtcp_task: asyncio.Task[None] | None = None

    # --- what aiortc calls ------------------------------------------------------------

    @property
    def track(self) -> MediaStreamTrack | None:
        """Always None: media is pushed."""
        return None

    def replaceTrack(self, track: MediaStreamTrack | None) -> None:  # noqa: N802
        """Part of aiortc's surface; this sender takes no track."""
        raise TypeError("media is pushed into this sender, it has no track")

    def setTransport(self, transport: RTCDtlsTransport) -> None:  # noqa: N802
        """Bundling moves the stream to another transport before it starts."""
        self.transport = transport

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        """Start: negotiation is done and DTLS is up."""
        if self._rtcp_task is not None:
            return
        codec = parameters.codecs[0]
        self._payload_type = codec.payloadType
        self._on_codec(codec.mimeType)
        for other in parameters.codecs:
            if is_rtx(other) and other.parameters.get("apt") == codec.payloadType:
                self._rtx_payload_type = other.payloadType
            elif other.mimeType == RED_MIME:
                self._red_payload_type = other.payloadType
        self._cname = parameters.rtcp.cname or ""
        self._mid = parameters.muxId
        self.transport._register_rtp_sender(self, parameters)
        self._rtcp_task = asyncio.create_task(self._run_rtcp(), name=f"rtcp-{self.kind}")

    async def stop(self) -> None:
        """Stop for good; says BYE."""
        task, self._rtcp_task = self._rtcp_task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._send_rtcp([rtp.RtcpByePacket(sources=[self._ssrc])])
        self.transport._unregister_rtp_sender(self)
        self._history.clear()

    async def getStats(self) -> RTCStatsReport:  # noqa: N802
        """Part of aiortc's surface; this project's figures are attributes."""
        return RTCStatsReport()

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        if isinstance(packet, (rtp.RtcpRrPacket, rtp.RtcpSrPacket)):
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self._on_receiver_report(report)
        elif isinstance(packet, rtp.RtcpRtpfbPacket) and packet.fmt == rtp.RTCP_RTPFB_NACK:
            self.nacks_received += len(packet.lost)
            await self._retransmit(packet.lost)
        elif isinstance(packet, rtp.RtcpPsfbPacket):
            if packet.fmt in (rtp.RTCP_PSFB_PLI, rtp.RTCP_PSFB_FIR):
                self.plis_received += 1
                self.on_key_frame_request()
            elif packet.fmt == rtp.RTCP_PSFB_APP:
                self._on_remb(packet)

    # --- what subclasses use ----------------------------------------------------------

    @property
    def started(self) -> bool:
        """Negotiated and able to send."""
        return self._rtcp_task is not None and self._enabled

    @property
    def path(self) -> MediaPath:
        """What it sends through."""
        return self._path_of(self.transport)

    def _on_codec(self, mime: str) -> None:
        """Which codec was negotiated."""

    def on_key_frame_request(self) -> None:
        """The receiver asked for a key frame (PLI or FIR)."""

    def on_estimate(self, bps: int) -> None:
        """The receiver estimated the path's bit rate (REMB)."""

    def on_loss(self, share: float) -> None:
        """A receiver report says that this share of our packets was lost lately, 0 .. 1."""

    async def _send_payloads(
        self, payloads: list[bytes], ticks: int, marker: bool, payload_type: int | None = None
    ) -> list[RtpPacket]:
        """Send one frame; `ticks` is its capture time in units of the RTP clock.

        `payload_type` if it is not the negotiated codec's. Returns its packets.
        """
        payload_type = self._payload_type if payload_type is None else payload_type
        assert payload_type is not None
        packets: list[RtpPacket] = []
        for i, payload in enumerate(payloads):
            packet = RtpPacket(
                payload_type=payload_type,
                marker=int(marker and i == len(payloads) - 1),
                sequence_number=self._sequence,
                timestamp=(self._origin + ticks) & 0xFFFFFFFF,
                ssrc=self._ssrc,
                payload=payload,
            )
            # The time itself is filled in when the packet leaves the pacer.
            extensions = Extensions(
                mid=self._mid, abs_send_time=0 if self.kind == "video" else None
            )
            if i == 0:
                self._mark_frame(extensions, ticks)
            packet.extensions = extensions
            self._history[self._sequence % HISTORY_PACKETS] = packet
            self._sequence = (self._sequence + 1) & 0xFFFF
            packets.append(packet)
            self.packets_sent += 1
            self.bytes_sent += len(payload)
        await self.path.send(packets, self.kind)
        first = self._last_ticks is None
        self._last_ticks = ticks
        if first:
            await self._send_report()
        return packets

    def _mark_frame(self, extensions: Extensions, ticks: int) -> None:
        """What a frame's first packet says about it."""
        due = self.kind == "video" or self._frames_marked % CAPTURE_TIME_EVERY == 0
        if due and self.capture is not None:
            ntp = self.capture.ntp(ticks, self._clock_hz)
            extensions.abs_capture_time = ntp & 0xFFFFFFFFFFFFFFFF
        extensions.playout_delay_ms = self.playout_delay_ms
        self._frames_marked += 1

    async def _retransmit(self, sequences: list[int]) -> None:
        """Send again what is still known, each once per request."""
        packets = []
        for sequence in dict.fromkeys(sequences[:HISTORY_PACKETS]):
            packet = self._history.get(sequence % HISTORY_PACKETS)
            if packet is not None and packet.sequence_number == sequence:
                packets.append(packet)
        self.retransmitted += len(packets)
        repairs = [self._as_repair(packet) for packet in packets * self._repair_copies()]
        await self.path.send(repairs, self.kind, repair=True)

    def _repair_copies(self) -> int:
        """How often a repair is sent."""
        return 1

    def _as_repair(self, packet: RtpPacket) -> RtpPacket:
        """`packet` as a retransmission (RFC 4588); itself where that was not negotiated."""
        if self._rtx_payload_type is None:
            return packet
        repair = rtp.wrap_rtx(
            packet,
            payload_type=self._rtx_payload_type,
            sequence_number=self._rtx_sequence,
            ssrc=self._rtx_ssrc,
        )
        repair.extensions = dataclasses.replace(packet.extensions)
        self._rtx_sequence = (self._rtx_sequence + 1) & 0xFFFF
        return repair

    # --- RTCP -------------------------------------------------------------------------

    async def _run_rtcp(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S * (0.75 + 0.5 * random.random()))
            await self._send_report()

    async def _send_report(self) -> None:
        """Sender report of the last frame's *capture* time, and who we are (RFC 3550 6.4.1)."""
        if self._last_ticks is None or self.capture is None:
            return
        ntp = self.capture.ntp(self._last_ticks, self._clock_hz)
        self._reports_out[(ntp >> 16) & 0xFFFFFFFF] = time.monotonic()
        while len(self._reports_out) > 8:
            del self._reports_out[next(iter(self._reports_out))]
        report = rtp.RtcpSrPacket(
            ssrc=self._ssrc,
            sender_info=rtp.RtcpSenderInfo(
                ntp_timestamp=ntp & 0xFFFFFFFFFFFFFFFF,
                rtp_timestamp=(self._origin + self._last_ticks) & 0xFFFFFFFF,
                packet_count=self.packets_sent & 0xFFFFFFFF,
                octet_count=self.bytes_sent & 0xFFFFFFFF,
            ),
        )
        names = rtp.RtcpSourceInfo(ssrc=self._ssrc, items=[(1, self._cname.encode())])
        await self._send_rtcp([report, rtp.RtcpSdesPacket(chunks=[names])])

    async def _send_rtcp(self, packets: list[AnyRtcpPacket]) -> None:
        with contextlib.suppress(ConnectionError):
            await self.transport._send_rtp(b"".join(bytes(packet) for packet in packets))

    def _on_receiver_report(self, report: rtp.RtcpReceiverInfo) -> None:
        self.packets_lost = report.packets_lost
        self.on_loss(report.fraction_lost / 256)
        sent = self._reports_out.get(report.lsr)
        if sent is None or not report.dlsr:
            return
        rtt = max(0.0, time.monotonic() - sent - report.dlsr / 65536)
        old = self.round_trip_s
        self.round_trip_s = rtt if old is None else old + _RTT_WEIGHT * (rtt - old)
        self.path.round_trip_s = self.round_trip_s

    def _on_remb(self, packet: rtp.RtcpPsfbPacket) -> None:
        try:
            bps, ssrcs = rtp.unpack_remb_fci(packet.fci)
        except (ValueError, struct.error):
            return
        if self._ssrc in ssrcs:
            self.on_estimate(bps)
