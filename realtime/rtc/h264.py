"""H.264 constrained baseline for peers without VP8: encoder, and RTP payloads (RFC 6184).

Packetization mode 1: single NAL units, STAP-A for the parameter sets, FU-A for what does
not fit.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from models.rates import FPS, FRAME_TICKS_90K, VIDEO_CLOCK_HZ
from realtime.rtc.video_codec import VIDEO_PACKET_BYTES, EncodedVideo, VideoFormat, even_parts

START_CODE = b"\x00\x00\x00\x01"
_IDR, _SPS, _PPS, _STAP_A, _FU_A = 5, 7, 8, 24, 28
_VIDEO_BASE = Fraction(1, VIDEO_CLOCK_HZ)
#: x264 follows a bit rate in place, but not its rate buffer: below this share of what the
#: buffer was made for, a frame could be too large for the path, so a new encoder is opened.
_REOPEN_BELOW = 0.25


class H264Encoder:
    """x264 without lookahead or B frames, rate buffer of two frames, IDR only when asked."""

    name = "libx264"
    in_place = True

    def __init__(self, bitrate: int) -> None:
        self.bitrate = bitrate
        self._codec: av.VideoCodecContext | None = None
        self._opened_bitrate = 0

    def encode(self, i420: NDArray[np.uint8], frame_index: int, key: bool) -> EncodedVideo:
        """Encode (H * 3 / 2, W) uint8 I420. `frame_index` counts 25 fps and only grows."""
        height, width = i420.shape[0] * 2 // 3, i420.shape[1]
        codec = self._codec
        fits = _REOPEN_BELOW * self._opened_bitrate <= self.bitrate <= self._opened_bitrate
        if codec is None or (codec.width, codec.height) != (width, height) or not fits:
            codec = self._open(width, height)
        codec.bit_rate = self.bitrate
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(i420), format="yuv420p")
        frame.time_base = _VIDEO_BASE
        frame.pts = frame_index * FRAME_TICKS_90K
        frame.pict_type = PictureType.I if key else PictureType.NONE
        packets = codec.encode(frame)
        data = b"".join(bytes(packet) for packet in packets)
        is_key = any(packet.is_keyframe for packet in packets)
        return EncodedVideo(packetize_h264(data), frame_index * FRAME_TICKS_90K, is_key)

    def close(self) -> None:
        """Free the encoder; a later frame opens a new one."""
        self._codec = None

    def _open(self, width: int, height: int) -> av.VideoCodecContext:
        codec = av.CodecContext.create("libx264", "w")
        codec.width, codec.height = width, height
        codec.bit_rate = self.bitrate
        codec.pix_fmt = "yuv420p"
        codec.time_base = _VIDEO_BASE
        codec.framerate = Fraction(FPS, 1)
        codec.gop_size = 100_000
        codec.thread_count = 1
        codec.profile = "Baseline"
        codec.options = {
            "preset": "superfast",
            "tune": "zerolatency",
            "level": "31",
            "forced-idr": "1",
            "maxrate": str(self.bitrate),
            "bufsize": str(2 * self.bitrate // FPS),
            "x264-params": "scenecut=0:sliced-threads=0",
        }
        self._codec = codec
        self._opened_bitrate = self.bitrate
        return codec


def split_annex_b(data: bytes) -> list[bytes]:
    """NAL units of a byte stream (H.264 Annex B), start codes removed."""
    units = []
    start = data.find(b"\x00\x00\x01")
    while start >= 0:
        start += 3
        following = data.find(b"\x00\x00\x01", start)
        end = len(data) if following < 0 else following
        # A fourth zero belongs to the next start code: no NAL unit ends in zero (7.4.1).
        if unit := data[start:end].rstrip(b"\x00"):
            units.append(unit)
        start = following
    return units


def packetize_h264(data: bytes) -> list[bytes]:
    """Cut one access unit (Annex B) into RTP payloads (RFC 6184 section 5)."""
    payloads: list[bytes] = []
    parameters: list[bytes] = []
    for unit in split_annex_b(data):
        if unit[0] & 0x1F in (_SPS, _PPS) and len(unit) < 256:
            parameters.append(unit)
            continue
        payloads += _stap(parameters)
        parameters = []
        payloads += [unit] if len(unit) <= VIDEO_PACKET_BYTES else _fragment(unit)
    return payloads + _stap(parameters)


def _stap(units: list[bytes]) -> list[bytes]:
    if len(units) < 2:
        return units
    importance = max(unit[0] & 0x60 for unit in units)
    sized = b"".join(len(unit).to_bytes(2) + unit for unit in units)
    return [bytes([importance | _STAP_A]) + sized]


def _fragment(unit: bytes) -> list[bytes]:
    indicator, kind = unit[0] & 0xE0 | _FU_A, unit[0] & 0x1F
    parts = even_parts(unit[1:], VIDEO_PACKET_BYTES - 2)
    last = len(parts) - 1
    return [
        bytes([indicator, kind | (0x80 if i == 0 else 0) | (0x40 if i == last else 0)]) + part
        for i, part in enumerate(parts)
    ]


def parse_h264(payload: bytes) -> tuple[bytes, bool]:
    """One RTP payload -> (its part of the byte stream, whether an IDR picture begins here).

    Raises ValueError for a malformed or unsupported payload.
    """
    if not payload:
        return b"", False
    kind = payload[0] & 0x1F
    if 1 <= kind <= 23:
        return START_CODE + payload, kind in (_IDR, _SPS)
    if kind == _STAP_A:
        return _parse_stap(payload)
    if kind != _FU_A:
        raise ValueError(f"H.264 payload type {kind} is not of packetization mode 1")
    if len(payload) < 2:
        raise ValueError("truncated FU-A")
    if not payload[1] & 0x80:
        return payload[2:], False
    header = payload[0] & 0xE0 | payload[1] & 0x1F
    return START_CODE + bytes([header]) + payload[2:], payload[1] & 0x1F == _IDR


def _parse_stap(payload: bytes) -> tuple[bytes, bool]:
    out, key, at = [], False, 1
    while at < len(payload):
        size = int.from_bytes(payload[at : at + 2])
        unit = payload[at + 2 : at + 2 + size]
        if size == 0 or len(unit) < size:
            raise ValueError("truncated STAP-A")
        out.append(START_CODE + unit)
        key = key or unit[0] & 0x1F in (_IDR, _SPS)
        at += 2 + size
    return b"".join(out), key


H264 = VideoFormat("video/H264", H264Encoder, parse_h264, "h264")
