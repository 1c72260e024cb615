"""What the ear gets where audio is missing: the last pitch period, fading out.

Waveform substitution in the spirit of ITU-T G.711 Appendix I: the period that best
repeats the recent past is played again with an overlap, loses its level linearly and is
silence after `FADE_MS`. It is independent of the codec, so that any length of gap can be
filled to the sample.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pcm = NDArray[np.int16]

RATE_HZ = 48_000
FADE_MS = 60
_FADE_SAMPLES = RATE_HZ * FADE_MS // 1000
_HISTORY = RATE_HZ * 40 // 1000
_MIN_LAG = RATE_HZ // 400
_MAX_LAG = RATE_HZ // 66
_MATCH = RATE_HZ * 10 // 1000
_OVERLAP = RATE_HZ // 400
_DECIMATE = 6


class Concealer:
    """Remembers 40 ms of good audio and invents what follows it. Any one thread."""

    def __init__(self) -> None:
        self._history = np.zeros(_HISTORY, np.float32)
        self._period: NDArray[np.float32] | None = None
        self._played = 0

    def push(self, pcm: Pcm) -> Pcm:
        """Take good audio (n,) int16; returns it, its start blended with running concealment."""
        good = pcm.astype(np.float32)
        if self._period is not None:
            n = min(_OVERLAP, len(good))
            tail = self._continue(n)
            ramp = np.linspace(0.0, 1.0, n, endpoint=False, dtype=np.float32)
            good[:n] = good[:n] * ramp + tail * (1.0 - ramp)
            self._period = None
        self._history = np.concatenate([self._history, good])[-_HISTORY:]
        return np.clip(np.rint(good), -32768, 32767).astype(np.int16)

    def conceal(self, samples: int) -> Pcm:
        """Return `samples` int16 samples that continue the past, fading to silence."""
        if self._period is None:
            self._period = self._find_period()
            self._played = 0
        return np.clip(np.rint(self._continue(samples)), -32768, 32767).astype(np.int16)

    def _continue(self, samples: int) -> NDArray[np.float32]:
        assert self._period is not None
        at = self._played + np.arange(samples)
        gain = np.clip(1.0 - at / _FADE_SAMPLES, 0.0, 1.0).astype(np.float32)
        self._played += samples
        result: NDArray[np.float32] = self._period[at % len(self._period)] * gain
        return result

    def _find_period(self) -> NDArray[np.float32]:
        """Best repetition lag by normalised correlation at 8 kHz, then one period of history."""
        low = self._history.reshape(-1, _DECIMATE).mean(axis=1)
        match = _MATCH // _DECIMATE
        lags = np.arange(_MIN_LAG // _DECIMATE, _MAX_LAG // _DECIMATE + 1)
        starts = len(low) - match - lags
        dots = np.correlate(low, low[-match:], "valid")[starts]
        power = np.concatenate([[0.0], np.cumsum(low.astype(np.float64) ** 2)])
        score = dots / (np.sqrt(power[starts + match] - power[starts]) + 1e-3)
        lag = int(lags[int(np.argmax(score))]) * _DECIMATE
        period = self._history[-lag:].copy()
        overlap = min(_OVERLAP, lag // 2)
        before = self._history[-lag - overlap : -lag]
        ramp = np.linspace(0.0, 1.0, overlap, endpoint=False, dtype=np.float32)
        period[-overlap:] = period[-overlap:] * (1.0 - ramp) + before * ramp
        return period
