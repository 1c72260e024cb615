"""Interpolation in numpy, for the references."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def bilinear_at(plane: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> Values:
    """(..., h, w) sampled at positions in samples (first centre at 0), borders repeated."""
    height, width = plane.shape[-2:]
    x = np.clip(x, 0, width - 1).astype(np.float64)
    y = np.clip(y, 0, height - 1).astype(np.float64)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    tx, ty = x - x0, y - y0
    values = plane.astype(np.float64)
    top = values[..., y0, x0] * (1 - tx) + values[..., y0, x1] * tx
    bottom = values[..., y1, x0] * (1 - tx) + values[..., y1, x1] * tx
    return np.asarray(top * (1 - ty) + bottom * ty)


def resize_linear(plane: NDArray[Any], height: int, width: int) -> Values:
    """(..., h, w) -> (..., height, width), half-pixel centres."""
    x = (np.arange(width) + 0.5) * plane.shape[-1] / width - 0.5
    y = (np.arange(height) + 0.5) * plane.shape[-2] / height - 0.5
    return bilinear_at(plane, np.broadcast_to(x, (height, width)), y[:, None] + 0 * x)


def cubic_matrix(inputs: int, outputs: int, a: float = -0.75) -> Values:
    """(outputs, inputs) weights of Keys' cubic resize (1981), borders repeated."""
    position = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    first = np.floor(position).astype(int)
    matrix = np.zeros((outputs, inputs))
    for tap in range(-1, 3):
        d = np.abs(position - (first + tap))
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        np.add.at(matrix, (np.arange(outputs), np.clip(first + tap, 0, inputs - 1)), weight)
    return matrix


def resize_cubic(plane: NDArray[Any], height: int, width: int) -> Values:
    """(..., h, w) -> (..., height, width), half-pixel centres, not anti-aliased."""
    rows = cubic_matrix(plane.shape[-2], height)
    columns = cubic_matrix(plane.shape[-1], width)
    return np.asarray(rows @ plane.astype(np.float64) @ columns.T)


__all__ = ["bilinear_at", "cubic_matrix", "resize_cubic", "resize_linear"]
