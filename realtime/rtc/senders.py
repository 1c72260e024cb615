"""The outgoing voice and pictures: encoders behind `RtpSender`, nothing that queues.

Everything runs on the event loop but the video encoder, which runs in a dedicated pool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
from aiortc.rtcdtlstransport import RTCDtlsTransport
from numpy.typing import NDArray

from models.rates import VIDEO_CLOCK_HZ, WIRE_RATE_HZ
from realtime.rtc.bitrate import BitrateController, path_ceiling_bps
from realtime.rtc.opus import OpusEncoder
from realtime.rtc.rtp_sender import PathOf, RtpSender
from realtime.rtc.stats import Meter, RateMeter
from realtime.rtc.video_codec import EncodedVideo, VideoEncoder, video_formats

KEY_FRAME_INTERVAL_S = 0.300


class AudioSender(RtpSender):
    """Opus. Encoding takes 0.04 ms per packet, so it happens on the event loop."""

    def __init__(self, transport: RTCDtlsTransport, path_of: PathOf) -> None:
        super().__init__("audio", transport, path_of, WIRE_RATE_HZ)
        self._encoder = OpusEncoder()

    async def push(self, pcm: NDArray[np.int16], index: int) -> None:
        """Send (n,) int16 mono captured from 48 kHz sample `index` on."""
        if self.started:
            for payload, ticks in self._encoder.encode(pcm, index):
                await self._send_payloads([payload], ticks, marker=False)


class VideoSender(RtpSender):
    """VP8 or H.264. Holds one frame at most: a newer one replaces it, nothing queues."""

    def __init__(
        self, transport: RTCDtlsTransport, path_of: PathOf, pool: Executor, bitrate_bps: int
    ) -> None:
        super().__init__("video", transport, path_of, VIDEO_CLOCK_HZ)
        self.on_encoded: Callable[[int, float, bool], None] = lambda index, ms, key: None
        """Called with frame index, encoding time in ms and whether it is a key frame."""
        self.codec = ""
        self.frames_sent = 0
        self.frames_replaced = 0
        self.key_frames = 0
        self.key_frame_requests = 0
        self.encode_times = Meter()
        self.capture_to_send = Meter()
        self.rate = RateMeter()
        self.remb = False
        self._pool = pool
        self._bitrate = BitrateController(bitrate_bps)
        self._encoder: VideoEncoder | None = None
        self._waiting: tuple[NDArray[np.uint8], int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._want_key = True
        self._key_at = float("-inf")
        self._last_index = -1

    @property
    def target_bps(self) -> int:
        """Bit rate that the encoder aims at now."""
        return self._bitrate.target

    @property
    def ceiling_bps(self) -> int:
        """Most that it may aim at."""
        return self._bitrate.ceiling

    @property
    def encoder_name(self) -> str:
        """Which library encodes; empty before negotiation."""
        return "" if self._encoder is None else self._encoder.name

    def set_ceiling(self, bps: int) -> None:
        """Never send more than `bps` of video; takes effect with the next frame."""
        self._bitrate.set_ceiling(bps)
        if self.started:
            self.path.estimator.raise_ceiling(path_ceiling_bps(bps))
            self.path.set_target(self.target_bps)

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
        if self._encoder is not None:
            self._encoder.close()

    def on_key_frame_request(self) -> None:
        """PLI, FIR or a viewer: the next frame is a key frame, at most one every 300 ms."""
        self.key_frame_requests += 1
        self._want_key = True

    def on_estimate(self, bps: int) -> None:
        """REMB: followed only while nothing better is reported."""
        self.remb = True
        if self.started and not self.path.transport_wide:
            self._follow(bps)

    def _on_codec(self, mime: str) -> None:
        video = video_formats()[mime.lower()]
        self.codec = video.mime
        self._encoder = video.make_encoder(self._bitrate.target)
        ceiling = self._bitrate.ceiling
        self._bitrate = BitrateController(ceiling, in_place=self._encoder.in_place)
        self.path.on_estimate = self._follow
        self.path.on_overflow = self.on_key_frame_request
        self.path.rtcp_ssrc = self._ssrc
        self.path.estimator.raise_ceiling(path_ceiling_bps(ceiling))

    def _follow(self, bps: int) -> None:
        if self._bitrate.on_estimate(bps, time.monotonic()):
            self.path.set_target(self.target_bps)

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
            encode_ms = (time.monotonic() - start) * 1000
            if encoded.key:
                self.key_frames += 1
                self._key_at = start
            self.encode_times.add(encode_ms)
            self.on_encoded(index, encode_ms, encoded.key)
            if encoded.payloads and self.started:
                await self._send_payloads(encoded.payloads, encoded.timestamp, marker=True)
                self._note_sent(encoded)

    def _note_sent(self, encoded: EncodedVideo) -> None:
        self.frames_sent += 1
        self.rate.add(sum(len(payload) for payload in encoded.payloads), time.monotonic())
        if self.capture is not None:
            age_s = self.capture.age_s(encoded.timestamp, VIDEO_CLOCK_HZ)
            if age_s is not None:
                self.capture_to_send.add(age_s * 1000)

    def _encode(self, i420: NDArray[np.uint8], index: int, key: bool) -> EncodedVideo:
        """In the pool; only one at a time per sender."""
        assert self._encoder is not None
        self._encoder.bitrate = self._bitrate.target
        return self._encoder.encode(i420, index, key)
