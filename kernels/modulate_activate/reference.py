"""The same in numpy (float64), and in torch for the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.modulate_activate import FIR_TAPS, NOTHING, Epilogue

Values = NDArray[np.float64]


def _float(array: Any) -> Values:
    return np.asarray(array, np.float64)


def activate(v: Values, e: Epilogue) -> Values:
    """(batch, channels, height, width) -> the same shape."""
    if e.gain is not None:
        v = v * (e.gain_add + _float(e.gain))[:, :, None, None]
    if e.shift is not None:
        v = v + _float(e.shift)[:, :, None, None]
    if e.noise is not None:
        strength = 1.0 if e.strength is None else _float(e.strength)[0]
        v = v + strength * _float(e.noise)[:, None]
    if e.bias is not None:
        v = v + _float(e.bias)[:, None, None]
    v = np.where(v < 0, v * e.slope, v) * e.scale
    if e.limit > 0:
        v = np.clip(v, -e.limit, e.limit)
    return v if e.residual is None else v + _float(e.residual)


def modulate(x: NDArray[Any], e: Epilogue, bias: NDArray[Any] | None = None) -> Values:
    """See `kernels.modulate_activate.modulate`."""
    v = _float(x)
    return activate(v if bias is None else v + _float(bias)[:, None, None], e)


def fir(
    x: NDArray[Any], size: tuple[int, int], e: Epilogue = NOTHING, *, up: int = 2, pad: int = 2
) -> Values:
    """See `kernels.modulate_activate.fir`: zeros in between, padding, convolution."""
    batch, channels, height, width = x.shape
    wide = np.zeros((batch, channels, height * up, width * up))
    wide[:, :, ::up, ::up] = x
    after = [size[0] + FIR_TAPS, size[1] + FIR_TAPS]
    wide = np.pad(wide, ((0, 0), (0, 0), (pad, after[0]), (pad, after[1])))
    taps = np.array([1, 3, 3, 1]) / 4  # twice the mean per axis: four times for the zeros
    out = np.zeros((batch, channels, *size))
    for j in range(FIR_TAPS):
        for i in range(FIR_TAPS):
            out += taps[j] * taps[i] * wide[:, :, j : j + size[0], i : i + size[1]]
    return activate(out, e)


def demodulate(squares: NDArray[Any], style: NDArray[Any], epsilon: float = 1e-8) -> Values:
    """See `kernels.modulate_activate.demodulate`."""
    return np.asarray(1 / np.sqrt(_float(style) ** 2 @ _float(squares).T + epsilon))


def torch_reference(x: Any, bias: Any, scale: Any, shift: Any, residual: Any) -> Any:
    """The `live` use: (B, C, H, W), (C,), (B, C), (B, C), (B, C, H, W)."""
    from torch.nn import functional

    v = (x + bias[:, None, None]) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return functional.leaky_relu(v, 0.2) + residual


def torch_fir(x: Any, taps: Any, gain: Any, noise: Any, bias: Any) -> Any:
    """The `paper` use of up 2: `taps` (C, 1, 4, 4), as a transposed depthwise convolution."""
    from torch.nn import functional

    channels = x.shape[1]
    padded = functional.pad(x, (1, 1, 1, 1))
    v = functional.conv_transpose2d(padded, taps, stride=2, padding=3, groups=channels)
    v = v * gain[:, :, None, None] + noise[:, None] + bias[:, None, None]
    return functional.leaky_relu(v, 0.2) * 2**0.5


__all__ = ["activate", "demodulate", "fir", "modulate", "torch_fir", "torch_reference"]
