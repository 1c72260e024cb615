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
from aiortc.rtp import RtpPacket
from numpy.typing import NDArray

from models.rates import VIDEO_CLOCK_HZ, WIRE_RATE_HZ
from realtime.rtc.bitrate import BitrateController, path_ceiling_bps
from realtime.rtc.media_path import OVERHEAD_BYTES
from realtime.rtc.opus import OpusEncoder
from realtime.rtc.protection import HOLD_S, LEAST_LOSS, Protection
from realtime.rtc.red import pack_red
from realtime.rtc.rtp_sender import PathOf, RtpSender
from realtime.rtc.stats import Meter, RateMeter
from realtime.rtc.video_codec import EncodedVideo, VideoEncoder, video_formats

KEY_FRAME_INTERVAL_S = 0.300


class AudioSender(RtpSender):
    """Opus. Encoding takes 0.04 ms per packet, so it happens on the event loop.

    While the path loses packets every packet carries the one before it once more (`red`).
    """

    def __init__(self, transport: RTCDtlsTransport, path_of: PathOf) -> None:
        super().__init__("audio", transport, path_of, WIRE_RATE_HZ)
        self.redundant_sent = 0
        self._encoder = OpusEncoder()
        self._before: tuple[bytes, int] | None = None
        self._lossy_until_s = float("-inf")

    async def push(self, pcm: NDArray[np.int16], index: int) -> None:
        """Send (n,) int16 mono captured from 48 kHz sample `index` on."""
        if not self.started:
            return
        for payload, ticks in self._encoder.encode(pcm, index):
            before, self._before = self._before, (payload, ticks)
            red = self._red_payload_type
            if red is None or self._payload_type is None or not self._lossy(time.monotonic()):
                await self._send_payloads([payload], ticks, marker=False)
                continue
            earlier = None if before is None else (before[0], ticks - before[1])
            packed = pack_red(self._payload_type, payload, earlier)
            self.redundant_sent += earlier is not None
            await self._send_payloads([packed], ticks, marker=False, payload_type=red)

    def on_loss(self, share: float) -> None:
        """Receiver reports count as much as transport-wide ones: either names our voice."""
        if share >= LEAST_LOSS:
            self._lossy_until_s = time.monotonic() + HOLD_S

    def _lossy(self, now: float) -> bool:
        if self.path.transport_wide and self.path.estimator.loss >= LEAST_LOSS:
            self._lossy_until_s = now + HOLD_S
        return now < self._lossy_until_s


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
        self.protection = Protection()
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
        """Bit rate of the pictures now, copies of their packets included."""
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

    def on_loss(self, share: float) -> None:
        """Receiver reports count only while nothing better is reported."""
        if self.started and not self.path.transport_wide:
            self.protection.note_loss(share, time.monotonic())

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
            bps = self._encoder_bps(start)
            encoded = await loop.run_in_executor(self._pool, self._encode, i420, index, key, bps)
            encode_ms = (time.monotonic() - start) * 1000
            if encoded.key:
                self.key_frames += 1
                self._key_at = start
            self.encode_times.add(encode_ms)
            self.on_encoded(index, encode_ms, encoded.key)
            if encoded.payloads and self.started:
                packets = await self._send_payloads(
                    encoded.payloads, encoded.timestamp, marker=True
                )
                await self._send_copies(packets)
                self._note_sent(encoded)

    def _encoder_bps(self, now: float) -> int:
        """What the encoder may use; one that cannot change in place is left as it is."""
        assert self._encoder is not None
        if self.path.transport_wide:
            self.protection.note_loss(self.path.estimator.loss, now)
        if not self._encoder.in_place:
            return self.target_bps
        return self.protection.encoder_bps(self.target_bps, self.ceiling_bps, now)

    async def _send_copies(self, packets: list[RtpPacket]) -> None:
        """Send packets of a frame again behind it, while the path loses some."""
        if self._rtx_payload_type is None:
            # The same packet twice is a replay to SRTP.
            return
        sizes = [len(packet.payload) + OVERHEAD_BYTES for packet in packets]
        chosen = self.protection.choose(sizes, self.target_bps, time.monotonic())
        copies = [self._as_repair(packets[place]) for place in chosen]
        if copies and self.started:
            await self.path.send(copies, self.kind)

    def _repair_copies(self) -> int:
        """On a path that loses packets a repair is lost as easily as what it repairs."""
        return 2 if self.protection.active(time.monotonic()) else 1

    def _note_sent(self, encoded: EncodedVideo) -> None:
        self.frames_sent += 1
        self.rate.add(sum(len(payload) for payload in encoded.payloads), time.monotonic())
        if self.capture is not None:
            age_s = self.capture.age_s(encoded.timestamp, VIDEO_CLOCK_HZ)
            if age_s is not None:
                self.capture_to_send.add(age_s * 1000)

    def _encode(self, i420: NDArray[np.uint8], index: int, key: bool, bps: int) -> EncodedVideo:
        """In the pool; only one at a time per sender."""
        assert self._encoder is not None
        self._encoder.bitrate = bps
        return self._encoder.encode(i420, index, key)
