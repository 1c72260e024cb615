"""Streaming log-mel spectra of many sessions in one launch.

`models.mel.StreamingMel` for a batch: 16 kHz mono, window 1280, hop 160, 80 Slaney bands, the
window ends with the hop. A session's past samples stay in a ring on the device; how many came
before is the caller's count (`position`). Window and mel triangles are the caller's, as `tables`
packs them, because the product's own definition lives in `models.mel`.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.operation import Launch
from kernels.view import Viewable, planes, suffix, view

THREADS, WINDOW, HOP, BANDS = 256, 1280, 160, 80
BINS = WINDOW // 2 + 1


class Session(ctypes.Structure):
    """Mirror of `Session` in kernel.cu; `SESSION` is its numpy type."""

    _fields_ = (
        ("samples", ctypes.c_void_p),
        ("position", ctypes.c_int64),
        ("count", ctypes.c_int),
        ("slot", ctypes.c_int),
    )


class Params(ctypes.Structure):
    """Mirror of `Params` in kernel.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("sessions", "ring", "tables", "weights", "bands",
                                               "out")),
        *((name, ctypes.c_int64) for name in ("out_batch", "out_row")),
        ("ring_length", ctypes.c_int),
    )  # fmt: skip


SESSION: np.dtype[Any] = np.dtype(Session)


class Tables(NamedTuple):
    """Constants, to be copied to the device once."""

    waves: NDArray[np.float32]
    """(3, 1280): window, cosine and sine of one turn."""
    weights: NDArray[np.float32]
    """The mel triangles, end to end."""
    bands: NDArray[np.int32]
    """(80, 3): first bin, number of bins, where in `weights`."""


def tables(window: NDArray[Any], filters: NDArray[Any]) -> Tables:
    """Pack `window` (1280,) and mel triangles `filters` (641, 80). Raises ValueError."""
    if window.shape != (WINDOW,) or filters.shape != (BINS, BANDS):
        raise ValueError(f"need (1280,) and (641, 80), got {window.shape} and {filters.shape}")
    turn = 2 * np.pi * np.arange(WINDOW) / WINDOW
    waves = np.stack([window, np.cos(turn), np.sin(turn)]).astype(np.float32)
    parts, bands, start = [], np.zeros((BANDS, 3), np.int32), 0
    for band in range(BANDS):
        bins = np.flatnonzero(filters[:, band])
        first, count = (int(bins[0]), int(bins[-1] - bins[0] + 1)) if len(bins) else (0, 0)
        bands[band] = first, count, start
        parts.append(filters[first : first + count, band])
        start += count
    weights = np.concatenate([*parts, [0.0]]).astype(np.float32)
    return Tables(waves, weights, bands)


def frames_of(position: int, count: int) -> int:
    """Mel frames that become complete with `count` samples after `position`."""
    return (position + count) // HOP - position // HOP


def session(
    samples: Viewable, position: int, slot: int, ring: Viewable
) -> tuple[int, int, int, int]:
    """One row of a table of type `SESSION`: float32 `samples` (n,) after `position` others.

    `ring` (slots, length) must hold a window more than `samples`. Raises ValueError.
    """
    seen = planes("samples", samples, (None,), np.float32)
    slots, length = view(ring).shape
    if not 0 <= slot < slots or position < 0:
        raise ValueError(f"slot {slot} of {slots}, position {position}")
    if seen.shape[0] + WINDOW > length:
        raise ValueError(f"{seen.shape[0]} samples at once do not fit into a ring of {length}")
    return seen.pointer, position, seen.shape[0], slot


def log_mel(
    sessions: Viewable, ring: Viewable, waves: Viewable, weights: Viewable, bands: Viewable,
    out: Viewable,
) -> Launch:  # fmt: skip
    """Make every frame that becomes complete, at most `frames` per session.

    `sessions` (batch,) `SESSION`, a slot at most once; `ring` (slots, length) float32 state;
    `out` (batch, frames, 80) float32 or float16, of which a session's first `frames_of` rows are
    written. Raises ValueError.
    """
    into = planes("out", out, (None, None, BANDS))
    batch, frames, _ = into.shape
    table = planes("sessions", sessions, (batch,))
    state = planes("ring", ring, (None, None), np.float32)
    if state.strides[0] != state.shape[1]:
        raise ValueError("ring must be dense")
    params = Params(
        table.pointer, state.pointer, planes("waves", waves, (3, WINDOW), np.float32).pointer,
        planes("weights", weights, (None,), np.float32).pointer,
        planes("bands", bands, (BANDS, 3), np.int32).pointer,
        into.pointer, into.strides[0], into.strides[1], state.shape[1],
    )  # fmt: skip
    return Launch(f"log_mel_{suffix(into.dtype)}", (frames, batch, 1), (THREADS, 1, 1), params)


__all__ = ["SESSION", "Params", "Session", "Tables", "frames_of", "log_mel", "session", "tables"]
