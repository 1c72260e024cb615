"""Trailing means of all sessions' expression codes, in one launch.

What `models.streaming.ExpressionWindow` does for one session on a CPU: the mean of the last
min(count, length) codes. The rings stay on the device (`state_shapes`), a session has a slot.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from kernels.operation import Launch
from kernels.view import Viewable, planes, suffix

THREADS = 64


class Session(ctypes.Structure):
    """Mirror of `Session` in kernel.cu; `SESSION` is its numpy type."""

    _fields_ = (("slot", ctypes.c_int), ("reset", ctypes.c_int))


class Params(ctypes.Structure):
    """Mirror of `Params` in kernel.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("sessions", "code", "mean", "ring", "pushed")),
        *((name, ctypes.c_int64) for name in ("code_row", "mean_row")),
        *((name, ctypes.c_int) for name in ("length", "dim")),
    )


SESSION: np.dtype[Any] = np.dtype(Session)


def window_mean(
    sessions: Viewable, code: Viewable, mean: Viewable, ring: Viewable, pushed: Viewable
) -> Launch:
    """Push one code per session and take the means.

    `sessions` (batch,) `SESSION` in the device's memory: slot (each at most once, below the
    number of slots) and whether to forget first. `code`, `mean` (batch, dim) float32 or
    float16; state: `ring` (slots, length, dim) float32 and `pushed` (slots,) uint32, dense, the
    latter 0 at first. Raises ValueError.
    """
    codes = planes("code", code, (None, None))
    batch, dim = codes.shape
    means = planes("mean", mean, codes.shape, codes.dtype)
    table = planes("sessions", sessions, (batch,))
    state = planes("ring", ring, (None, None, dim), np.float32)
    slots, length, _ = state.shape
    if state.strides != (length * dim, dim, 1):
        raise ValueError("ring must be dense")
    counts = planes("pushed", pushed, (slots,), np.uint32)
    params = Params(
        table.pointer, codes.pointer, means.pointer, state.pointer, counts.pointer,
        codes.strides[0], means.strides[0], length, dim,
    )  # fmt: skip
    return Launch(f"window_mean_{suffix(codes.dtype)}", (batch, 1, 1), (THREADS, 1, 1), params)


__all__ = ["SESSION", "Params", "Session", "window_mean"]
