"""Where the visible mark is, and whether a picture carries it and nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.mark import Pixels, mark_place


def outside(size: int) -> NDArray[np.bool_]:
    """True where the mark of an I420 picture is not."""
    x, y, width, height = mark_place(size)
    out = np.ones((size * 3 // 2, size), bool)
    out[y : y + height, x : x + width] = False
    chroma = out[size:].reshape(2, size // 2, size // 2)
    chroma[:, y // 2 : (y + height) // 2, x // 2 : (x + width) // 2] = False
    return out


def assert_marked(found: Pixels, plain: Pixels) -> None:
    """`found` is `plain` with the white letters and the pill in the corner, and no other change."""
    size = plain.shape[1]
    x, y, width, height = mark_place(size)
    there = outside(size)
    np.testing.assert_array_equal(found[there], plain[there])
    corner = found[y : y + height, x : x + width]
    assert corner.max() >= 225
    assert np.median(corner) < 120
