"""Paste-back, mark and conversion in numpy, and in torch for the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.sampling import bilinear_at

Pixels = NDArray[np.uint8]
# BT.601 limited range in 2^-20: weights of r, g, b and what is added.
_Y, _U, _V = (269484, 528482, 102760), (-155188, -305135, 460324), (460324, -385875, -74448)


def pasted(
    picture: Pixels, frame: Pixels, transform: NDArray[Any], feather_px: float
) -> NDArray[np.float64]:
    """(H, W, 3), not yet rounded: `picture` in `frame`."""
    height, width = frame.shape[:2]
    x, y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    (a, b, c), (d, e, f) = transform
    px, py = a * x + b * y + c, d * x + e * y + f
    rows, columns = picture.shape[:2]
    rim = np.minimum(np.minimum(px, columns - px), np.minimum(py, rows - py))
    weight = np.clip(rim / feather_px, 0, 1) if feather_px > 0 else (rim > 0).astype(float)
    inner = bilinear_at(picture[..., :3].transpose(2, 0, 1), px - 0.5, py - 0.5).transpose(1, 2, 0)
    return np.asarray(frame[..., :3] * (1 - weight[..., None]) + inner * weight[..., None])


def marked(rgb: Pixels, rgba: Pixels, x: int, y: int) -> Pixels:
    """`rgb` with the mark over it; what reaches out of the picture is cut."""
    out = rgb[..., :3].astype(np.int64)
    for j in range(rgba.shape[0]):
        for i in range(rgba.shape[1]):
            if 0 <= y + j < out.shape[0] and 0 <= x + i < out.shape[1]:
                alpha, above = int(rgba[j, i, 3]), rgba[j, i, :3].astype(np.int64)
                below = out[y + j, x + i]
                out[y + j, x + i] = (below * (255 - alpha) + above * alpha + 127) // 255
    return out.astype(np.uint8)


def to_i420(rgb: Pixels, mean_chroma: bool = False) -> tuple[Pixels, Pixels, Pixels]:
    """(h, w, >= 3) -> Y (h, w), U and V (ceil(h/2), ceil(w/2))."""
    full = rgb[..., :3].astype(np.int64)
    even = np.pad(full, ((0, full.shape[0] % 2), (0, full.shape[1] % 2), (0, 0)), mode="edge")
    four = [even[j::2, i::2] for j in (0, 1) for i in (0, 1)]
    chroma = (np.sum(four, axis=0) + 2) // 4 if mean_chroma else four[0]

    def convert(pixels: NDArray[Any], weights: tuple[int, ...], add: int) -> Pixels:
        value = (pixels @ np.array(weights) + (add << 20) + (1 << 19)) >> 20
        return np.asarray(np.clip(value, 0, 255), np.uint8)

    return convert(full, _Y, 16), convert(chroma, _U, 128), convert(chroma, _V, 128)


def torch_reference(rgb: Any, weights: Any) -> Any:
    """(B, 3, h, w) uint8 with even sizes, `weights` (3, 3) float -> (B, 3 h w / 2) uint8."""
    import torch

    pixels = rgb.to(weights.dtype)
    luma = torch.einsum("bchw,c->bhw", pixels, weights[0]) + 16.5
    few = pixels[:, :, ::2, ::2]
    chroma = torch.einsum("bchw,kc->bkhw", few, weights[1:]) + 128.5
    parts = [luma.flatten(1), chroma.flatten(1)]
    return torch.cat(parts, 1).clamp(0, 255).to(torch.uint8)


#: The `weights` of `torch_reference`.
WEIGHTS = np.array([_Y, _U, _V], np.float32) / 2**20

__all__ = ["WEIGHTS", "marked", "pasted", "to_i420", "torch_reference"]
