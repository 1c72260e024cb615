"""Composite and feature warp in numpy, and in torch for the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.sampling import bilinear_at, resize_cubic, resize_linear


def composite(
    source: NDArray[np.uint8], flow: NDArray[Any], mask: NDArray[Any], rgb: NDArray[Any]
) -> NDArray[np.float64]:
    """One picture, not yet rounded: (height, width, 3) in 0..255.

    `source` (height, width, >= 3), `flow` (2, f, f), `mask` (1, s, s), `rgb` (3, s, s).
    """
    height, width = source.shape[:2]
    x, y = resize_linear(flow, height, width)
    pixels = source[..., :3].transpose(2, 0, 1)
    warped = bilinear_at(pixels, x * width - 0.5, y * height - 0.5)
    if rgb.shape[1:] == (height, width):
        drawn = rgb.astype(np.float64)
    else:
        drawn = resize_cubic(rgb, height, width)
    weight = resize_linear(mask, height, width)
    out = weight * warped + (1 - weight) * np.clip(drawn, 0, 1) * 255
    return np.asarray(np.clip(out, 0, 255).transpose(1, 2, 0))


def features(
    x: NDArray[Any], flow: NDArray[Any], size: tuple[int, int], occlusion: NDArray[Any] | None
) -> NDArray[np.float64]:
    """One item: `x` (channels, h, w), `flow` (2, f, f) -> (channels, *size)."""
    u, v = resize_linear(flow, *size)
    warped = bilinear_at(x, u * x.shape[-1] - 0.5, v * x.shape[-2] - 0.5)
    return warped if occlusion is None else warped * occlusion


def torch_reference(source: Any, flow: Any, mask: Any, rgb: Any) -> Any:
    """Batched: `source` (B, 3, n, n) uint8, flow, mask and rgb as above -> (B, 3, n, n) uint8."""
    import torch
    from torch.nn import functional

    size = source.shape[-2:]
    grid = functional.interpolate(flow, size, mode="bilinear", align_corners=False)
    grid = grid.permute(0, 2, 3, 1) * 2 - 1
    warped = functional.grid_sample(
        source.to(flow.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    weight = functional.interpolate(mask, size, mode="bilinear", align_corners=False)
    drawn = rgb
    if rgb.shape[-2:] != size:
        drawn = functional.interpolate(rgb, size, mode="bicubic", align_corners=False)
    out = weight * warped + (1 - weight) * drawn.clamp(0, 1) * 255
    return (out + 0.5).clamp(0, 255).to(torch.uint8)


__all__ = ["composite", "features", "torch_reference"]
