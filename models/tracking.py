"""A webcam's canonical crop: detected once, then steered by E_mot's landmarks.

The crop is where the person sits, not where the head turns: it is fixed at the first good
frame and follows slowly (One-Euro), so nods and turns stay in the pose code instead of
being cropped away (METHOD.md section 1). One E_mot run per frame serves both codes and
tracking.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.detect import find_faces
from models.face import apply_transform, canonical_transform, crop_points, warp_crop
from models.runtime.engine import Engine, MotionReading
from models.streaming import OneEuro

#: Landmarks further than this from a face's usual place (crop widths, mean) mean "lost".
LOST_DISTANCE = 0.16
#: How far eyes and mouth may drift from their canonical place before the crop follows.
FOLLOW_DISTANCE = 0.05
FOLLOW_RATE = 0.08


class FaceTracker:
    """Per-person state; call `update` with every webcam frame, from the engine's thread."""

    def __init__(self, engine: Engine, *, search_every: int = 5) -> None:
        self._engine = engine
        self._search_every = search_every
        self._smooth = OneEuro(cutoff_hz=1.0, beta=0.5)
        self.reset()

    def reset(self) -> None:
        """Forget the face; the next frame is searched."""
        self._points: Array | None = None
        self._since_search = self._search_every
        self._smooth.reset()

    @property
    def tracking(self) -> bool:
        """Whether the last frame showed the face."""
        return self._points is not None

    def update(self, frame: NDArray[np.uint8]) -> MotionReading | None:
        """(H, W, 3) RGB frame -> codes and landmarks, or None while there is no face.

        While lost, only every `search_every`-th frame is searched: searching costs more
        than a frame has time for.
        """
        if self._points is None:
            self._since_search += 1
            if self._since_search < self._search_every:
                return None
            self._since_search = 0
            faces = find_faces(frame)
            if not faces:
                return None
            self._points = faces[0].points
            self._settle(frame)
        reading = self._read(frame, self._points)
        if reading is None:
            self.reset()
        return reading

    def _settle(self, frame: NDArray[np.uint8]) -> None:
        """Replace the detector's rough points by the landmarks' own, twice."""
        assert self._points is not None
        for _ in range(2):
            transform = canonical_transform(self._points, self._engine.config.image_size)
            crop = warp_crop(frame, transform, self._engine.config.image_size)
            landmarks = self._engine.motion(crop).landmarks
            self._points = _to_frame(transform, crop_points(landmarks), self._engine)

    def _read(self, frame: NDArray[np.uint8], points: Array) -> MotionReading | None:
        size = self._engine.config.image_size
        transform = canonical_transform(points, size)
        reading = self._engine.motion(warp_crop(frame, transform, size))
        if not plausible(reading.landmarks):
            return None
        target = _to_frame(transform, crop_points(reading.landmarks), self._engine)
        width = size / float(np.hypot(transform[0, 0], transform[1, 0]))
        drift = float(np.linalg.norm(target - points, axis=1).mean()) / width
        if drift > FOLLOW_DISTANCE:
            points = points + (target - points) * np.float32(FOLLOW_RATE)
        self._points = self._smooth.push(points.reshape(-1)).reshape(3, 2)
        return reading


def plausible(landmarks: Array) -> bool:
    """Whether landmarks (152, 2) form a face that fills its crop: right size, inside, upright."""
    left, right, mouth = crop_points(landmarks)
    eyes = float(np.linalg.norm(right - left))
    centre = (left + right + mouth) / 3
    below = float(mouth[1] - (left[1] + right[1]) / 2)
    offset = float(np.abs(centre - (0.5, 0.528)).max())
    return 0.1 < eyes < 0.4 and 0.12 < below < 0.45 and offset < LOST_DISTANCE


def _to_frame(transform: Array, points: Array, engine: Engine) -> Array:
    """Crop units -> pixels of the frame the transform was made for."""
    inverse = np.linalg.inv(np.concatenate([transform, [[0, 0, 1]]]))[:2].astype(np.float32)
    return apply_transform(inverse, points * engine.config.image_size)
