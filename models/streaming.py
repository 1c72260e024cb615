"""Typed streaming state between sensors and networks: everything is causal and bounded.

Each class proves the same contract in the tests: feeding a signal in chunks of any size
gives exactly what feeding it whole gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.codes import Array
from models.config import ModelConfig
from models.mel import StreamingMel
from models.rates import FPS, MEL_BANDS, MEL_HOP, MEL_PER_FRAME, MODEL_RATE_HZ

_HOP_S = MEL_HOP / MODEL_RATE_HZ


@dataclass(frozen=True, slots=True)
class LoudnessConfig:
    """Slow automatic gain in the log-mel domain, where a gain is an addition.

    The tracked level follows loud frames upwards at `rise_db_per_s` and decays at
    `fall_db_per_s` while frames lie within `speech_range_db` of it, five times slower in
    silence. The gain moves it to `target_db`, within bounds, so that silence is never
    turned up to speech.
    """

    target_db: float = -10.0
    start_db: float = -10.0
    rise_db_per_s: float = 100.0
    fall_db_per_s: float = 5.0
    silence_fall_db_per_s: float = 1.0
    speech_range_db: float = 25.0
    min_gain_db: float = -20.0
    max_gain_db: float = 20.0


class Loudness:
    """Running gain over mel frames; state is one level in dB."""

    def __init__(self, config: LoudnessConfig | None = None) -> None:
        self.config = config or LoudnessConfig()
        self.reset()

    def reset(self) -> None:
        """Back to the starting level."""
        self.level_db = self.config.start_db

    def push(self, mel_TM: Array) -> Array:
        """(k, 80) log-mel in [0, 1] -> the same, levelled; frame by frame, causal."""
        c = self.config
        out = np.empty_like(mel_TM)
        loud_db = 10 * np.log10(np.mean(10.0 ** (mel_TM.astype(np.float64) * 10 - 8), axis=1))
        floor_db = c.target_db - c.max_gain_db
        for i, db in enumerate(loud_db):
            step = float(db) - self.level_db
            silent = step < -c.speech_range_db
            fall = c.silence_fall_db_per_s if silent else c.fall_db_per_s
            up, down = c.rise_db_per_s * _HOP_S, -fall * _HOP_S
            self.level_db = max(self.level_db + min(max(step, down), up), floor_db)
            gain_db = min(max(c.target_db - self.level_db, c.min_gain_db), c.max_gain_db)
            out[i] = np.clip(mel_TM[i] + np.float32(gain_db / 100), 0, 1)
        return out


class AudioWindow:
    """Samples in, one mel window per video frame out.

    Frame f's window is mel frames [4f - left_mel, 4f + 4 + 4r), so it comes out with the
    sample that ends it, `config.lookahead_ms` after the frame's start. Before the first
    sample there is silence.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._mel = StreamingMel()
        self._loudness = Loudness()
        self.reset()

    def reset(self) -> None:
        """Start a new signal at frame 0."""
        self._mel.reset()
        self._loudness.reset()
        self._frames: Array = np.zeros((self.config.left_mel, MEL_BANDS), np.float32)
        self.next_frame = 0

    def push(self, samples: Array) -> list[tuple[int, Array]]:
        """Float32 (n,) at 16 kHz -> [(frame index, (mel_window, 80))] of the full windows."""
        fresh = self._loudness.push(self._mel.push(samples))
        frames = np.concatenate([self._frames, fresh])
        window = self.config.mel_window
        out = []
        start = 0
        while start + window <= len(frames):
            out.append((self.next_frame, frames[start : start + window]))
            self.next_frame += 1
            start += MEL_PER_FRAME
        self._frames = frames[start:]
        return out


class ExpressionWindow:
    """Trailing mean of the last `length` codes in O(1) per push (METHOD.md section 5).

    The sum is kept in float64 and rebuilt once per turn of the ring, so hours of additions
    cannot drift.
    """

    def __init__(self, length: int, dim: int) -> None:
        if length < 1:
            raise ValueError(f"window length must be at least 1, got {length}")
        self.length = length
        self._ring = np.zeros((length, dim), np.float64)
        self.reset()

    def reset(self) -> None:
        """Forget all codes."""
        self._ring[:] = 0
        self._sum = np.zeros(self._ring.shape[1])
        self._count = 0
        self._next = 0

    def push(self, code: Array) -> Array:
        """Add a code (dim,), return the mean of the last min(count, length) codes, float32."""
        self._sum += code - self._ring[self._next]
        self._ring[self._next] = code
        self._next = (self._next + 1) % self.length
        if self._next == 0:
            self._sum = self._ring.sum(0)
        self._count = min(self._count + 1, self.length)
        return (self._sum / self._count).astype(np.float32)


class OneEuro:
    """One-Euro filter (Casiez et al., CHI 2012) on vectors: still when still, quick when quick.

    `cutoff_hz` smooths a resting signal, `beta` (Hz per unit/s) opens the filter with speed.
    """

    def __init__(
        self,
        cutoff_hz: float = 1.5,
        beta: float = 8.0,
        rate_hz: float = FPS,
        speed_cutoff_hz: float = 1.0,
    ) -> None:
        self.cutoff_hz, self.beta = cutoff_hz, beta
        self.rate_hz, self.speed_cutoff_hz = rate_hz, speed_cutoff_hz
        self.reset()

    def reset(self) -> None:
        """The next value passes unchanged."""
        self._value: Array | None = None
        self._speed: Array | None = None

    def push(self, value: Array, dt_s: float | None = None) -> Array:
        """Filter one vector; `dt_s` is the time since the last one (default 1 / rate)."""
        value = np.asarray(value, np.float32)
        if self._value is None or self._speed is None:
            self._value, self._speed = value.copy(), np.zeros_like(value)
            return value.copy()
        dt = max(dt_s if dt_s is not None else 1 / self.rate_hz, 1e-4)
        speed = (value - self._value) / dt
        a = _smoothing(self.speed_cutoff_hz, dt)
        self._speed = self._speed + np.float32(a) * (speed - self._speed)
        cutoff = self.cutoff_hz + self.beta * float(np.abs(self._speed).max())
        b = _smoothing(cutoff, dt)
        self._value = self._value + np.float32(b) * (value - self._value)
        return self._value.copy()


def _smoothing(cutoff_hz: float, dt_s: float) -> float:
    return 1 / (1 + 1 / (2 * math.pi * cutoff_hz * dt_s))
