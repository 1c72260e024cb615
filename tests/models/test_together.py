"""Several trackers at once: each says what it says alone, and nobody pays for another's picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.codes import Array, MotionCode
from models.config import ModelConfig, live_config
from models.face import CANONICAL_POINTS, GROUPS
from models.runtime.engine import DeviceLostError, MotionReading, YuvPicture
from models.together import read_crops, update_together
from models.tracking import FaceTracker, Picture

pytestmark = pytest.mark.unit


class Reader:
    """Reads a crop's brightness as its yaw; `bad` brightnesses cannot be read."""

    def __init__(self, config: ModelConfig, *, bad: Sequence[int] = (), lost: int = -1) -> None:
        self.config = config
        self.bad, self.lost = bad, lost
        self.runs: list[int] = []

    def motion(self, face_HWC: np.ndarray) -> MotionReading:
        return self.motion_batch([face_HWC])[0]

    def motion_batch(self, faces: Sequence[np.ndarray]) -> list[MotionReading]:
        self.runs.append(len(faces))
        return [self._reading(int(face[128, 128, 0])) for face in faces]

    def _reading(self, level: int) -> MotionReading:
        if level == self.lost:
            raise DeviceLostError("gone")
        if level in self.bad:
            raise ValueError(f"cannot read {level}")
        pose = np.array([level / 1000, 0, 0, 0, 0, 0], np.float32)
        landmarks = np.full((152, 2), 0.5, np.float32)
        for name, point in zip(("eye_left", "eye_right", "lips_outer"), CANONICAL_POINTS,
                               strict=True):  # fmt: skip
            landmarks[GROUPS[name]] = point
        return MotionReading(MotionCode(pose=pose), landmarks)


class YuvReader(Reader):
    """Reads planes, too."""

    def motion_yuv(self, picture: YuvPicture, transform: Array) -> MotionReading:
        return self.motion_yuv_batch([(picture, transform)])[0]

    def motion_yuv_batch(self, crops: Sequence[tuple[YuvPicture, Array]]) -> list[MotionReading]:
        self.runs.append(100 * len(crops))
        return [self._reading(int(picture.y[0, 0])) for picture, _ in crops]


def frame(level: int) -> np.ndarray:
    return np.full((256, 256, 3), level, np.uint8)


def planes(level: int) -> YuvPicture:
    grey = np.full((128, 128), 128, np.uint8)
    y = np.full((256, 256), level, np.uint8)
    return YuvPicture(y, grey, grey, "bt601", True, to_rgb=lambda: frame(level))


def tracker(engine: Reader) -> FaceTracker:
    """One that has found its face: no detector is needed."""
    made = FaceTracker(engine)  # type: ignore[arg-type]
    made._points = CANONICAL_POINTS * 256
    made._smooth.push(made._points.reshape(-1))
    return made


def yaws(outcomes: Sequence[object]) -> list[float]:
    return [round(float(o.code.pose[0]) * 1000) for o in outcomes if isinstance(o, MotionReading)]


def test_all_crops_are_read_in_one_run() -> None:
    engine = Reader(live_config())
    found = update_together(engine, [(tracker(engine), frame(i)) for i in (10, 20, 30)])  # type: ignore[arg-type]
    assert engine.runs == [3]
    alone = [tracker(engine).update(frame(i)) for i in (10, 20, 30)]
    for a, b in zip(found, alone, strict=True):
        assert isinstance(a, MotionReading)
        assert b is not None
        np.testing.assert_array_equal(a.code.concat(), b.code.concat())


def test_planes_and_rgb_may_stand_side_by_side() -> None:
    engine = YuvReader(live_config())
    frames = [planes(10), frame(20), planes(30)]
    found = update_together(engine, [(tracker(engine), f) for f in frames])  # type: ignore[arg-type]
    assert engine.runs == [200, 1]
    assert yaws(found) == [10, 20, 30]


def test_a_tracker_that_still_searches_asks_for_nothing() -> None:
    engine = Reader(live_config())
    searching = FaceTracker(engine)  # type: ignore[arg-type]
    searching._since_search = 0
    pairs = [(searching, frame(1)), (tracker(engine), frame(20))]
    none, reading = update_together(engine, pairs)  # type: ignore[arg-type]
    assert none is None
    assert yaws([reading]) == [20]
    assert update_together(engine, []) == []  # type: ignore[arg-type]


def test_an_unreadable_picture_harms_nobody_else() -> None:
    engine = Reader(live_config(), bad=[20])
    found = update_together(engine, [(tracker(engine), frame(i)) for i in (10, 20, 30)])  # type: ignore[arg-type]
    assert engine.runs == [3, 1, 1, 1], "together, then each alone"
    assert isinstance(found[1], ValueError)
    assert yaws(found) == [10, 30]


def test_a_lost_device_ends_everything() -> None:
    engine = Reader(live_config(), lost=20)
    with pytest.raises(DeviceLostError):
        update_together(engine, [(tracker(engine), frame(i)) for i in (10, 20)])  # type: ignore[arg-type]
    picture = Picture(engine, frame(20))  # type: ignore[arg-type]
    with pytest.raises(DeviceLostError):
        read_crops(engine, [(picture, np.eye(2, 3, dtype=np.float32))])  # type: ignore[arg-type]
