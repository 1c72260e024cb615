"""The face fit finds back what a known model drew."""

import numpy as np
import pytest

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES, MotionCode
from models.face import lip_gap
from trainer.face_fit import fit_codes, solve_pose

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
