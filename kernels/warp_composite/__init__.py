"""The generator's drawing and the portrait's own pixels -> a picture of any size.

`out = mask * warp(source, flow) + (1 - mask) * rgb`, as `models.composite.compose` does it on
a CPU: flow and mask enlarged linearly, rgb by a cubic (a = -0.75), the source sampled linearly
with repeated borders; but in float throughout, without OpenCV's 1/32-pixel steps. Flow may have
any size (64, 128, ...), mask and rgb have another, and each session's output a third.

`features` warps feature maps by the same flow; where the flow is twice as fine as the output,
its linear resize is the 2 x 2 mean that the networks use.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from kernels.operation import Launch, blocks
from kernels.view import View, Viewable, planes, suffix, view

WIDTH, HEIGHT, PIXELS, CHANNELS = 32, 8, 4, 8


class Session(ctypes.Structure):
    """Mirror of `Session` in kernel.cu; `SESSION` is its numpy type."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("source_row", ctypes.c_int64),
        ("out_row", ctypes.c_int64),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
    )


class CompositeParams(ctypes.Structure):
    """Mirror of `CompositeParams` in kernel.cu."""

    _fields_ = (
        ("sessions", ctypes.c_void_p),
        ("flow", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("rgb", ctypes.c_void_p),
        ("flow_batch", ctypes.c_int64),
        ("flow_plane", ctypes.c_int64),
        ("flow_row", ctypes.c_int64),
        ("mask_batch", ctypes.c_int64),
        ("mask_row", ctypes.c_int64),
        ("rgb_batch", ctypes.c_int64),
        ("rgb_plane", ctypes.c_int64),
        ("rgb_row", ctypes.c_int64),
        ("flow_height", ctypes.c_int),
        ("flow_width", ctypes.c_int),
        ("map_height", ctypes.c_int),
        ("map_width", ctypes.c_int),
        ("source_step", ctypes.c_int),
        ("out_step", ctypes.c_int),
    )


class FeaturesParams(ctypes.Structure):
    """Mirror of `FeaturesParams` in kernel.cu."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("flow", ctypes.c_void_p),
        ("occlusion", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        *((f"{name}_{axis}", ctypes.c_int64) for name in ("x", "flow")
          for axis in ("batch", "plane", "row")),
        ("occlusion_batch", ctypes.c_int64),
        ("occlusion_row", ctypes.c_int64),
        ("out_batch", ctypes.c_int64),
        ("out_plane", ctypes.c_int64),
        ("out_row", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("channels", "in_height", "in_width", "flow_height",
                                            "flow_width", "height", "width")),
    )  # fmt: skip


SESSION: np.dtype[Any] = np.dtype(Session)


def pixels(name: str, array: Viewable, step: int) -> View:
    """View of an interleaved picture (height, width, step) uint8 with any row stride."""
    seen = view(array)
    if len(seen.shape) != 3 or seen.shape[2] != step or seen.dtype != np.uint8 or 0 in seen.shape:
        raise ValueError(
            f"{name} must be uint8 (height, width, {step}), got {seen.dtype} {seen.shape}"
        )
    if seen.strides[1:] != (step, 1) and seen.shape[1] > 1:
        raise ValueError(f"{name}: rows must be dense, strides are {seen.strides}")
    return seen


def session(source: Viewable, out: Viewable) -> tuple[int, ...]:
    """One row of a table of type `SESSION`.

    `source` (n, n, 3 or 4) uint8: the portrait at the size of the output; four bytes per pixel
    are read in one load. `out` (n, n, 3 or 4) uint8. Raises ValueError.
    """
    into = pixels("out", out, view(out).shape[-1])
    origin = pixels("source", source, view(source).shape[-1])
    if origin.shape[:2] != into.shape[:2]:
        raise ValueError(f"source {origin.shape} and out {into.shape} must have one size")
    height, width = into.shape[:2]
    return origin.pointer, into.pointer, origin.strides[0], into.strides[0], width, height


def composite(
    sessions: Viewable,
    largest: tuple[int, int],
    flow: Viewable,
    mask: Viewable,
    rgb: Viewable,
    source_step: int = 4,
    out_step: int = 4,
) -> Launch:
    """Draw all sessions' pictures.

    `sessions` (batch,) `SESSION` in the device's memory, `largest` (height, width) covers all of
    them; `flow` (batch, 2, f, f), `mask` (batch, 1, s, s), `rgb` (batch, 3, s, s), all float32
    or all float16; steps are bytes per pixel of sources and outputs, 3 or 4. Raises ValueError.
    """
    if source_step not in (3, 4) or out_step not in (3, 4):
        raise ValueError(f"pixels have 3 or 4 bytes, not {source_step} and {out_step}")
    f = planes("flow", flow, (None, 2, None, None))
    batch = f.shape[0]
    drawn = planes("rgb", rgb, (batch, 3, None, None), f.dtype)
    m = planes("mask", mask, (batch, 1, *drawn.shape[2:]), f.dtype)
    table = planes("sessions", sessions, (batch,))
    params = CompositeParams(
        table.pointer, f.pointer, m.pointer, drawn.pointer, *f.strides[:3],
        m.strides[0], m.strides[2], *drawn.strides[:3], *f.shape[2:], *drawn.shape[2:],
        source_step, out_step,
    )  # fmt: skip
    height, width = largest
    grid = (blocks(width, WIDTH * PIXELS), blocks(height, HEIGHT), batch)
    return Launch(f"warp_composite_{suffix(f.dtype)}", grid, (WIDTH, HEIGHT, 1), params)


def features(
    x: Viewable, flow: Viewable, out: Viewable, occlusion: Viewable | None = None
) -> Launch:
    """Warp feature maps: `out = occlusion * x(flow)`.

    `x` (batch, channels, h, w), `flow` (batch, 2, f, f), `out` (batch, channels, H, W),
    `occlusion` (batch, 1, H, W), all of one type. Raises ValueError.
    """
    into = planes("out", out, (None, None, None, None))
    batch, channels, height, width = into.shape
    maps = planes("x", x, (batch, channels, None, None), into.dtype)
    f = planes("flow", flow, (batch, 2, None, None), into.dtype)
    seen = None
    if occlusion is not None:
        seen = planes("occlusion", occlusion, (batch, 1, height, width), into.dtype)
    params = FeaturesParams(
        maps.pointer, f.pointer, seen.pointer if seen else None, into.pointer,
        *maps.strides[:3], *f.strides[:3],
        seen.strides[0] if seen else 0, seen.strides[2] if seen else 0,
        *into.strides[:3], channels, *maps.shape[2:], *f.shape[2:], height, width,
    )  # fmt: skip
    grid = (blocks(width, WIDTH), blocks(height, HEIGHT), batch * blocks(channels, CHANNELS))
    return Launch(f"warp_features_{suffix(into.dtype)}", grid, (WIDTH, HEIGHT, 1), params)


__all__ = [
    "SESSION",
    "CompositeParams",
    "FeaturesParams",
    "Session",
    "composite",
    "features",
    "pixels",
    "session",
]
