"""Opus for conversation: 10 ms packets, no lookahead, explicit clock.

The encoder takes capture positions (48 kHz samples) and returns RTP payloads with the RTP
timestamp that belongs to them. Not thread-safe: one caller at a time each.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from models.rates import WIRE_RATE_HZ
from realtime.rtc import libopus

Pcm = NDArray[np.int16]

OPUS_PACKET_SAMPLES = WIRE_RATE_HZ // 100
OPUS_BITRATE = 64_000
_AUDIO_BASE = Fraction(1, WIRE_RATE_HZ)


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
    """Opus payload -> (n,) int16 mono at 48 kHz, by libopus, or FFmpeg's where there is none."""

    def __init__(self, *, direct: bool | None = None) -> None:
        use = libopus.reason() is None if direct is None else direct
        self._direct = libopus.LibopusDecoder() if use else None
        self._codec = av.CodecContext.create("libopus", "r")
        self._codec.format = av.AudioFormat("s16")
        self._codec.layout = "stereo"
        self._codec.sample_rate = WIRE_RATE_HZ

    def decode(self, payload: bytes) -> Pcm:
        """Decode one payload; two channels become one. Raises ValueError."""
        if not payload:
            raise ValueError("empty Opus packet")
        if self._direct is not None:
            return self._direct.decode(payload)
        try:
            frames = self._codec.decode(av.Packet(payload))
        except av.FFmpegError as exc:
            raise ValueError("undecodable Opus packet") from exc
        pcm = np.concatenate([to_mono(frame) for frame in frames]) if frames else None
        if pcm is None or len(pcm) == 0:
            raise ValueError("Opus packet without samples")
        return pcm

    def has_copy(self, payload: bytes) -> bool:
        """Whether `recover` would find a copy of the packet before this one."""
        return self._direct is not None and self._direct.has_copy(payload)

    def recover(self, payload: bytes, samples: int) -> Pcm | None:
        """The `samples` lost before `payload`, if it carries a copy of them."""
        return None if self._direct is None else self._direct.recover(payload, samples)


def to_mono(frame: av.AudioFrame) -> Pcm:
    """Mean of all channels, (n,) int16, of a decoded frame of any sample format."""
    samples = np.asarray(frame.to_ndarray())
    channels = frame.layout.nb_channels
    by_channel = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    mono = by_channel.astype(np.float32).mean(axis=0)
    if not np.issubdtype(samples.dtype, np.integer):
        mono *= 32768.0
    return np.asarray(np.clip(np.rint(mono), -32768, 32767), np.int16)
