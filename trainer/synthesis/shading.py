"""Pixels of sheet and skin in one pass each, compiled by numba: sample, blend, note the flow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
#: Depth below which nothing was drawn.
NOTHING = np.float32(-1e5)


@njit(cache=True, nogil=True, fastmath=True, inline="always")
def _weights(x: Any, y: Any, size: Any) -> Any:  # pragma: no cover - compiled
    """Corner and weights of a bilinear sample at pixel coordinates, centres at +.5."""
    last = np.float32(size - 1)
    x = min(max(x - np.float32(0.5), np.float32(0)), last)
    y = min(max(y - np.float32(0.5), np.float32(0)), last)
    left, top = int(x), int(y)
    fx, fy = x - np.float32(left), y - np.float32(top)
    return left, top, min(left + 1, size - 1), min(top + 1, size - 1), fx, fy


@njit(cache=True, nogil=True, fastmath=True)
def shade_sheet(
    at: F32, near: F32, layers: F32, mask_here: F32, canvas: F32, flow: F32, valid: F32
) -> None:
    """Hair, neck and shoulders over the background that `canvas` (H, W, 3) holds.

    at (H, W, 2) source pixels and near (H, W) depth of the sheet; layers (S, S, 5): RGB behind
    the face, person's mask, covered by the face; mask_here (H, W) the person's mask in place.
    flow (H, W, 2) comes filled with every pixel's own place; valid (H, W) is written.
    """
    height, width = near.shape
    size = len(layers)
    one = np.float32(1)
    found = np.empty(5, np.float32)
    for y in range(height):
        for x in range(width):
            alpha, u, v = np.float32(0), np.float32(0), np.float32(0)
            if near[y, x] > NOTHING:
                u, v = at[y, x, 0], at[y, x, 1]
                left, top, right, low, fx, fy = _weights(u, v, size)
                # The mask first: most of the sheet is empty.
                for k in (3, 4, 0, 1, 2):
                    if k != 3 and found[3] <= 0:
                        break
                    upper = layers[top, left, k] * (one - fx) + layers[top, right, k] * fx
                    under = layers[low, left, k] * (one - fx) + layers[low, right, k] * fx
                    found[k] = upper * (one - fy) + under * fy
                alpha = found[3]
                for k in range(3):
                    canvas[y, x, k] += alpha * (found[k] - canvas[y, x, k])
            if alpha > 0.5:
                flow[y, x, 0], flow[y, x, 1] = u, v
                inside = 0 < u < size and 0 < v < size
                valid[y, x] = 1 if inside and alpha > 0.98 and found[4] < 0.02 else 0
            else:
                valid[y, x] = 1 if alpha < 0.02 and mask_here[y, x] < 0.02 else 0


@njit(cache=True, nogil=True, fastmath=True)
def shade_skin(at: F32, near: F32, source: F32, canvas: F32, flow: F32, valid: F32) -> None:
    """The face over everything: at (H, W, 4) holds source pixels, how opaque and how sure."""
    height, width = near.shape
    size = len(source)
    one = np.float32(1)
    for y in range(height):
        for x in range(width):
            if near[y, x] <= NOTHING:
                continue
            alpha = at[y, x, 2]
            left, top, right, low, fx, fy = _weights(at[y, x, 0], at[y, x, 1], size)
            for k in range(3):
                upper = source[top, left, k] * (one - fx) + source[top, right, k] * fx
                under = source[low, left, k] * (one - fx) + source[low, right, k] * fx
                colour = upper * (one - fy) + under * fy
                canvas[y, x, k] += alpha * (colour - canvas[y, x, k])
            if alpha > 0.5:
                flow[y, x, 0], flow[y, x, 1] = at[y, x, 0], at[y, x, 1]
            if alpha > 0.999 and at[y, x, 3] > 0.99:
                valid[y, x] = 1
            elif alpha > 0:
                valid[y, x] = 0
