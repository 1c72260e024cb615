"""Finished pictures -> I420, with paste-back into a full frame and a visible mark on the way.

BT.601, limited range, with OpenCV's integers: without a frame and with `mean_chroma` off the
bytes are those of `cv2.cvtColor(rgb, COLOR_RGB2YUV_I420)`, the product's way on a CPU. Odd sizes
are allowed; chroma planes are then rounded up. Outputs may lie in pinned host memory: rows are
written in runs of 8 bytes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.operation import Launch, blocks
from kernels.view import View, Viewable, planes, view
from kernels.warp_composite import pixels

WIDTH, HEIGHT, PIXELS = 32, 4, 8


class Session(ctypes.Structure):
    """Mirror of `Session` in kernel.cu; `SESSION` is its numpy type."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("picture", "frame", "mark", "y", "u", "v")),
        *((name, ctypes.c_int64) for name in ("picture_row", "frame_row", "mark_row", "y_row",
                                              "chroma_row")),
        *((name, ctypes.c_int) for name in ("picture_step", "frame_step", "picture_width",
                                            "picture_height", "width", "height", "mark_x",
                                            "mark_y", "mark_width", "mark_height")),
        ("matrix", ctypes.c_float * 6),
        ("feather", ctypes.c_float),
    )  # fmt: skip


class Params(ctypes.Structure):
    """Mirror of `Params` in kernel.cu."""

    _fields_ = (("sessions", ctypes.c_void_p), ("mean_chroma", ctypes.c_int))


SESSION: np.dtype[Any] = np.dtype(Session)


@dataclass(frozen=True, slots=True)
class Paste:
    """Where the picture goes: `frame` (h, w, 3 or 4) uint8 is what surrounds it.

    `transform` (2, 3) maps frame to picture pixels (`models.face.canonical_transform`, pixel
    centres at +0.5); over `feather_px` picture pixels from its rim the picture comes in.
    """

    frame: Viewable
    transform: NDArray[Any]
    feather_px: float = 8.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A visible mark: RGBA (h, w, 4) uint8, not premultiplied, with its upper left corner."""

    rgba: Viewable
    x: int
    y: int


def i420_planes(i420: Viewable) -> tuple[View, View, View]:
    """Y, U and V of one (3n/2, m) uint8 array with even n and m, as encoders take it."""
    seen = planes("i420", i420, (None, None), np.uint8)
    rows, width = seen.shape
    height = rows * 2 // 3
    if rows % 3 or height % 2 or width % 2 or seen.strides[0] != width:
        raise ValueError(f"i420 must be dense (3n/2, m) with even n and m, got {seen.shape}")
    first = seen.pointer + height * width
    half, strides = (height // 2, width // 2), (width // 2, 1)
    u = View(first, half, strides, seen.dtype)
    v = View(first + half[0] * half[1], half, strides, seen.dtype)
    return View(seen.pointer, (height, width), (width, 1), seen.dtype), u, v


def session(
    picture: Viewable,
    out: tuple[Viewable, Viewable, Viewable],
    paste: Paste | None = None,
    mark: Mark | None = None,
) -> tuple[Any, ...]:
    """One row of a table of type `SESSION`.

    `picture` (h, w, 3 or 4) uint8; `out` Y (H, W), U and V (ceil(H/2), ceil(W/2)) uint8, with
    (H, W) the picture's size or, pasted, the frame's. Raises ValueError.
    """
    drawn = pixels("picture", picture, view(picture).shape[-1])
    height, width = drawn.shape[:2]
    frame, matrix, feather = None, np.zeros(6), 0.0
    if paste is not None:
        frame = pixels("frame", paste.frame, view(paste.frame).shape[-1])
        height, width = frame.shape[:2]
        matrix, feather = np.asarray(paste.transform, np.float64).ravel(), paste.feather_px
        if matrix.shape != (6,) or not np.isfinite(matrix).all():
            raise ValueError(f"transform must be finite (2, 3), got {paste.transform!r}")
    half = ((height + 1) // 2, (width + 1) // 2)
    y = planes("y", out[0], (height, width), np.uint8)
    u, v = planes("u", out[1], half, np.uint8), planes("v", out[2], half, np.uint8)
    if u.strides != v.strides:
        raise ValueError("u and v must be laid out alike")
    rgba = pixels("mark", mark.rgba, 4) if mark is not None else None
    for seen in (drawn, frame):
        if seen is not None and seen.shape[2] not in (3, 4):
            raise ValueError(f"pixels have 3 or 4 bytes, not {seen.shape[2]}")
    return (
        drawn.pointer, frame.pointer if frame else 0, rgba.pointer if rgba else 0,
        y.pointer, u.pointer, v.pointer,
        drawn.strides[0], frame.strides[0] if frame else 0, rgba.strides[0] if rgba else 0,
        y.strides[0], u.strides[0], drawn.shape[2], frame.shape[2] if frame else 0,
        drawn.shape[1], drawn.shape[0], width, height,
        mark.x if mark else 0, mark.y if mark else 0,
        rgba.shape[1] if rgba else 0, rgba.shape[0] if rgba else 0,
        matrix.astype(np.float32), feather,
    )  # fmt: skip


def rgb_to_i420(sessions: Viewable, largest: tuple[int, int], mean_chroma: bool = False) -> Launch:
    """Convert all sessions' pictures.

    `sessions` (batch,) `SESSION` in the device's memory; `largest` (height, width) covers all
    outputs. `mean_chroma` takes the mean of four pixels instead of OpenCV's first. Raises
    ValueError.
    """
    table = planes("sessions", sessions, (None,))
    height, width = largest
    grid = (blocks(width, WIDTH * PIXELS), blocks(height, HEIGHT * 2), table.shape[0])
    return Launch("rgb_to_i420", grid, (WIDTH, HEIGHT, 1), Params(table.pointer, mean_chroma))


__all__ = ["SESSION", "Mark", "Params", "Paste", "Session", "i420_planes", "rgb_to_i420", "session"]
