"""VP8 for conversation: encoder, and RTP payloads (RFC 7741)."""

from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np
from aiortc.codecs.vpx import VpxPayloadDescriptor
from av.video.frame import PictureType
from numpy.typing import NDArray

from models.rates import FPS, FRAME_TICKS_90K, VIDEO_CLOCK_HZ
from realtime.rtc import libvpx
from realtime.rtc.video_codec import VIDEO_PACKET_BYTES, EncodedVideo, VideoFormat, even_parts

_VIDEO_BASE = Fraction(1, VIDEO_CLOCK_HZ)


class Vp8Encoder:
    """VP8 in real-time mode: constant bit rate, half a second of rate buffer, no lookahead.

    Through libvpx itself a changed bit rate takes effect in place. Where that is not at hand
    FFmpeg's wrapper encodes, and every change opens a new encoder (a key frame); `name` and
    `in_place` say which it is. A changed size opens a new one in both.
    """

    def __init__(self, bitrate: int, *, direct: bool | None = None) -> None:
        self.bitrate = bitrate
        self.in_place = libvpx.reason() is None if direct is None else direct
        self.name = "libvpx" if self.in_place else "libvpx by FFmpeg"
        self._direct: libvpx.LibvpxEncoder | None = None
        self._wrapped: av.VideoCodecContext | None = None
        self._opened_bitrate = 0
        self._picture_id = int.from_bytes(os.urandom(2)) & 0x7FFF

    def encode(self, i420: NDArray[np.uint8], frame_index: int, key: bool) -> EncodedVideo:
        """Encode (H * 3 / 2, W) uint8 I420. `frame_index` counts 25 fps and only grows."""
        pts = frame_index * FRAME_TICKS_90K
        encode = self._encode_direct if self.in_place else self._encode_wrapped
        data, is_key = encode(i420, pts, key)
        self._picture_id = (self._picture_id + 1) & 0x7FFF
        return EncodedVideo(packetize_vp8(data, self._picture_id), pts, is_key)

    def close(self) -> None:
        """Free the encoder; a later frame opens a new one."""
        if self._direct is not None:
            self._direct.close()
        self._direct = self._wrapped = None

    def _encode_direct(self, i420: NDArray[np.uint8], pts: int, key: bool) -> tuple[bytes, bool]:
        height, width = i420.shape[0] * 2 // 3, i420.shape[1]
        codec = self._direct
        if codec is None or (codec.width, codec.height) != (width, height):
            self.close()
            codec = libvpx.LibvpxEncoder(width, height, self.bitrate, FRAME_TICKS_90K)
            self._direct = codec
        codec.set_bitrate(self.bitrate)
        return codec.encode(i420, pts, key)

    def _encode_wrapped(self, i420: NDArray[np.uint8], pts: int, key: bool) -> tuple[bytes, bool]:
        """A fresh `VideoFrame` every time: a forced picture type sticks to a reused one."""
        height, width = i420.shape[0] * 2 // 3, i420.shape[1]
        codec = self._wrapped
        if (
            codec is None
            or (codec.width, codec.height) != (width, height)
            or self._opened_bitrate != self.bitrate
        ):
            codec = self._open_wrapped(width, height)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(i420), format="yuv420p")
        frame.time_base = _VIDEO_BASE
        frame.pts = pts
        frame.pict_type = PictureType.I if key else PictureType.NONE
        packets = codec.encode(frame)
        data = b"".join(bytes(packet) for packet in packets)
        return data, any(packet.is_keyframe for packet in packets)

    def _open_wrapped(self, width: int, height: int) -> av.VideoCodecContext:
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
        self._wrapped = codec
        self._opened_bitrate = self.bitrate
        return codec


def packetize_vp8(data: bytes, picture_id: int) -> list[bytes]:
    """Cut one VP8 frame into RTP payloads of even size (RFC 7741)."""
    descriptor = VpxPayloadDescriptor(partition_start=1, partition_id=0, picture_id=picture_id)
    payloads = []
    for part in even_parts(data, VIDEO_PACKET_BYTES - len(bytes(descriptor))):
        payloads.append(bytes(descriptor) + part)
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


VP8 = VideoFormat("video/VP8", Vp8Encoder, parse_vp8, "libvpx")
