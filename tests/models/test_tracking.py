"""Tracking: a face is found, followed, lost and found again; a moving crop loses no motion."""

import cv2
import numpy as np
import pytest

from models.face import crop_points
from models.runtime.base import BaseEngine
from models.tracking import CHECK_EVERY, CHECK_SOON, MISSES, FaceTracker, plausible

pytestmark = pytest.mark.unit


def placed(
    picture: np.ndarray, *, angle: float = 0, dx: float = 0, zoom: float = 0.8
) -> np.ndarray:
    """The picture inside a 640 x 480 webcam frame, turned by degrees and shifted by pixels."""
    move = cv2.getRotationMatrix2D((256, 256), angle, zoom)
    move[:, 2] += (320 - 256 + dx, 240 - 256)
    return cv2.warpAffine(picture, move, (640, 480), borderMode=cv2.BORDER_REPLICATE)


def test_a_still_face_is_read_steadily(engine: BaseEngine, portrait_picture: np.ndarray) -> None:
    tracker = FaceTracker(engine)
    readings = [tracker.update(placed(portrait_picture)) for _ in range(8)]
    assert all(r is not None for r in readings)
    poses = np.stack([r.code.pose for r in readings if r is not None])
    assert np.abs(poses - poses[0]).max() < 0.02
    assert tracker.tracking


def test_a_turning_head_keeps_its_roll_although_the_crop_may_follow(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    tracker = FaceTracker(engine)
    angles = [0.0] * 3 + list(np.linspace(0, 22, 15)) + [22.0] * 60
    rolls = []
    for angle in angles:
        reading = tracker.update(placed(portrait_picture, angle=angle))
        assert reading is not None
        rolls.append(float(np.degrees(reading.code.pose[2])))
    assert rolls[17] - rolls[0] == pytest.approx(22, abs=6)
    assert rolls[-1] - rolls[0] > 14, "the crop has followed meanwhile, home has not"


def test_somebody_who_moves_aside_stays_in_the_crop(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    tracker = FaceTracker(engine)
    readings = [
        tracker.update(placed(portrait_picture, dx=dx))
        for dx in [0] * 3 + list(range(0, 90, 3)) + [90] * 40
    ]
    last = readings[-1]
    assert last is not None
    centre = crop_points(last.landmarks).mean(0)
    assert np.abs(centre - (0.5, 0.528)).max() < 0.08
    assert last.code.pose[3] > 0.1, "and the pose says that the head is to the right of home"


def test_no_face_is_none_and_a_face_is_found_again(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    tracker = FaceTracker(engine, search_every=2)
    empty = np.full((480, 640, 3), 90, np.uint8)
    assert [tracker.update(empty) for _ in range(4)] == [None] * 4
    found = [tracker.update(placed(portrait_picture)) for _ in range(3)]
    assert found[-1] is not None
    for _ in range(CHECK_EVERY + MISSES * CHECK_SOON):
        gone = tracker.update(empty)
    assert gone is None
    assert not tracker.tracking


def test_plausible_knows_a_face_from_a_heap(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    reading = FaceTracker(engine).update(placed(portrait_picture))
    assert reading is not None
    assert plausible(reading.landmarks)
    assert not plausible(reading.landmarks * 0.2)
    assert not plausible(1 - reading.landmarks)
