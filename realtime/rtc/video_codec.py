"""What senders and receivers know of a video codec: the formats, and how one is made.

VP8 is what every WebRTC peer has (RFC 7742) and is preferred; H.264 is for those who only
have that one (OBS, hardware encoders).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

VIDEO_PACKET_BYTES = 1200


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """One encoded frame, cut into RTP payloads."""

    payloads: list[bytes]
    timestamp: int
    """RTP ticks at 90 kHz of the frame's capture time, not yet offset."""
    key: bool


class VideoEncoder(Protocol):
    """One outgoing video stream's encoder. One caller at a time."""

    bitrate: int
    """Bits per second to aim at; a change takes effect with the next frame."""

    @property
    def name(self) -> str:
        """Which library encodes, for people."""

    @property
    def in_place(self) -> bool:
        """Whether a changed bit rate costs no key frame."""

    def encode(self, i420: NDArray[np.uint8], frame_index: int, key: bool) -> EncodedVideo:
        """Encode (H * 3 / 2, W) uint8 I420; `frame_index` counts 25 fps and only grows."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """A codec on the wire."""

    mime: str
    make_encoder: Callable[[int], VideoEncoder]
    """Bits per second -> encoder."""
    parse: Callable[[bytes], tuple[bytes, bool]]
    """RTP payload -> (its part of the frame, whether a key frame begins). Raises ValueError."""
    decoder: str
    """FFmpeg's name of the decoder."""


def even_parts(data: bytes, room: int) -> list[bytes]:
    """Cut `data` into as few parts of at most `room` bytes as possible, of even size."""
    count = -(-len(data) // room)
    cuts = [i * len(data) // count for i in range(count + 1)] if count else [0]
    return [data[start:end] for start, end in pairwise(cuts)]


def video_formats() -> dict[str, VideoFormat]:
    """Every format by its lower-case MIME type, best first."""
    from realtime.rtc.h264 import H264
    from realtime.rtc.vp8 import VP8

    return {f.mime.lower(): f for f in (VP8, H264)}


def default_encoder(bitrate_bps: int) -> VideoEncoder:
    """An encoder of the format that is negotiated wherever the other side has it."""
    return next(iter(video_formats().values())).make_encoder(bitrate_bps)
