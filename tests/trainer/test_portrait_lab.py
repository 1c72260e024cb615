"""The parts of the portrait maker that need no training pack."""

from __future__ import annotations

import numpy as np
import pytest

from models.face import CANONICAL_POINTS, GROUPS
from trainer.paint import SIDE, disc, fill, mirror, spline, stroke
from trainer.portrait_art import LOOKS
from trainer.portrait_lab import (
    F32,
    SIZE,
    common_light,
    dense_map,
    face_mask,
    finish,
    meet,
    recipes,
)

pytestmark = pytest.mark.unit


@pytest.fixture
def landmarks(rng: np.random.Generator) -> F32:
    """Scattered landmarks with an oval, brows and eyes about where they belong."""
    points = rng.uniform(0.3, 0.7, (152, 2)).astype(np.float32)
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    points[GROUPS["oval"]] = np.stack([0.5 + 0.25 * np.sin(turn), 0.55 - 0.32 * np.cos(turn)], -1)
    for side, centre in zip(("left", "right"), CANONICAL_POINTS, strict=False):
        for group, lift in ((f"eye_{side}", 0.0), (f"brow_{side}", 0.07)):
            count = points[GROUPS[group]].shape[0]
            spread = rng.uniform(-0.03, 0.03, (count, 2))
            points[GROUPS[group]] = centre - np.array([0, lift]) + spread
    return points


def test_every_photographic_portrait_has_several_parents_and_valid_leaders() -> None:
    made = recipes()
    assert len({recipe.id for recipe in made}) == len(made)
    photographic = [recipe for recipe in made if not recipe.drawn]
    assert len(photographic) >= 6
    for recipe in photographic:
        assert len(set(recipe.parents)) == len(recipe.parents) >= 4
        assert {recipe.eyes, recipe.mouth, recipe.skin} <= set(range(len(recipe.parents)))
        # The hair's owner must not lead everywhere: that would be its picture again.
        assert {recipe.eyes, recipe.mouth, recipe.skin} != {0}
    assert {recipe.id for recipe in made if recipe.drawn} == set(LOOKS)


def test_warping_to_its_own_shape_moves_nothing(landmarks: F32) -> None:
    axis = (np.arange(SIZE) + 0.5) / SIZE
    identity = np.stack(np.meshgrid(axis, axis), -1)
    assert np.abs(dense_map(landmarks, landmarks) - identity).max() < 1e-4


def test_warping_looks_up_the_source_where_its_landmarks_are(landmarks: F32) -> None:
    source = landmarks + np.array([0.02, -0.01], np.float32)
    place = dense_map(landmarks, source)
    x, y = landmarks[100]
    found = place[int(y * SIZE), int(x * SIZE)]
    assert found == pytest.approx(source[100], abs=2.5 / SIZE)


def test_face_mask_is_soft_and_inside_the_picture(landmarks: F32) -> None:
    mask = face_mask(landmarks)
    assert mask.shape == (SIZE, SIZE, 1)
    assert mask[int(0.6 * SIZE), SIZE // 2] == pytest.approx(1, abs=1e-3)
    assert mask[0].max() < 1e-3
    assert mask[:, 0].max() < 1e-3


def test_common_light_gives_all_parents_the_first_ones_colour(
    landmarks: F32, rng: np.random.Generator
) -> None:
    mask = face_mask(landmarks)
    parents = [
        (rng.normal(0, 4, (SIZE, SIZE, 3)) + colour).astype(np.float32)
        for colour in ((60, 10, 15), (30, 18, 25))
    ]
    first, second = (
        (lab * mask).sum((0, 1)) / mask.sum() for lab in common_light(parents, mask, 1.0)
    )
    assert first == pytest.approx(second, abs=0.2)


def test_seam_meets_the_outer_picture(landmarks: F32) -> None:
    mask = face_mask(landmarks)
    outer = np.full((SIZE, SIZE, 3), (60, 12, 16), np.float32)
    face = outer + np.array([-6, 2, -3], np.float32)
    met = meet(face, outer, mask)
    seam = np.abs(mask[..., 0] - 0.5) < 0.2
    assert np.abs(met - outer)[seam].max() < 0.5


def test_finish_keeps_colours_and_is_repeatable() -> None:
    grey = np.full((SIZE, SIZE, 3), 120, np.uint8)
    sharper = np.full((SIZE, SIZE, 3), 140, np.uint8)
    out = finish(grey, sharper)
    assert out.mean() == pytest.approx(120, abs=0.5)
    assert np.array_equal(out, finish(grey, sharper))


def test_brushes() -> None:
    circle = disc(np.array([0.5, 0.5], np.float32), 0.25)
    assert circle.mean() == pytest.approx(np.pi / 16, rel=0.01)
    square = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]], np.float32)
    assert fill(square, smooth=False).mean() == pytest.approx(0.25, rel=0.01)
    line = np.array([[0.1, 0.5], [0.9, 0.5]], np.float32)
    ink = stroke(line, 10.0)
    assert ink.sum() / SIDE**2 == pytest.approx(0.8 * 10 / SIZE, rel=0.05)
    assert mirror(mirror(square)) == pytest.approx(square)
    curve = spline(square)
    assert all(np.abs(curve - corner).sum(1).min() < 1e-6 for corner in square)
