"""The face fit finds back what a known model drew."""

import numpy as np
import pytest

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES, MotionCode
from models.face import GROUPS, lip_gap
from trainer.face_fit import CLOSURE, fit_codes, solve_pose

pytestmark = pytest.mark.unit


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    face = open_checkpoint().face
    rng = np.random.default_rng(seed)
    codes = np.zeros((count, CODE_DIM), np.float32)
    codes[:, :3] = rng.uniform(0, 1.5, (count, 3))
    codes[:, FACTOR_SLICES["pose"]] = rng.uniform(-0.15, 0.15, (count, 6)) * [
        1,
        1,
        1,
        0.3,
        0.3,
        0.3,
    ]
    codes[:, FACTOR_SLICES["eye"].start] = rng.uniform(0, 1, count)
    points = np.stack([face.project(face.mean, MotionCode.split(c)) for c in codes])
    return codes, points


def test_pose_is_found_from_landmarks() -> None:
    face = open_checkpoint().face
    codes, points = drawn(20)
    offsets = np.stack([face.offsets(MotionCode.split(c)) for c in codes]).astype(np.float64)
    pose = solve_pose(face, points.astype(np.float64), face.mean + offsets)
    np.testing.assert_allclose(pose, codes[:, FACTOR_SLICES["pose"]], atol=2e-3)


def test_codes_are_found_from_landmarks() -> None:
    face = open_checkpoint().face
    codes, points = drawn(20, seed=1)
    shape = np.broadcast_to(face.mean.astype(np.float64), (20, 152, 3))
    pose = codes[:, FACTOR_SLICES["pose"]].astype(np.float64)
    found = fit_codes(face, points.astype(np.float64), shape, np.zeros((20, 52)), pose,
                      np.full(52, 1e-12))  # fmt: skip
    vectors = codes.copy()
    vectors[:, FACTOR_SLICES["lip"]] = found[:, :16]
    vectors[:, FACTOR_SLICES["eye"].start :] = found[:, 16:]
    again = np.stack([face.project(face.mean, MotionCode.split(v)) for v in vectors])
    assert np.abs(again - points).max() < 0.004, "one pixel of 256"
    assert np.corrcoef(lip_gap(again), lip_gap(points))[0, 1] > 0.99


def test_lips_that_touch_touch_in_the_code() -> None:
    """Landmarks whose upper lip's middle came down on to the lower one, as in a short p: hardly any
    code can do just that, and spread over 152 points it would be given up for nothing.
    """
    face = open_checkpoint().face
    codes, points = drawn(12, seed=2)
    pose = codes[:, FACTOR_SLICES["pose"]].astype(np.float64)
    lips = GROUPS["lips_inner"].start
    seen = points.astype(np.float64)
    seen[:, lips + 13 : lips + 18] = seen[:, lips + 3 : lips + 8][:, ::-1]
    weight = np.concatenate([np.full(16, 1.0), np.full(36, 5.0)]) / 256**2
    shape = np.broadcast_to(face.mean.astype(np.float64), (12, 152, 3))
    gaps = []
    for closure in (0.0, CLOSURE):
        found = fit_codes(face, seen, shape, np.zeros((12, 52)), pose, weight, closure=closure)
        vectors = codes.copy()
        vectors[:, FACTOR_SLICES["lip"]] = found[:, :16]
        vectors[:, FACTOR_SLICES["eye"].start :] = found[:, 16:]
        again = np.stack([face.project(face.mean, MotionCode.split(v)) for v in vectors])
        gaps.append(np.abs(lip_gap(again) - lip_gap(seen)).mean())
    assert gaps[1] < 0.002
    assert gaps[1] < 0.3 * gaps[0]
