"""Augmentation moves labels exactly as it moves pixels."""

import numpy as np
import pytest

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES, MotionCode
from models.face import apply_transform, euler, rotation
from trainer.frames import degrade, mirror_code, move_code, pixel_transform, random_similarity

pytestmark = pytest.mark.unit


def some_code(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.25, 0.25, CODE_DIM).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_moving_the_crop_moves_the_code(seed: int) -> None:
    face = open_checkpoint().face
    rng = np.random.default_rng(seed)
    move = random_similarity(rng, zoom=0.2, angle=0.3, shift=0.1)
    code = some_code(seed)
    before = face.project(face.mean, MotionCode.split(code))
    after = face.project(face.mean, MotionCode.split(move_code(code, move)))
    np.testing.assert_allclose(after, apply_transform(move, before), atol=1e-4)


def test_euler_is_the_inverse_of_rotation() -> None:
    angles = np.random.default_rng(0).uniform(-0.8, 0.8, (50, 3))
    np.testing.assert_allclose(euler(rotation(angles)), angles, atol=1e-9)


def test_mirroring_twice_is_nothing_and_turns_the_head() -> None:
    signs = np.ones(16, np.float32)
    code = some_code(1)
    flipped = mirror_code(code, signs)
    np.testing.assert_array_equal(mirror_code(flipped, signs), code)
    pose = FACTOR_SLICES["pose"]
    np.testing.assert_array_equal(flipped[pose], code[pose] * [-1, 1, -1, -1, 1, 1])
    eye = FACTOR_SLICES["eye"].start
    assert flipped[eye] == code[eye + 1]
    assert flipped[eye + 2] == -code[eye + 2]


def test_pixel_transform_scales_the_shift_only() -> None:
    move = random_similarity(np.random.default_rng(3), zoom=0.2, angle=0.3, shift=0.1)
    point = np.array([[0.3, 0.6]], np.float32)
    in_pixels = apply_transform(pixel_transform(move, 256), point * 256) / 256
    np.testing.assert_allclose(in_pixels, apply_transform(move, point), atol=1e-5)


def test_degrading_keeps_places() -> None:
    image = np.full((256, 256, 3), 60, np.uint8)
    image[100:140, 80:120] = 200
    rng = np.random.default_rng(0)
    for _ in range(20):
        damaged = degrade(rng, image).astype(float).mean(2)
        assert damaged.shape == (256, 256)
        weight = np.clip(damaged - np.median(damaged) - 20, 0, None)
        if weight.sum() > 1000:
            y, x = np.mgrid[:256, :256]
            assert abs((weight * x).sum() / weight.sum() - 99.5) < 25
            assert abs((weight * y).sum() / weight.sum() - 119.5) < 25
