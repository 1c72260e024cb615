"""Outgoing RTP: event-driven, one capture clock, sender reports at once.

`RtpSender` stands in for aiortc's `RTCRtpSender` towards its peer connection and DTLS
transport, and differs where latency and lip-sync are decided: media is pushed into it
(no track, no wall-clock sleep), RTP timestamps are capture positions, sender reports map
them to the capture clock, and the history for retransmission is four times as long.
Everything runs on the event loop but the video encoder, which runs in a dedicated pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
from aiortc import rtp
from aiortc.codecs import is_rtx
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpSendParameters
from aiortc.rtp import AnyRtcpPacket, RtpPacket
from aiortc.stats import RTCStatsReport
from numpy.typing import NDArray

from models.rates import VIDEO_CLOCK_HZ, WIRE_RATE_HZ
from realtime.rtc.bitrate import BitrateController
from realtime.rtc.codecs import EncodedVideo, OpusEncoder, Vp8Encoder
from realtime.rtc.timing import CaptureClock, ntp_now

HISTORY_PACKETS = 512
REPORT_INTERVAL_S = 1.0
KEY_FRAME_INTERVAL_S = 0.300
_RTT_WEIGHT = 0.15


class RtpSender:
    """One outgoing stream. `capture` is set by the peer before the first media."""

    def __init__(self, kind: str, transport: RTCDtlsTransport, clock_hz: int) -> None:
        self.kind = kind
        self.transport = transport
        self.capture: CaptureClock | None = None
        self.round_trip_s: float | None = None
        self.packets_sent = 0
        self.bytes_sent = 0
        self.packets_lost = 0
        self.retransmitted = 0
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
        self._cname = ""
        self._mid = ""
        self._extensions = rtp.HeaderExtensionsMap()
        self._history: dict[int, RtpPacket] = {}
        self._last_ticks: int | None = None
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
        for other in parameters.codecs:
            if is_rtx(other) and other.parameters.get("apt") == codec.payloadType:
                self._rtx_payload_type = other.payloadType
        self._cname = parameters.rtcp.cname or ""
        self._mid = parameters.muxId
        self._extensions.configure(parameters)
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
            for sequence in packet.lost[:HISTORY_PACKETS]:
                await self._retransmit(sequence)
        elif isinstance(packet, rtp.RtcpPsfbPacket):
            if packet.fmt in (rtp.RTCP_PSFB_PLI, rtp.RTCP_PSFB_FIR):
                self.on_key_frame_request()
            elif packet.fmt == rtp.RTCP_PSFB_APP:
                self._on_remb(packet)

    # --- what subclasses use ----------------------------------------------------------

    @property
    def started(self) -> bool:
        """Negotiated and able to send."""
        return self._rtcp_task is not None and self._enabled

    def on_key_frame_request(self) -> None:
        """The receiver asked for a key frame (PLI or FIR)."""

    def on_estimate(self, bps: int) -> None:
        """The receiver estimated the path's bit rate (REMB)."""

    async def _send_payloads(self, payloads: list[bytes], ticks: int, marker: bool) -> None:
        """Send one frame; `ticks` is its capture time in units of the RTP clock."""
        assert self._payload_type is not None
        for i, payload in enumerate(payloads):
            packet = RtpPacket(
                payload_type=self._payload_type,
                marker=int(marker and i == len(payloads) - 1),
                sequence_number=self._sequence,
                timestamp=(self._origin + ticks) & 0xFFFFFFFF,
                ssrc=self._ssrc,
                payload=payload,
            )
            packet.extensions.mid = self._mid
            packet.extensions.abs_send_time = (ntp_now() >> 14) & 0x00FFFFFF
            self._history[self._sequence % HISTORY_PACKETS] = packet
            self._sequence = (self._sequence + 1) & 0xFFFF
            await self._send(packet)
            self.packets_sent += 1
            self.bytes_sent += len(payload)
        first = self._last_ticks is None
        self._last_ticks = ticks
        if first:
            await self._send_report()

    async def _send(self, packet: RtpPacket) -> None:
        with contextlib.suppress(ConnectionError):
            await self.transport._send_rtp(packet.serialize(self._extensions))

    async def _retransmit(self, sequence: int) -> None:
        packet = self._history.get(sequence % HISTORY_PACKETS)
        if packet is None or packet.sequence_number != sequence:
            return
        self.retransmitted += 1
        if self._rtx_payload_type is not None:
            packet = rtp.wrap_rtx(
                packet,
                payload_type=self._rtx_payload_type,
                sequence_number=self._rtx_sequence,
                ssrc=self._rtx_ssrc,
            )
            self._rtx_sequence = (self._rtx_sequence + 1) & 0xFFFF
        await self._send(packet)

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
        sent = self._reports_out.get(report.lsr)
        if sent is None or not report.dlsr:
            return
        rtt = max(0.0, time.monotonic() - sent - report.dlsr / 65536)
        old = self.round_trip_s
        self.round_trip_s = rtt if old is None else old + _RTT_WEIGHT * (rtt - old)

    def _on_remb(self, packet: rtp.RtcpPsfbPacket) -> None:
        try:
            bps, ssrcs = rtp.unpack_remb_fci(packet.fci)
        except ValueError:
            return
        if self._ssrc in ssrcs:
            self.on_estimate(bps)


class AudioSender(RtpSender):
    """Opus. Encoding takes 0.04 ms per packet, so it happens on the event loop."""

    def __init__(self, transport: RTCDtlsTransport) -> None:
        super().__init__("audio", transport, WIRE_RATE_HZ)
        self._encoder = OpusEncoder()

    async def push(self, pcm: NDArray[np.int16], index: int) -> None:
        """Send (n,) int16 mono captured from 48 kHz sample `index` on."""
        if self.started:
            for payload, ticks in self._encoder.encode(pcm, index):
                await self._send_payloads([payload], ticks, marker=False)


class VideoSender(RtpSender):
    """VP8. Holds one frame at most: a newer one replaces it, nothing queues."""

    def __init__(self, transport: RTCDtlsTransport, pool: Executor, bitrate_bps: int) -> None:
        super().__init__("video", transport, VIDEO_CLOCK_HZ)
        self.on_encoded: Callable[[int, float, bool], None] = lambda index, ms, key: None
        """Called with frame index, encoding time in ms and whether it is a key frame."""
        self.frames_sent = 0
        self.frames_replaced = 0
        self.key_frames = 0
        self.key_frame_requests = 0
        self._pool = pool
        self._bitrate = BitrateController(bitrate_bps)
        self._encoder = Vp8Encoder(bitrate_bps)
        self._waiting: tuple[NDArray[np.uint8], int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._want_key = True
        self._key_at = float("-inf")
        self._last_index = -1

    @property
    def target_bps(self) -> int:
        """Bit rate that the encoder aims at now."""
        return self._bitrate.target

    def push(self, i420: NDArray[np.uint8], frame_index: int) -> None:
        """Encode and send (H * 3 / 2, W) uint8; an index not above the last one is dropped."""
        if not self.started or frame_index <= self._last_index:
            return
        self._last_index = frame_index
        if self._waiting is not None:
            self.frames_replaced += 1
        self._waiting = (i420, frame_index)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="video-encode")

    async def stop(self) -> None:
        """Stop; waits for an encode that is under way."""
        self._waiting = None
        self._enabled = False
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await super().stop()

    def on_key_frame_request(self) -> None:
        """PLI or FIR: the next frame is a key frame, at most one every 300 ms."""
        self.key_frame_requests += 1
        self._want_key = True

    def on_estimate(self, bps: int) -> None:
        """REMB: the encoder follows with hysteresis."""
        self._bitrate.on_estimate(bps, time.monotonic())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while (waiting := self._waiting) is not None:
            self._waiting = None
            i420, index = waiting
            start = time.monotonic()
            key = self._want_key and start - self._key_at >= KEY_FRAME_INTERVAL_S
            if key:
                self._want_key = False
            encoded = await loop.run_in_executor(self._pool, self._encode, i420, index, key)
            if encoded.key:
                self.key_frames += 1
                self._key_at = start
            self.on_encoded(index, (time.monotonic() - start) * 1000, encoded.key)
            if encoded.payloads and self.started:
                await self._send_payloads(encoded.payloads, encoded.timestamp, marker=True)
                self.frames_sent += 1

    def _encode(self, i420: NDArray[np.uint8], index: int, key: bool) -> EncodedVideo:
        """In the pool; only one at a time per sender."""
        self._encoder.bitrate = self._bitrate.target
        return self._encoder.encode(i420, index, key)
