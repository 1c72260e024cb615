"""Opus and VP8 for conversation: no lookahead, no thread of their own, explicit clocks.

Encoders take capture positions (48 kHz samples, video frame numbers) and return RTP
payloads with the RTP timestamp that belongs to them. Not thread-safe: one caller at a
time each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from aiortc.codecs.vpx import VpxPayloadDescriptor
from av.video.frame import PictureType
from numpy.typing import NDArray

from models.rates import FPS, FRAME_TICKS_90K, VIDEO_CLOCK_HZ, WIRE_RATE_HZ

Pcm = NDArray[np.int16]

OPUS_PACKET_SAMPLES = WIRE_RATE_HZ // 100
OPUS_BITRATE = 64_000
VIDEO_PACKET_BYTES = 1200
_AUDIO_BASE = Fraction(1, WIRE_RATE_HZ)
_VIDEO_BASE = Fraction(1, VIDEO_CLOCK_HZ)


class OpusEncoder:
    """Mono Opus, 10 ms packets, restricted low delay (2.5 ms of codec delay instead of 6.5)."""

    def __init__(self, bitrate: int = OPUS_BITRATE) -> None:
        self._codec = av.CodecContext.create("libopus", "w")
        self._codec.bit_rate = bitrate
        self._codec.format = av.AudioFormat("s16")
        self._codec.layout = "mono"
        self._codec.sample_rate = WIRE_RATE_HZ
        self._codec.time_base = _AUDIO_BASE
        self._codec.options = {
            "application": "lowdelay",
            "frame_duration": "10",
            "compression_level": "5",
        }
        self._pending: Pcm = np.zeros(0, np.int16)
        self._at = 0
        self._encoded = 0

    def encode(self, pcm: Pcm, index: int) -> list[tuple[bytes, int]]:
        """Take (n,) int16 starting at 48 kHz sample `index`; return (payload, timestamp) pairs.

        The timestamp is the capture position of what a decoder plays for that packet: the
        encoder's own delay is already taken off.
        """
        if index != self._at + len(self._pending):
            self._pending = np.zeros(0, np.int16)
            self._at = index
        self._pending = np.concatenate([self._pending, pcm])
        packets: list[tuple[bytes, int]] = []
        while len(self._pending) >= OPUS_PACKET_SAMPLES:
            chunk = self._pending[:OPUS_PACKET_SAMPLES]
            self._pending = self._pending[OPUS_PACKET_SAMPLES:]
            frame = av.AudioFrame.from_ndarray(chunk[None], format="s16", layout="mono")
            frame.sample_rate = WIRE_RATE_HZ
            frame.time_base = _AUDIO_BASE
            frame.pts = self._encoded
            for packet in self._codec.encode(frame):
                # libopus answers every frame with its packet, stamped earlier by its delay.
                delay = self._encoded - (packet.pts or 0)
                packets.append((bytes(packet), self._at - delay))
            self._at += OPUS_PACKET_SAMPLES
            self._encoded += OPUS_PACKET_SAMPLES
        return packets


class OpusDecoder:
    """Opus payload -> (n,) int16 mono at 48 kHz. Raises ValueError for an undecodable one."""

    def __init__(self) -> None:
        self._codec = av.CodecContext.create("libopus", "r")
        self._codec.format = av.AudioFormat("s16")
        self._codec.layout = "stereo"
        self._codec.sample_rate = WIRE_RATE_HZ

    def decode(self, payload: bytes) -> Pcm:
        """Decode one payload; two channels become their mean."""
        if not payload:
            raise ValueError("empty Opus packet")
        try:
            frames = self._codec.decode(av.Packet(payload))
        except av.FFmpegError as exc:
            raise ValueError("undecodable Opus packet") from exc
        pcm = np.concatenate([_to_mono(frame) for frame in frames]) if frames else None
        if pcm is None or len(pcm) == 0:
            raise ValueError("Opus packet without samples")
        return pcm


def _to_mono(frame: av.AudioFrame) -> Pcm:
    samples = np.asarray(frame.to_ndarray())
    channels = frame.layout.nb_channels
    by_channel = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    mono = by_channel.astype(np.float32).mean(axis=0)
    if not np.issubdtype(samples.dtype, np.integer):
        mono *= 32768.0
    return np.asarray(np.clip(np.rint(mono), -32768, 32767), np.int16)


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """One encoded frame, cut into RTP payloads."""

    payloads: list[bytes]
    timestamp: int
    """RTP ticks at 90 kHz of the frame's capture time, not yet offset."""
    key: bool


class Vp8Encoder:
    """VP8 in real-time mode: constant bit rate, half a second of rate buffer, no lookahead.

    A changed size or target rate opens a new encoder (and costs a key frame), so callers
    change the rate rarely (`realtime.rtc.bitrate`).
    """

    def __init__(self, bitrate: int) -> None:
        self.bitrate = bitrate
        self._codec: av.VideoCodecContext | None = None
        self._opened_bitrate = 0
        self._picture_id = int.from_bytes(os.urandom(2)) & 0x7FFF

    def encode(self, i420: NDArray[np.uint8], frame_index: int, key: bool) -> EncodedVideo:
        """Encode (H * 3 / 2, W) uint8 I420. `frame_index` counts 25 fps and only grows.

        A fresh `VideoFrame` is made for every call: a forced picture type sticks to a
        frame that is encoded twice.
        """
        height, width = i420.shape[0] * 2 // 3, i420.shape[1]
        codec = self._codec
        if (
            codec is None
            or (codec.width, codec.height) != (width, height)
            or self._opened_bitrate != self.bitrate
        ):
            codec = self._open(width, height)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(i420), format="yuv420p")
        frame.time_base = _VIDEO_BASE
        frame.pts = frame_index * FRAME_TICKS_90K
        frame.pict_type = PictureType.I if key else PictureType.NONE
        packets = codec.encode(frame)
        data = b"".join(bytes(packet) for packet in packets)
        self._picture_id = (self._picture_id + 1) & 0x7FFF
        return EncodedVideo(
            payloads=packetize_vp8(data, self._picture_id),
            timestamp=frame_index * FRAME_TICKS_90K,
            key=any(packet.is_keyframe for packet in packets),
        )

    def _open(self, width: int, height: int) -> av.VideoCodecContext:
        codec = av.CodecContext.create("libvpx", "w")
        codec.width, codec.height = width, height
        codec.bit_rate = self.bitrate
        codec.pix_fmt = "yuv420p"
        codec.time_base = _VIDEO_BASE
        codec.framerate = Fraction(FPS, 1)
        codec.gop_size = 3000
        codec.qmin, codec.qmax = 2, 52
        codec.thread_count = 1
        codec.options = {
            "bufsize": str(self.bitrate // 2),
            "minrate": str(self.bitrate),
            "maxrate": str(self.bitrate),
            "cpu-used": "-8",
            "deadline": "realtime",
            "lag-in-frames": "0",
            "error-resilient": "0",
            "max-intra-rate": "400",
            "noise-sensitivity": "0",
            "overshoot-pct": "25",
            "undershoot-pct": "100",
            "static-thresh": "1",
        }
        self._codec = codec
        self._opened_bitrate = self.bitrate
        return codec


def packetize_vp8(data: bytes, picture_id: int) -> list[bytes]:
    """Cut one VP8 frame into RTP payloads of even size (RFC 7741)."""
    if not data:
        return []
    descriptor = VpxPayloadDescriptor(partition_start=1, partition_id=0, picture_id=picture_id)
    room = VIDEO_PACKET_BYTES - len(bytes(descriptor))
    count = -(-len(data) // room)
    payloads = []
    for i in range(count):
        start, end = i * len(data) // count, (i + 1) * len(data) // count
        payloads.append(bytes(descriptor) + data[start:end])
        descriptor.partition_start = 0
    return payloads


def parse_vp8(payload: bytes) -> tuple[bytes, bool]:
    """Strip the payload descriptor: (data, first fragment of a key frame).

    Raises ValueError for a malformed descriptor. RFC 7741 section 4.2, RFC 6386 section 9.1.
    """
    if not payload:
        return b"", False
    descriptor, data = VpxPayloadDescriptor.parse(payload)
    starts = descriptor.partition_start == 1 and descriptor.partition_id == 0
    return data, bool(starts and data and not data[0] & 1)
