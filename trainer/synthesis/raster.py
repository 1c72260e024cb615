"""Triangles to pixels: a z-buffer that interpolates vertex values, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Reals = NDArray[np.floating[Any]]


@njit(cache=True, nogil=True, fastmath=True)
def _fill(xy: F32, z: F32, triangles: I32, value: F32, depth: F32, out: F32) -> None:
    height, width = depth.shape
    channels = value.shape[1]
    for t in range(len(triangles)):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by, cx, cy = xy[a, 0], xy[a, 1], xy[b, 0], xy[b, 1], xy[c, 0], xy[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        # Screen y points down, so a triangle that faces us turns the other way round.
        if area > -1e-9:
            continue
        # Pixel i has its centre at i + .5.
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        inverse = 1.0 / area
        za, zb, zc = z[a], z[b], z[c]
        # Weights of b and c grow by these from one pixel to the next.
        step_b, step_c = (cy - ay) * inverse, -(by - ay) * inverse
        for y in range(top, bottom + 1):
            px, py = left + 0.5, y + 0.5
            wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) * inverse
            wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) * inverse
            for x in range(left, right + 1):
                wa = 1.0 - wb - wc
                if wa >= -1e-6 and wb >= -1e-6 and wc >= -1e-6:
                    near = wa * za + wb * zb + wc * zc
                    if near > depth[y, x]:
                        depth[y, x] = near
                        for k in range(channels):
                            out[y, x, k] = wa * value[a, k] + wb * value[b, k] + wc * value[c, k]
                elif wa < -1e-6 and (step_b + step_c) >= 0:
                    # Past the far edge of this row, and it only gets further.
                    break
                wb += step_b
                wc += step_c


def rasterise(
    xy: Reals, z: Reals, triangles: I32, value: F32, size: int | tuple[int, int],
    *, far: float = -1e6,
) -> tuple[F32, F32]:  # fmt: skip
    """Draw triangles that turn clockwise on screen (y down, so counter-clockwise seen y up).

    xy (V, 2) pixels with the origin at the top left corner, z (V,) larger = nearer, value
    (V, K). Returns (size, size, K) with zeros where nothing is, and depth (size, size), `far`
    there; `size` may be (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    depth = np.full((height, width), far, np.float32)
    out = np.zeros((height, width, value.shape[1]), np.float32)
    _fill(
        np.ascontiguousarray(xy, np.float32), np.ascontiguousarray(z, np.float32), triangles,
        np.ascontiguousarray(value, np.float32), depth, out,
    )  # fmt: skip
    return out, depth
