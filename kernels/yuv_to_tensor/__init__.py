"""Webcam pictures in I420 or NV12 -> normalised crops (batch, 3, height, width), in one pass.

The product's way on a CPU is a conversion to RGB, `models.face.warp_crop`, and `/ 127.5 - 1`
(`models.runtime.base`). This is the same without rounding in between; where a crop shrinks,
`taps` samples per axis are averaged over each output pixel instead of blurring first, and
where it grows by more than 1.2 it is linear instead of cubic. A chroma sample lies in the
middle of its four pixels.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.operation import Launch, blocks
from kernels.view import PLANE_LIMIT, Viewable, planes, suffix, view

WIDTH, HEIGHT, PIXELS = 32, 8, 2
MAX_TAPS = 8
Matrix = Literal["bt601", "bt709"]
#: Weights of red and blue in luma (ITU-R BT.601-7, BT.709-6).
LUMA_WEIGHTS: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
}


class Picture(ctypes.Structure):
    """Mirror of `Picture` in kernel.cu; `PICTURE` is its numpy type."""

    _fields_ = (
        ("y", ctypes.c_void_p),
        ("u", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("y_row", ctypes.c_int64),
        ("chroma_row", ctypes.c_int64),
        ("chroma_step", ctypes.c_int),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("taps", ctypes.c_int),
        ("matrix", ctypes.c_float * 6),
        ("y_offset", ctypes.c_float),
        ("y_scale", ctypes.c_float),
        ("r_v", ctypes.c_float),
        ("g_u", ctypes.c_float),
        ("g_v", ctypes.c_float),
        ("b_u", ctypes.c_float),
    )


class Params(ctypes.Structure):
    """Mirror of `Params` in kernel.cu."""

    _fields_ = (
        ("pictures", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_batch", ctypes.c_int64),
        ("out_plane", ctypes.c_int64),
        ("out_row", ctypes.c_int64),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("offset", ctypes.c_float),
    )


PICTURE: np.dtype[Any] = np.dtype(Picture)


def colour_terms(matrix: Matrix = "bt601", full_range: bool = False) -> tuple[float, ...]:
    """y_offset, y_scale, r_v, g_u, g_v, b_u of a `Picture` for 8-bit YCbCr."""
    red, blue = LUMA_WEIGHTS[matrix]
    green = 1 - red - blue
    y_scale, chroma_scale = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    r_v, b_u = 2 * (1 - red) * chroma_scale, 2 * (1 - blue) * chroma_scale
    return (
        0.0 if full_range else 16.0,
        y_scale, r_v, -b_u * blue / green, -r_v * red / green, b_u,
    )  # fmt: skip


def picture(
    y: Viewable,
    u: Viewable,
    v: Viewable,
    transform: NDArray[Any],
    *,
    matrix: Matrix = "bt601",
    full_range: bool = False,
) -> tuple[Any, ...]:
    """One row of a table of type `PICTURE`.

    `y` (h, w) uint8 with any row stride; `u` and `v` (ceil(h/2), ceil(w/2)) uint8: planes of
    I420, or every second column of NV12's. `transform` (2, 3) maps picture to crop pixels, as
    `models.face.canonical_transform` gives it. Raises ValueError.
    """
    luma = planes("y", y, (None, None), np.uint8)
    height, width = luma.shape
    shape = ((height + 1) // 2, (width + 1) // 2)
    first, second = _chroma("u", u, shape), _chroma("v", v, shape)
    if first[1:] != second[1:]:
        raise ValueError("u and v must be laid out alike")
    back, taps = backward(transform)
    return (
        luma.pointer, first[0], second[0], luma.strides[0], first[1], first[2], width, height,
        taps, back.ravel(), *colour_terms(matrix, full_range),
    )  # fmt: skip


def backward(transform: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """(2, 3) picture to crop pixels -> (2, 3) crop to picture pixels, and samples per axis.

    Raises ValueError for a transform that maps everything to a line.
    """
    forward = np.vstack([np.asarray(transform, np.float64), [0, 0, 1]])
    if not np.isfinite(forward).all() or abs(np.linalg.det(forward)) < 1e-12:
        raise ValueError("the transform maps everything to a line")
    back = np.linalg.inv(forward)[:2]
    taps = math.ceil(math.hypot(back[0, 0], back[1, 0]) - 1e-6)
    return back.astype(np.float32), min(max(taps, 1), MAX_TAPS)


def _chroma(name: str, plane: Viewable, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Address, row and column stride of a chroma plane."""
    seen = view(plane)
    if seen.shape != shape or seen.dtype != np.uint8:
        raise ValueError(f"{name} must be uint8 {shape}, got {seen.dtype} {seen.shape}")
    if shape[0] * abs(seen.strides[0]) > PLANE_LIMIT:
        raise ValueError(f"{name}: a plane may span {PLANE_LIMIT} bytes at most")
    return seen.pointer, seen.strides[0], max(seen.strides[1], 1)


def yuv_to_tensor(
    pictures: Viewable, out: Viewable, scale: float = 1 / 127.5, offset: float = -1.0
) -> Launch:
    """Fill `out` (batch, 3, height, width), float32 or float16, with rgb * scale + offset.

    `pictures` (batch,) `PICTURE`, in the device's memory; a row of zeros is no picture, its
    crop is black. Raises ValueError.
    """
    result = planes("out", out, (None, 3, None, None))
    batch, _, height, width = result.shape
    table = planes("pictures", pictures, (batch,))
    params = Params(
        table.pointer, result.pointer, *result.strides[:3], width, height, scale, offset
    )
    grid = (blocks(width, WIDTH * PIXELS), blocks(height, HEIGHT), batch)
    return Launch(f"yuv_to_tensor_{suffix(result.dtype)}", grid, (WIDTH, HEIGHT, 1), params)


__all__ = [
    "PICTURE", "Params", "Picture", "backward", "colour_terms", "picture", "yuv_to_tensor",
]  # fmt: skip
