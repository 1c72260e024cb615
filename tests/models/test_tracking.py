"""Tracking: a face is found, followed, lost and found again; a moving crop loses no motion.

On decoded pictures, too: an engine that reads their planes cuts the crop, any other gets RGB.
"""

import cv2
import numpy as np
import pytest

from models.codes import Array
from models.config import ModelConfig
from models.face import crop_points, warp_crop
from models.runtime.base import BaseEngine
from models.runtime.engine import MotionReading, YuvPicture
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


@pytest.mark.parametrize("size", [(480, 360), (320, 240), (1280, 960), (482, 360)])
def test_a_camera_that_changes_its_resolution_loses_nothing(
    engine: BaseEngine, portrait_picture: np.ndarray, size: tuple[int, int]
) -> None:
    tracker = FaceTracker(engine)
    frame = placed(portrait_picture, angle=6)
    before = [tracker.update(frame) for _ in range(4)][-1]
    assert before is not None
    other = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    for shown in [other] * 4 + [frame] * 2:
        reading = tracker.update(shown)
        assert reading is not None
        np.testing.assert_allclose(reading.code.pose, before.code.pose, atol=0.05)
        assert np.abs(reading.landmarks - before.landmarks).mean() * 256 < 2


def test_another_aspect_ratio_is_searched_anew(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    tracker = FaceTracker(engine)
    frame = placed(portrait_picture)
    before = [tracker.update(frame) for _ in range(3)][-1]
    assert before is not None
    readings = [tracker.update(np.ascontiguousarray(frame[:, 80:560])) for _ in range(3)]
    assert readings[-1] is not None
    assert np.abs(readings[-1].landmarks - before.landmarks).mean() * 256 < 4


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


# --- decoded pictures -------------------------------------------------------------------


class Decoded:
    """Pictures as a decoder hands them over; counts how often one is converted."""

    def __init__(self) -> None:
        self.converted = 0

    def picture(self, rgb: np.ndarray) -> YuvPicture:
        height, width = rgb.shape[:2]
        planes = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), np.uint8)
        u, v = planes[height:].reshape(2, height // 2, width // 2)

        def to_rgb() -> np.ndarray:
            self.converted += 1
            return as_rgb(planes[:height], u, v)

        return YuvPicture(planes[:height], u, v, "bt601", False, to_rgb)


def as_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    i420 = np.concatenate([y.ravel(), u.ravel(), v.ravel()]).reshape(-1, y.shape[1])
    return np.asarray(cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420), np.uint8)


class PlanesEngine:
    """The CPU's engine with a crop of its own: what an engine on a card looks like from here."""

    name = "planes"

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine
        self.config: ModelConfig = engine.config
        self.read = 0

    def motion(self, face_HWC: np.ndarray) -> MotionReading:
        raise AssertionError("no crop is cut on the CPU")

    def motion_yuv(self, picture: YuvPicture, transform: Array) -> MotionReading:
        self.read += 1
        rgb = as_rgb(picture.y, picture.u, picture.v)
        return self._engine.motion(warp_crop(rgb, transform, self.config.image_size))

    def motion_yuv_batch(self, crops: list[tuple[YuvPicture, Array]]) -> list[MotionReading]:
        return [self.motion_yuv(picture, transform) for picture, transform in crops]


def assert_equal(a: MotionReading | None, b: MotionReading | None) -> None:
    assert a is not None
    assert b is not None
    np.testing.assert_array_equal(a.code.concat(), b.code.concat())
    np.testing.assert_array_equal(a.landmarks, b.landmarks)


def test_an_engine_that_reads_planes_cuts_every_crop_itself(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    decoded, planes = Decoded(), PlanesEngine(engine)
    tracker, usual = FaceTracker(planes), FaceTracker(engine)  # type: ignore[arg-type]
    for frame in range(CHECK_EVERY - 1):
        picture = decoded.picture(placed(portrait_picture, dx=frame))
        assert_equal(tracker.update(picture), usual.update(as_rgb(picture.y, picture.u, picture.v)))
        assert decoded.converted == 1, "for the detector, when the face was found"
    assert planes.read == CHECK_EVERY - 1 + 2
    tracker.update(decoded.picture(placed(portrait_picture)))
    assert decoded.converted == 2, "for the detector, which looks again now"


def test_a_face_that_leaves_the_planes_is_noticed_and_found_again(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    decoded, planes = Decoded(), PlanesEngine(engine)
    tracker = FaceTracker(planes, search_every=2)  # type: ignore[arg-type]
    empty = np.full((480, 640, 3), 90, np.uint8)
    assert [tracker.update(decoded.picture(empty)) for _ in range(4)] == [None] * 4
    assert decoded.converted == 2, "searched every second time"
    assert planes.read == 0
    for _ in range(2):
        found = tracker.update(decoded.picture(placed(portrait_picture)))
    assert found is not None
    for _ in range(CHECK_EVERY + MISSES * CHECK_SOON):
        gone = tracker.update(decoded.picture(empty))
    assert gone is None
    assert not tracker.tracking


def test_an_engine_that_does_not_read_planes_gets_rgb(
    engine: BaseEngine, portrait_picture: np.ndarray
) -> None:
    decoded = Decoded()
    tracker, usual = FaceTracker(engine), FaceTracker(engine)
    for frame in range(3):
        picture = decoded.picture(placed(portrait_picture))
        assert_equal(tracker.update(picture), usual.update(as_rgb(picture.y, picture.u, picture.v)))
        assert decoded.converted == frame + 1
