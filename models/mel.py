"""Log-mel spectrogram that never looks ahead, whole or streamed (METHOD.md section 1).

16 kHz mono, STFT window 1280, hop 160, 80 Slaney mel bands from 125 to 7600 Hz. Mel frame
m covers samples [160 m - 1120, 160 m + 160): the window ends with the hop, so a frame is
known as soon as its last sample is. Values are clip((20 log10(max(1e-5, mel)) + 80) / 100, 0, 1).

Streaming and offline results are equal to the last bit at every chunk size, because both
run the same function on the same window of samples.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.rates import MEL_BANDS, MEL_HOP, MEL_WINDOW, MODEL_RATE_HZ

LEFT_CONTEXT = MEL_WINDOW - MEL_HOP
LOW_HZ, HIGH_HZ = 125.0, 7600.0


def _hz_to_slaney(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    return np.where(
        hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4)
    )


def _slaney_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@cache
def mel_filters() -> Array:
    """(641, 80) triangles of unit area per hertz (Slaney normalisation)."""
    bounds = _hz_to_slaney(np.array([LOW_HZ, HIGH_HZ]))
    edges = _slaney_to_hz(np.linspace(bounds[0], bounds[1], MEL_BANDS + 2))
    bins = np.linspace(0, MODEL_RATE_HZ / 2, MEL_WINDOW // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(triangles * 2 / (edges[2:] - edges[:-2]), np.float32)


@cache
def _window() -> Array:
    """Half a square-rooted periodic Hann window, as the original uses."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(MEL_WINDOW) / MEL_WINDOW)
    return (0.5 * np.sqrt(hann)).astype(np.float32)


def _frames_to_mel(frames: Array) -> Array:
    """(T, 1280) samples -> (T, 80). Row by row, so that T cannot change a row's rounding."""
    out = np.empty((len(frames), MEL_BANDS), np.float32)
    filters, window = mel_filters(), _window()
    for i, frame in enumerate(frames):
        magnitude = np.abs(np.fft.rfft(frame * window)).astype(np.float32)
        level = 20 * np.log10(np.maximum(magnitude @ filters, np.float32(1e-5))) - 20
        out[i] = np.clip((level + 100) / 100, 0, 1)
    return out


def log_mel(samples: Array) -> Array:
    """Whole signal, float32 (n,) in [-1, 1] at 16 kHz -> (n // 160, 80) in [0, 1]."""
    return StreamingMel().push(samples)


class StreamingMel:
    """Chunked log-mel; its state is the last 1120 samples and an unfinished hop."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; the past is silence."""
        self._tail: Array = np.zeros(LEFT_CONTEXT, np.float32)

    def push(self, samples: Array) -> Array:
        """Float32 (n,) at 16 kHz -> every mel frame (k, 80) that became complete."""
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples must be one-dimensional, got {samples.shape}")
        signal = np.concatenate([self._tail, samples])
        count = (len(signal) - LEFT_CONTEXT) // MEL_HOP
        self._tail = signal[count * MEL_HOP :]
        if count == 0:
            return np.empty((0, MEL_BANDS), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(signal, MEL_WINDOW)[::MEL_HOP][:count]
        return _frames_to_mel(frames)
