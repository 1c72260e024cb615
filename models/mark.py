"""The visible mark: a small "AI" pill in the lower left corner of a picture, for everybody to see.

One picture of it serves every engine, because it is laid over the I420 that all of them end in:
a few microseconds on a corner, where a device's own blending would need this file a second time.
`mark_rgba` is the same pill for `kernels.rgb_to_i420.Mark`, for whoever keeps pictures on a card.
The corner shows shoulder or background: a canonical crop has its face in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

#: Sides of the pill and its distance from both edges, in parts of the picture's side.
_HEIGHT, _WIDTH, _MARGIN = 0.0625, 0.105, 0.027
#: The pill, in grey: no colour to be lost in half-size chroma.
_PILL_GREY, _PILL_ALPHA, _LETTER_GREY = 18, 0.66, 255
#: Drawn so many times larger, then averaged: smooth edges at every size.
_OVERSAMPLED = 8
#: The letters as polygons; x in units of the pill's height from its middle, y from its top.
_CAP_TOP, _CAP_BOTTOM, _STEM = 0.25, 0.75, 0.115
_A_LEFT, _A_RIGHT, _I_LEFT = -0.40, 0.12, 0.25


@dataclass(frozen=True, slots=True)
class _Overlay:
    """The mark over one size of I420; all arrays uint16, times 255 where premultiplied."""

    luma: tuple[slice, slice]
    chroma: tuple[slice, slice]
    luma_keep: NDArray[np.uint16]
    luma_add: NDArray[np.uint16]
    chroma_keep: NDArray[np.uint16]
    chroma_add: NDArray[np.uint16]


def mark_place(size: int) -> tuple[int, int, int, int]:
    """x, y, width and height of the mark in a picture of (size, size), in pixels; all even."""
    width, height, margin = (_even(part * size) for part in (_WIDTH, _HEIGHT, _MARGIN))
    return margin, size - margin - height, width, height


@cache
def mark_rgba(size: int) -> Pixels:
    """The mark for pictures of (size, size): (h, w, 4) uint8 RGBA, not premultiplied, grey."""
    _, _, width, height = mark_place(size)
    scale = height * _OVERSAMPLED
    wide, tall = width * _OVERSAMPLED, height * _OVERSAMPLED
    pill, letters = np.zeros((2, tall, wide), np.uint8)
    radius = tall // 2
    cv2.rectangle(pill, (radius, 0), (wide - 1 - radius, tall - 1), 255, cv2.FILLED)
    for x in (radius, wide - 1 - radius):
        cv2.circle(pill, (x, tall // 2), radius, 255, cv2.FILLED)
    for polygon, value in _letters():
        points = np.round(polygon * scale + (wide / 2, 0)).astype(np.int32)
        cv2.fillPoly(letters, [points], value)
    shape = (width, height)
    ink = cv2.resize(letters, shape, interpolation=cv2.INTER_AREA) / 255.0
    under = cv2.resize(pill, shape, interpolation=cv2.INTER_AREA) / 255.0 * _PILL_ALPHA
    alpha = ink + under * (1 - ink)
    grey = (ink * _LETTER_GREY + under * (1 - ink) * _PILL_GREY) / np.maximum(alpha, 1e-6)
    drawn = np.stack([grey, grey, grey, alpha * 255], -1)
    rgba = np.asarray(np.round(drawn), np.uint8)
    rgba.setflags(write=False)
    return rgba


def put_mark(i420: Pixels) -> None:
    """Lay the mark over a picture (N * 3 / 2, N) uint8 I420, BT.601 limited range, in place.

    N is even; nothing outside `mark_place` changes. Any thread. Raises ValueError for other
    shapes.
    """
    rows, size = i420.shape
    if size % 2 or rows * 2 != size * 3 or i420.dtype != np.uint8:
        raise ValueError(f"a picture is (N * 3 / 2, N) uint8 with even N, got {i420.shape}")
    over = _overlay(size)
    _blend(i420[:size][over.luma], over.luma_keep, over.luma_add)
    half = size // 2
    for plane in i420[size:].reshape(2, half, half):
        _blend(plane[over.chroma], over.chroma_keep, over.chroma_add)


def _blend(corner: Pixels, keep: NDArray[np.uint16], add: NDArray[np.uint16]) -> None:
    corner[:] = (corner * keep + add) // 255


@cache
def _overlay(size: int) -> _Overlay:
    x, y, width, height = mark_place(size)
    rgba = mark_rgba(size).astype(np.uint32)
    alpha, grey = rgba[..., 3], rgba[..., 0]
    # Grey is the same in R, G and B, so conversion and blending may change places:
    # Y = 16 + 219 / 255 * grey, and both chroma are 128.
    luma = 16 + (219 * grey + 127) // 255
    coarse = (alpha.reshape(height // 2, 2, width // 2, 2).sum((1, 3)) + 2) // 4

    def premultiplied(value: NDArray[np.uint32], by: NDArray[np.uint32]) -> NDArray[np.uint16]:
        return (value * by + 127).astype(np.uint16)

    neutral = np.full_like(coarse, 128)
    return _Overlay(
        (slice(y, y + height), slice(x, x + width)),
        (slice(y // 2, (y + height) // 2), slice(x // 2, (x + width) // 2)),
        (255 - alpha).astype(np.uint16), premultiplied(luma, alpha),
        (255 - coarse).astype(np.uint16), premultiplied(neutral, coarse),
    )  # fmt: skip


def _letters() -> list[tuple[NDArray[np.float64], int]]:
    """What is filled and what is cut out again, in this order."""
    apex, slope = (_A_LEFT + _A_RIGHT) / 2, (_A_RIGHT - _A_LEFT) / 2 / (_CAP_BOTTOM - _CAP_TOP)
    flat = _STEM * 0.56
    outer = [(apex - flat, _CAP_TOP), (apex + flat, _CAP_TOP), (_A_RIGHT, _CAP_BOTTOM),
             (_A_LEFT, _CAP_BOTTOM)]  # fmt: skip
    bar_top, bar_bottom, leg = 0.545, 0.635, _STEM * 1.12
    tip = _CAP_TOP + 0.145

    def inner(y: float) -> float:
        """Half the width between the legs at height y."""
        return slope * (y - tip) * 0.98

    eye = [(apex, tip), (apex + inner(bar_top), bar_top), (apex - inner(bar_top), bar_top)]
    foot = [(apex - inner(bar_bottom), bar_bottom), (apex + inner(bar_bottom), bar_bottom),
            (_A_RIGHT - leg, _CAP_BOTTOM), (_A_LEFT + leg, _CAP_BOTTOM)]  # fmt: skip
    stem = [(_I_LEFT, _CAP_TOP), (_I_LEFT + _STEM, _CAP_TOP), (_I_LEFT + _STEM, _CAP_BOTTOM),
            (_I_LEFT, _CAP_BOTTOM)]  # fmt: skip
    shapes = ((outer, 255), (eye, 0), (foot, 0), (stem, 255))
    return [(np.array(points, np.float64), value) for points, value in shapes]


def _even(length_px: float) -> int:
    return max(2, round(length_px / 2) * 2)


__all__ = ["mark_place", "mark_rgba", "put_mark"]
