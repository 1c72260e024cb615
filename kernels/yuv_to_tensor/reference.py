"""Crop, conversion and normalisation in numpy, and in torch for the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.sampling import bilinear_at
from kernels.yuv_to_tensor import colour_terms

Plane = NDArray[np.uint8]


def yuv_to_tensor(
    y: Plane,
    u: Plane,
    v: Plane,
    back: NDArray[Any],
    size: tuple[int, int],
    taps: int = 1,
    terms: tuple[float, ...] = colour_terms(),
    scale: float = 1 / 127.5,
    offset: float = -1.0,
) -> NDArray[np.float64]:
    """One picture -> (3, height, width) float64 of `size` (height, width).

    `back` (2, 3) maps crop pixels to picture pixels; `terms` are `colour_terms`.
    """
    height, width = size
    total = np.zeros((3, height, width))
    for j in range(taps):
        for i in range(taps):
            cx = np.arange(width)[None, :] + (i + 0.5) / taps
            cy = np.arange(height)[:, None] + (j + 0.5) / taps
            px = back[0, 0] * cx + back[0, 1] * cy + back[0, 2]
            py = back[1, 0] * cx + back[1, 1] * cy + back[1, 2]
            total[0] += bilinear_at(y, px - 0.5, py - 0.5)
            total[1] += bilinear_at(u, px / 2 - 0.5, py / 2 - 0.5)
            total[2] += bilinear_at(v, px / 2 - 0.5, py / 2 - 0.5)
    luma, blue, red = total / taps**2
    y_offset, y_scale, r_v, g_u, g_v, b_u = terms
    luma, blue, red = (luma - y_offset) * y_scale, blue - 128, red - 128
    rgb = np.stack([luma + r_v * red, luma + g_u * blue + g_v * red, luma + b_u * blue])
    return np.asarray(np.clip(rgb, 0, 255) * scale + offset)


def torch_reference(y: Any, u: Any, v: Any, grid: Any, terms: tuple[float, ...]) -> Any:
    """Batched, one tap: planes (B, 1, h, w) float, `grid` (B, H, W, 2) in [-1, 1]."""
    import torch
    from torch.nn import functional

    def at(plane: Any) -> Any:
        return functional.grid_sample(
            plane, grid, mode="bilinear", padding_mode="border", align_corners=False
        )

    y_offset, y_scale, r_v, g_u, g_v, b_u = terms
    luma, blue, red = (at(y) - y_offset) * y_scale, at(u) - 128, at(v) - 128
    rgb = torch.cat([luma + r_v * red, luma + g_u * blue + g_v * red, luma + b_u * blue], 1)
    return rgb.clamp(0, 255) / 127.5 - 1


__all__ = ["torch_reference", "yuv_to_tensor"]
