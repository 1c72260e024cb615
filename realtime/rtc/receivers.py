"""Incoming RTP: immediate release, latest picture only.

`RtpReceiver` stands in for aiortc's `RTCRtpReceiver` towards its peer connection and DTLS
transport. What to hold and what to skip is decided by `audio_receive` and
`video_receive`, which know no I/O; this module feeds them, arms their timers and sends
their feedback. Audio is decoded on the event loop (0.05 ms), video in one thread per
stream behind a bounded queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable

import av
from aiortc import rtp
from aiortc.codecs import is_rtx
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rate import RemoteBitrateEstimator
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import StreamStatistics
from aiortc.rtp import AnyRtcpPacket, RtpPacket
from aiortc.stats import RTCStatsReport

from models.rates import VIDEO_CLOCK_HZ, WIRE_RATE_HZ
from realtime.rtc.audio_receive import AudioBlock, AudioReceiveBuffer
from realtime.rtc.codecs import parse_vp8
from realtime.rtc.timing import RemoteClock
from realtime.rtc.video_receive import EncodedFrame, Fragment, VideoReceiveBuffer

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
        await self._estimate(packet, arrival_time_ms)
        if packet.ssrc not in self._streams:
            if len(self._streams) >= MAX_SOURCES:
                return
            self._streams[packet.ssrc] = StreamStatistics(self._clock_hz)
        self._streams[packet.ssrc].add(packet)
        if packet.payload_type in self._rtx:
            if self._media_ssrc is None or len(packet.payload) < 2:
                return
            packet = rtp.unwrap_rtx(packet, self._rtx[packet.payload_type], self._media_ssrc)
        elif packet.ssrc != self._media_ssrc:
            changed = self._media_ssrc is not None
            self._media_ssrc = packet.ssrc
            if changed:
                self._source_changed()
        if packet.payload_type in self._payload_types:
            self._on_media(packet)
            await self._run_due()

    # --- subclasses -------------------------------------------------------------------

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


class AudioReceiver(RtpReceiver):
    """Opus into an `AudioReceiveBuffer`; blocks go to `on_blocks` the moment they are due."""

    def __init__(self, transport: RTCDtlsTransport, buffer: AudioReceiveBuffer) -> None:
        super().__init__("audio", transport, WIRE_RATE_HZ)
        self.buffer = buffer
        self.on_blocks: Callable[[list[AudioBlock]], None] = lambda blocks: None

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
        self.buffer.push(packet.sequence_number, packet.timestamp, packet.payload, now)

    async def _run_due(self) -> None:
        if self._stopped:
            return
        blocks = self.buffer.poll(time.monotonic())
        if blocks:
            self.on_blocks(blocks)
        self._arm(self.buffer.deadline())


class VideoReceiver(RtpReceiver):
    """VP8 through a `VideoReceiveBuffer` and a decoder thread; only the latest picture counts.

    `on_frame` is called on the event loop; its frame's `pts` is the unwrapped 90 kHz RTP
    timestamp. Frames decoded while an earlier one waits for the loop replace it.
    """

    def __init__(self, transport: RTCDtlsTransport) -> None:
        super().__init__("video", transport, VIDEO_CLOCK_HZ)
        self.buffer = VideoReceiveBuffer()
        self.on_frame: Callable[[av.VideoFrame], None] = lambda frame: None
        self.frames_decoded = 0
        self.frames_replaced = 0
        self._estimator = RemoteBitrateEstimator()
        self._decoder: _Decoder | None = None

    async def stop(self) -> None:
        """Stop; ends the decoder thread."""
        await super().stop()
        if self._decoder is not None:
            decoder, self._decoder = self._decoder, None
            await asyncio.to_thread(decoder.stop)

    def _started(self) -> None:
        self._decoder = _Decoder(asyncio.get_running_loop(), self._deliver, self._failed)

    def _deliver(self, frame: av.VideoFrame, replaced: int) -> None:
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
        try:
            data, key_start = parse_vp8(packet.payload)
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


class _Decoder:
    """VP8 decoder thread: a bounded queue in, the latest picture out."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[av.VideoFrame, int], None],
        failed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._failed = failed
        self._queue: queue.Queue[EncodedFrame | None] = queue.Queue(MAX_ENCODED_FRAMES)
        self._lock = threading.Lock()
        self._latest: av.VideoFrame | None = None
        self._replaced = 0
        self._thread = threading.Thread(target=self._run, name="video-decode", daemon=True)
        self._thread.start()

    def put(self, frame: EncodedFrame) -> bool:
        """Queue one frame; False if the decoder fell a second behind (all is dropped)."""
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            self._clear()
            return False
        return True

    def stop(self) -> None:
        """End the thread and wait for it. Not on the event loop."""
        self._clear()
        self._queue.put(None)
        self._thread.join()

    def _clear(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except queue.Empty:
            return

    def _run(self) -> None:
        codec = av.CodecContext.create("libvpx", "r")
        assert isinstance(codec, av.VideoCodecContext)
        codec.thread_count = 1
        while (encoded := self._queue.get()) is not None:
            packet = av.Packet(encoded.data)
            packet.pts = encoded.timestamp
            try:
                frames = codec.decode(packet)
            except av.FFmpegError:
                self._call(self._failed)
                continue
            for frame in frames:
                with self._lock:
                    waiting = self._latest is not None
                    self._replaced += int(waiting)
                    self._latest = frame
                if not waiting:
                    self._call(self._take)

    def _take(self) -> None:
        with self._lock:
            frame, self._latest = self._latest, None
            replaced, self._replaced = self._replaced, 0
        if frame is not None:
            self._deliver(frame, replaced)

    def _call(self, function: Callable[[], None]) -> None:
        # The loop may have closed; nobody is left to look at the picture.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)
