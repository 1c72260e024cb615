"""Log-mel of a whole signal in numpy, and in torch for the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.log_mel import HOP, WINDOW


def log_mel(
    samples: NDArray[Any], window: NDArray[Any], filters: NDArray[Any]
) -> NDArray[np.float64]:
    """(n,) at 16 kHz -> (n // 160, 80); silence before the first sample."""
    signal = np.concatenate([np.zeros(WINDOW - HOP), samples.astype(np.float64)])
    count = len(samples) // HOP
    frames = np.stack([signal[i * HOP : i * HOP + WINDOW] for i in range(count)])
    magnitude = np.abs(np.fft.rfft(frames * window.astype(np.float64)))
    level = 20 * np.log10(np.maximum(magnitude @ filters.astype(np.float64), 1e-5)) - 20
    return np.asarray(np.clip((level + 100) / 100, 0, 1))


def torch_reference(frames: Any, window: Any, filters: Any) -> Any:
    """(B, T, 1280) windows of samples -> (B, T, 80)."""
    import torch

    magnitude = torch.fft.rfft(frames * window).abs()
    level = 20 * torch.log10((magnitude @ filters).clamp_min(1e-5)) - 20
    return ((level + 100) / 100).clamp(0, 1)


__all__ = ["log_mel", "torch_reference"]
