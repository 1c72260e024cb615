"""The visible mark: in its place, legible, nothing else touched, as a card would lay it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.rgb_to_i420 import Mark
from kernels.rgb_to_i420.reference import marked, to_i420
from kernels.view import view
from models.mark import Pixels, mark_place, mark_rgba, put_mark
from tests.marking import outside

pytestmark = pytest.mark.unit


def noise(size: int) -> Pixels:
    """Every byte that limited range allows."""
    rng = np.random.default_rng(size)
    rgb = rng.integers(0, 256, (size, size, 3), np.uint8)
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), np.uint8)


@given(st.integers(32, 512).map(lambda half: 2 * half))
def test_it_lies_in_the_corner_at_every_size_and_touches_nothing_else(size: int) -> None:
    x, y, width, height = mark_place(size)
    assert not any(length % 2 for length in (x, y, width, height))
    assert 0 < x < x + width < size / 4
    assert size * 0.85 < y < y + height < size
    before = noise(size)
    after = before.copy()
    put_mark(after)
    there = outside(size)
    np.testing.assert_array_equal(after[there], before[there])
    assert (after[~there] != before[~there]).mean() > 0.8


@pytest.mark.parametrize("size", [256, 384, 512])
@pytest.mark.parametrize("behind", [16, 126, 235])
def test_letters_stand_out_from_any_background(size: int, behind: int) -> None:
    picture = np.full((size * 3 // 2, size), 128, np.uint8)
    picture[:size] = behind
    put_mark(picture)
    x, y, width, height = mark_place(size)
    pill = picture[y : y + height, x : x + width]
    assert pill.max() >= 225, "the letters are white"
    # Between the letters and the pill's end nothing but the pill shows.
    ground = int(pill[height // 2, width - height // 4])
    assert 235 - ground > 120
    # A row through the lower half of both letters crosses two legs and one stem.
    end = height // 3  # of the pill, where the background shows
    row = pill[round(height * 0.7), end:-end] > (235 + ground) / 2
    assert np.count_nonzero(np.diff(row.astype(int)) == 1) == 3
    assert (picture[size:] == 128).all(), "grey stays grey"


@pytest.mark.parametrize("size", [256, 512])
def test_it_is_what_blending_in_rgb_gives(size: int) -> None:
    """`mark_rgba` handed to a card's kernel makes the same picture."""
    rng = np.random.default_rng(1)
    rgb = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 5)
    x, y, _, _ = mark_place(size)
    planes = to_i420(marked(np.asarray(rgb), mark_rgba(size), x, y), mean_chroma=True)
    plain = np.concatenate([p.ravel() for p in to_i420(np.asarray(rgb), mean_chroma=True)])
    ours = plain.reshape(size * 3 // 2, size)
    put_mark(ours)
    wanted = np.concatenate([p.ravel() for p in planes]).reshape(ours.shape)
    assert np.abs(ours.astype(int) - wanted).max() <= 2
    assert view(Mark(mark_rgba(size), x, y).rgba).shape == mark_rgba(size).shape


def test_other_shapes_are_refused() -> None:
    for shape in ((96, 96), (95 * 3 // 2, 95), (144, 98)):
        with pytest.raises(ValueError, match="N \\* 3 / 2"):
            put_mark(np.zeros(shape, np.uint8))
