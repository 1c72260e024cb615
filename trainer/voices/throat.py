"""Other throats for the same words: pitch and vocal tract changed, time kept exactly.

A phase vocoder in which every output frame is computed from the input at its own time (Flanagan
and Golden, 1966; the phases of neighbouring bins locked as Puckette does, 1995), so nothing can
run ahead or behind. Stretching by overlap and correlation sounds crisper but places its pieces
up to 20 ms off, and a mouth would learn that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.rates import MODEL_RATE_HZ

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
C128 = NDArray[np.complex128]
_SIZE, _HOP = 512, 128
_WINDOW = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_SIZE) / _SIZE)
#: Quefrencies up to here are resonances, above it the pitch: 16 kHz / 32 = 500 Hz.
_LIFTER = 32
_MOST_DB = 25.0


def throat(samples: F32, pitch: float, tract: float | None = None) -> F32:
    """16 kHz samples (n,) with pitch times `pitch` and resonances times `tract` -> the same shape.

    `tract` above 1 is a shorter vocal tract; left out it follows the pitch, as when a tape
    runs faster. Women against men: about 1.7 and 1.17; children 2.2 and 1.35.
    """
    tract = pitch if tract is None else tract
    if pitch == tract == 1.0 or len(samples) < _SIZE:
        return samples.copy()
    fast = resample(samples, round(MODEL_RATE_HZ * pitch / 100) * 100)
    pitch = round(MODEL_RATE_HZ * pitch / 100) * 100 / MODEL_RATE_HZ
    count = len(samples) // _HOP + 2
    # Output frame i is centred at i * hop, and so at i * hop / pitch of the faster signal.
    centre = np.round(np.arange(count) * _HOP / pitch).astype(int)
    now, before = _spectra(fast, centre), _spectra(fast, centre - _HOP)
    now *= _move_resonances(now, tract / pitch)
    out = _overlap(_advance_phases(now, before), len(samples))
    level = np.sqrt((samples**2).mean() / ((out**2).mean() + 1e-12))
    return np.asarray(out * level, np.float32)


def resample(samples: F32, rate_hz: int, to_hz: int = MODEL_RATE_HZ) -> F32:
    """Change the rate by the spectrum; (n,) -> (round(n * to / from),)."""
    if rate_hz == to_hz:
        return samples
    count = round(len(samples) * to_hz / rate_hz)
    # Padding keeps the end from wrapping round to the beginning.
    pad = rate_hz // 10
    total = len(samples) + pad
    total += -total % rate_hz
    spectrum = np.fft.rfft(samples, total)
    out_total = total * to_hz // rate_hz
    bins = out_total // 2 + 1
    kept = np.pad(spectrum[:bins], (0, max(0, bins - len(spectrum))))
    out = np.fft.irfft(kept, out_total) * (to_hz / rate_hz)
    return out[:count].astype(np.float32)


def _spectra(samples: F32, centre: NDArray[np.int64]) -> C128:
    """Windowed spectra (T, 257) around the sample numbers `centre`; outside there is silence."""
    padded = np.pad(samples, _SIZE * 2)
    start = np.minimum(centre + 2 * _SIZE - _SIZE // 2, len(padded) - _SIZE)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _SIZE)[start]
    return np.asarray(np.fft.rfft(frames * _WINDOW), np.complex128)


def _move_resonances(spectra: C128, ratio: float) -> F64:
    """Gains (T, 257) that move the smooth envelope of each spectrum to `ratio` times its place."""
    if ratio == 1.0:
        return np.ones(spectra.shape)
    level = np.log(np.abs(spectra) + 1e-4)
    cepstrum = np.fft.irfft(level)
    keep = np.zeros(_SIZE)
    keep[: _LIFTER + 1] = 0.5 + 0.5 * np.cos(np.pi * np.arange(_LIFTER + 1) / _LIFTER)
    keep[-_LIFTER:] = keep[_LIFTER:0:-1]
    smooth = np.fft.rfft(cepstrum * keep).real
    at = np.minimum(np.arange(level.shape[1]) / ratio, level.shape[1] - 1.001)
    low = at.astype(int)
    moved = smooth[:, low] + (at - low) * (smooth[:, low + 1] - smooth[:, low])
    most = _MOST_DB / 20 * np.log(10)
    return np.asarray(np.exp(np.clip(moved - smooth, -most, most)))


def _advance_phases(now: C128, before: C128) -> C128:
    """Magnitudes of `now` with phases that go on from frame to frame.

    `before` is one hop earlier in the input, so both say by how much each phase turns in a hop.
    """
    turn = now * np.conj(before)
    turn /= np.abs(turn) + 1e-12
    out = np.empty_like(now)
    out[0] = now[0]
    for i in range(1, len(now)):
        last = out[i - 1]
        # Bins of one partial turn together: neighbours alternate in sign under the window.
        locked = last.copy()
        locked[1:] -= last[:-1]
        locked[:-1] -= last[1:]
        phase = turn[i] * locked
        out[i] = np.abs(now[i]) * phase / (np.abs(phase) + 1e-12)
    return out


def _overlap(spectra: C128, length: int) -> F64:
    """Overlap and add frames centred at multiples of the hop -> (length,)."""
    frames = np.fft.irfft(spectra, _SIZE) * _WINDOW
    total = np.zeros((len(frames) - 1) * _HOP + _SIZE)
    for i, frame in enumerate(frames):
        total[i * _HOP : i * _HOP + _SIZE] += frame
    # Squared Hann windows at a quarter of their length sum to 1.5.
    out = total[_SIZE // 2 : _SIZE // 2 + length] / 1.5
    return np.pad(out, (0, length - len(out)))
