"""Geometry: projection and lifting are inverse, crops put eyes and mouth where they belong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, MotionCode
from models.face import (
    CANONICAL_POINTS,
    apply_transform,
    canonical_transform,
    crop_points,
    lip_gap,
    rotation,
    warp_crop,
)

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def face():
    return open_checkpoint().face


def code(seed: int, strength: float = 0.3) -> MotionCode:
    rng = np.random.default_rng(seed)
    return MotionCode.split((rng.uniform(-strength, strength, CODE_DIM)).astype(np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_lift_is_the_inverse_of_project(face, seed: int) -> None:
    rng = np.random.default_rng(seed)
    landmarks = face.project(face.mean, code(seed)) + rng.normal(0, 0.01, (152, 2))
    shape = face.lift(landmarks.astype(np.float32), code(seed))
    np.testing.assert_allclose(face.project(shape, code(seed)), landmarks, atol=1e-5)


def test_the_mean_head_sits_in_the_canonical_crop(face) -> None:
    points = crop_points(face.project(face.mean, MotionCode()))
    assert np.abs(points - CANONICAL_POINTS).max() < 0.03


def test_signs_are_the_documented_ones(face) -> None:
    still = face.project(face.mean, MotionCode())

    def moved(**pose: float) -> np.ndarray:
        index = {"yaw": 0, "pitch": 1, "roll": 2, "x": 3, "y": 4, "scale": 5}
        values = np.zeros(6, np.float32)
        for name, value in pose.items():
            values[index[name]] = value
        return face.project(face.mean, MotionCode(pose=values))

    nose, forehead, chin = 102, 0, 18
    assert moved(yaw=0.2)[nose, 0] > still[nose, 0]
    assert moved(pitch=0.2)[nose, 1] < still[nose, 1]
    rolled = moved(roll=0.2)
    assert rolled[forehead, 0] < rolled[chin, 0]
    assert moved(y=0.1)[nose, 1] > still[nose, 1]
    assert np.ptp(moved(scale=0.1)[:, 0]) > np.ptp(still[:, 0])


def test_codes_move_what_they_name(face) -> None:
    still = face.project(face.mean, MotionCode())
    lip = np.zeros(16, np.float32)
    lip[0] = 2
    assert lip_gap(face.project(face.mean, MotionCode(lip=lip))) > lip_gap(still) + 0.02
    shut = face.project(face.mean, MotionCode(eye=np.array([1, 0, 0, 0, 0, 0], np.float32)))
    left, right = np.ptp(shut[56:72, 1]), np.ptp(shut[72:88, 1])
    assert left < 0.6 * right, "dim 0 shuts the eye at the image's left only"
    gaze = face.project(face.mean, MotionCode(eye=np.array([0, 0, 1, 0, 0, 0], np.float32)))
    assert gaze[88:98, 0].mean() > still[88:98, 0].mean() + 0.005


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 4), st.floats(-1, 1), st.floats(-200, 200), st.floats(-200, 200))
def test_canonical_transform_undoes_any_similarity(zoom, angle, dx, dy) -> None:
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (CANONICAL_POINTS * 256 @ turn.T + (dx, dy)).astype(np.float32)
    mapped = apply_transform(canonical_transform(points, 256), points)
    np.testing.assert_allclose(mapped, CANONICAL_POINTS * 256, atol=0.05)


def test_a_crop_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="coincide"):
        canonical_transform(np.zeros((3, 2), np.float32), 256)


def test_warp_crop_keeps_pixel_centres() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    same = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    np.testing.assert_array_equal(warp_crop(image, same, 64), image)
    ramp = np.repeat(np.arange(128, dtype=np.uint8)[None, :, None], 128, 0).repeat(3, 2)
    half = warp_crop(ramp, same * 0.5, 64)
    centres = 2 * np.arange(64) + 0.5
    assert np.abs(half[32, 8:-8, 0] - centres[8:-8]).max() <= 1


def test_rotation_is_a_rotation() -> None:
    turns = rotation(np.random.default_rng(0).uniform(-1, 1, (20, 3)))
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.eye(3)[None].repeat(20, 0), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(turns), 1)
