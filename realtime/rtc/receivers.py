"""The incoming voice and pictures: `RtpReceiver` in front of buffers and decoders.

Audio is decoded on the event loop (0.05 ms), video in one thread per stream behind a
bounded queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import av
from aiortc import rtp
from aiortc.rate import RemoteBitrateEstimator
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtp import RtpPacket

from models.rates import VIDEO_CLOCK_HZ, WIRE_RATE_HZ
from realtime.rtc.audio_receive import AudioBlock, AudioReceiveBuffer
from realtime.rtc.red import RED_MIME, parse_red
from realtime.rtc.rtp_receiver import RtpReceiver
from realtime.rtc.stats import FreezeMeter
from realtime.rtc.video_codec import VideoFormat, video_formats
from realtime.rtc.video_decoder import VideoDecoder
from realtime.rtc.video_receive import Fragment, VideoReceiveBuffer


class AudioReceiver(RtpReceiver):
    """Opus into an `AudioReceiveBuffer`; blocks go to `on_blocks` the moment they are due."""

    def __init__(self, transport: RTCDtlsTransport, buffer: AudioReceiveBuffer) -> None:
        super().__init__("audio", transport, WIRE_RATE_HZ)
        self.buffer = buffer
        self.on_blocks: Callable[[list[AudioBlock]], None] = lambda blocks: None
        self._opus: int | None = None
        self._red: int | None = None

    def _on_codec(self, payload_type: int, mime: str) -> None:
        if mime == RED_MIME:
            self._red = payload_type
        else:
            self._opus = payload_type

    def start_clock(self) -> None:
        """Fill with silence from now on until audio comes, so that the session clock runs."""
        self.buffer.start(time.monotonic())
        self._arm(self.buffer.deadline())

    def _started(self) -> None:
        self.start_clock()

    def _source_changed(self) -> None:
        self.buffer.reset_stream()

    def _on_media(self, packet: RtpPacket) -> None:
        now = time.monotonic()
        sequence, timestamp, payload = packet.sequence_number, packet.timestamp, packet.payload
        if packet.payload_type == self._red and self._opus is not None:
            try:
                *earlier, (payload, _) = parse_red(payload, self._opus)
            except ValueError:
                return
            for back, (copy, ticks) in zip(range(len(earlier), 0, -1), earlier, strict=True):
                then = (timestamp - ticks) & 0xFFFFFFFF
                self.buffer.recover_packet((sequence - back) & 0xFFFF, then, copy, now)
        self.buffer.push(sequence, timestamp, payload, now)

    async def _run_due(self) -> None:
        if self._stopped:
            return
        blocks = self.buffer.poll(time.monotonic())
        if blocks:
            self.on_blocks(blocks)
        self._arm(self.buffer.deadline())


class VideoReceiver(RtpReceiver):
    """Video through a `VideoReceiveBuffer` and a decoder thread; only the latest picture counts.

    `on_frame` is called on the event loop; its frame's `pts` is the unwrapped 90 kHz RTP
    timestamp. Frames decoded while an earlier one waits for the loop replace it.
    """

    def __init__(self, transport: RTCDtlsTransport) -> None:
        super().__init__("video", transport, VIDEO_CLOCK_HZ)
        self.buffer = VideoReceiveBuffer()
        self.on_frame: Callable[[av.VideoFrame], None] = lambda frame: None
        self.frames_decoded = 0
        self.frames_replaced = 0
        self.freezes = FreezeMeter()
        self._formats: dict[int, VideoFormat] = {}
        self._estimator = RemoteBitrateEstimator()
        self._decoder: VideoDecoder | None = None

    async def stop(self) -> None:
        """Stop; ends the decoder thread."""
        await super().stop()
        if self._decoder is not None:
            decoder, self._decoder = self._decoder, None
            await asyncio.to_thread(decoder.stop)

    def _on_codec(self, payload_type: int, mime: str) -> None:
        video = video_formats().get(mime.lower())
        if video is not None:
            self._formats[payload_type] = video

    def _started(self) -> None:
        loop = asyncio.get_running_loop()
        name = next((video.decoder for video in self._formats.values()), "libvpx")
        self._decoder = VideoDecoder(loop, name, self._deliver, self._failed)

    def _source_changed(self) -> None:
        self.buffer.restart()

    def _deliver(self, frame: av.VideoFrame, replaced: int) -> None:
        self.freezes.on_frame(time.monotonic())
        self.frames_decoded += 1 + replaced
        self.frames_replaced += replaced
        if not self._stopped:
            self.on_frame(frame)

    def _failed(self) -> None:
        self.buffer.request_key_frame()

    async def _estimate(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        send_time = packet.extensions.abs_send_time
        if send_time is None or self._rtcp_ssrc is None:
            return
        if packet.extensions.transport_sequence_number is not None:
            # The sender estimates by itself, from our reports of arrivals.
            return
        estimate = self._estimator.add(
            abs_send_time=send_time,
            arrival_time_ms=arrival_time_ms,
            payload_size=len(packet.payload) + packet.padding_size,
            ssrc=packet.ssrc,
        )
        if estimate is not None:
            remb = rtp.RtcpPsfbPacket(
                fmt=rtp.RTCP_PSFB_APP,
                ssrc=self._rtcp_ssrc,
                media_ssrc=0,
                fci=rtp.pack_remb_fci(*estimate),
            )
            await self._send_rtcp(remb)

    def _on_media(self, packet: RtpPacket) -> None:
        video = self._formats.get(packet.payload_type)
        if video is None:
            return
        try:
            data, key_start = video.parse(packet.payload)
        except ValueError:
            return
        fragment = Fragment(
            packet.sequence_number, packet.timestamp, bool(packet.marker), data, key_start
        )
        self.buffer.push(fragment, time.monotonic())

    async def _run_due(self) -> None:
        if self._stopped:
            return
        due = self.buffer.poll(time.monotonic())
        for frame in due.frames:
            if self._decoder is not None and not self._decoder.put(frame):
                self.buffer.request_key_frame()
                break
        if self._rtcp_ssrc is not None and self._media_ssrc is not None:
            if due.nack:
                nack = rtp.RtcpRtpfbPacket(
                    fmt=rtp.RTCP_RTPFB_NACK, ssrc=self._rtcp_ssrc, media_ssrc=self._media_ssrc
                )
                nack.lost = due.nack
                await self._send_rtcp(nack)
            if due.pli:
                pli = rtp.RtcpPsfbPacket(
                    fmt=rtp.RTCP_PSFB_PLI, ssrc=self._rtcp_ssrc, media_ssrc=self._media_ssrc
                )
                await self._send_rtcp(pli)
        self._arm(self.buffer.deadline())
