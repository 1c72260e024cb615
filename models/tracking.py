"""A webcam's canonical crop: detected once, then steered by E_mot's landmarks.

The crop is where the person sits, not where the head turns: it is fixed at the first good
frame and follows only a face that leaves its place. Poses are given relative to the *home*
crop, the first one, which drifts to the present one over many seconds: a crop that moves or
turns with the head takes nothing away from the pose code (METHOD.md section 1). One E_mot
run per frame serves both codes and tracking.

An engine that reads a decoder's planes (`ReadsYuv`) cuts the crop itself; then a picture becomes
RGB on the CPU only when the detector has to look at it. Trackers of several people can be
updated together (`models.together`), so that E_mot runs once for all of them.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.detect import find_faces
from models.face import (
    CANONICAL_POINTS,
    apply_transform,
    canonical_transform,
    crop_points,
    move_pose,
    warp_crop,
)
from models.runtime.engine import Engine, MotionReading, ReadsYuv, YuvPicture
from models.streaming import OneEuro

#: Landmarks further than this from a face's usual place (crop widths, mean) mean "lost".
LOST_DISTANCE = 0.16
#: How far eyes and mouth may drift from their canonical place before the crop follows.
FOLLOW_DISTANCE = 0.05
FOLLOW_RATE = 0.08
#: Share of the way that home moves to the present crop per frame: 20 s at 25 frames a second.
HOME_RATE = 0.002
#: E_mot sees a face in everything, so the detector looks at the crop once a second, sooner
#: after a miss; this many misses in a row mean "lost" (a turned head may be missed once).
CHECK_EVERY, CHECK_SOON, MISSES = 25, 5, 3
#: Rounding to even sizes is no new aspect ratio.
ASPECT_TOLERANCE = 0.03


class Picture:
    """One webcam picture: what the detector sees of it, and what E_mot reads from it.

    `crop` and `read` take transforms of `canonical_transform` for the engine's image size.
    """

    def __init__(self, engine: Engine, frame: NDArray[np.uint8] | YuvPicture) -> None:
        self._engine, self._frame = engine, frame

    @cached_property
    def rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3); a decoded picture is converted, once."""
        return self._frame.to_rgb() if isinstance(self._frame, YuvPicture) else self._frame

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        planes = self._frame.y if isinstance(self._frame, YuvPicture) else self._frame
        return planes.shape[1], planes.shape[0]

    def crop(self, transform: Array) -> NDArray[np.uint8]:
        """(S, S, 3) RGB, cut on the CPU."""
        return warp_crop(self.rgb, transform, self._engine.config.image_size)

    def read(self, transform: Array) -> MotionReading:
        """Codes and landmarks of a crop; the engine cuts it where it can."""
        if self.planes is not None and isinstance(self._engine, ReadsYuv):
            return self._engine.motion_yuv(self.planes, transform)
        return self._engine.motion(self.crop(transform))

    @property
    def planes(self) -> YuvPicture | None:
        """What an engine that cuts crops itself reads; None for a picture in RGB."""
        return self._frame if isinstance(self._frame, YuvPicture) else None


#: A tracker's work on one picture, which stops wherever E_mot has to read a crop of it: it yields
#: the picture and the crop's transform, and is sent the reading.
Steps = Generator[tuple[Picture, Array], MotionReading, MotionReading | None]


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
        self._home: Array | None = None
        self._size: tuple[int, int] | None = None
        self._until_check = CHECK_EVERY
        self._misses = 0
        self._since_search = self._search_every
        self._smooth.reset()

    @property
    def tracking(self) -> bool:
        """Whether the last frame showed the face."""
        return self._points is not None

    def update(self, frame: NDArray[np.uint8] | YuvPicture) -> MotionReading | None:
        """(H, W, 3) RGB or a decoded picture -> codes and landmarks, None while there is no face.

        While lost, only every `search_every`-th frame is searched: searching costs more
        than a frame has time for.
        """
        steps = self.steps(frame)
        try:
            picture, transform = next(steps)
            while True:
                picture, transform = steps.send(picture.read(transform))
        except StopIteration as end:
            reading: MotionReading | None = end.value
            return reading

    def steps(self, frame: NDArray[np.uint8] | YuvPicture) -> Steps:
        """`update` as a generator, for whoever reads the crops of many trackers at once."""
        picture = Picture(self._engine, frame)
        self._follow_size(picture.size)
        if self._points is None:
            self._since_search += 1
            if self._since_search < self._search_every:
                return None
            self._since_search = 0
            faces = find_faces(picture.rgb)
            if not faces:
                return None
            self._points = faces[0].points
            yield from self._settle(picture)
        reading = yield from self._read(picture, self._points)
        if reading is None:
            self.reset()
        return reading

    def _follow_size(self, size: tuple[int, int]) -> None:
        """Browsers change a camera's resolution in the middle of a call; the face stays.

        Another aspect ratio is another cut of the scene: then the face is searched anew.
        """
        before, self._size = self._size, size
        if before is None or before == size or self._points is None:
            return
        x, y = size[0] / before[0], size[1] / before[1]
        if abs(x / y - 1) > ASPECT_TOLERANCE:
            self.reset()
            self._size = size
            return
        scale = np.array([x, y], np.float32)
        self._points = self._points * scale
        self._smooth.reset()
        self._smooth.push(self._points.reshape(-1))
        if self._home is not None:
            self._home = self._home * scale

    def _settle(self, picture: Picture) -> Generator[tuple[Picture, Array], MotionReading, None]:
        """Replace the detector's rough points by the landmarks' own, twice."""
        assert self._points is not None
        for _ in range(2):
            transform = canonical_transform(self._points, self._engine.config.image_size)
            landmarks = (yield picture, transform).landmarks
            self._points = _to_frame(transform, crop_points(landmarks), self._engine)

    def _read(self, picture: Picture, points: Array) -> Steps:
        size = self._engine.config.image_size
        transform = canonical_transform(points, size)
        if not self._still_there(picture, transform):
            return None
        reading = yield picture, transform
        if not plausible(reading.landmarks):
            return None
        target = _to_frame(transform, crop_points(reading.landmarks), self._engine)
        width = size / float(np.hypot(transform[0, 0], transform[1, 0]))
        drift = float(np.linalg.norm(target - points, axis=1).mean()) / width
        if drift > FOLLOW_DISTANCE:
            points = points + (target - points) * np.float32(FOLLOW_RATE)
        self._points = self._smooth.push(points.reshape(-1)).reshape(3, 2)
        return self._from_home(reading, transform)

    def _still_there(self, picture: Picture, transform: Array) -> bool:
        """Ask the detector now and then; False once it has missed the face several times."""
        self._until_check -= 1
        if self._until_check > 0:
            return True
        self._misses = 0 if find_faces(picture.crop(transform)) else self._misses + 1
        self._until_check = CHECK_SOON if self._misses else CHECK_EVERY
        return self._misses < MISSES

    def _from_home(self, reading: MotionReading, transform: Array) -> MotionReading:
        """The reading with its pose relative to the home crop."""
        size = self._engine.config.image_size
        here = _frame_points(transform, size)
        if self._home is None:
            self._home = here
        self._home = self._home + (here - self._home) * np.float32(HOME_RATE)
        home = canonical_transform(self._home, 1)
        move = _chain(home, _inverse(transform / np.float32(size)))
        pose = move_pose(reading.code.pose, move)
        return MotionReading(reading.code.with_("pose", pose), reading.landmarks)


def plausible(landmarks: Array) -> bool:
    """Whether landmarks (152, 2) form a face that fills its crop: right size, inside, upright."""
    left, right, mouth = crop_points(landmarks)
    eyes = float(np.linalg.norm(right - left))
    centre = (left + right + mouth) / 3
    below = float(mouth[1] - (left[1] + right[1]) / 2)
    offset = float(np.abs(centre - (0.5, 0.528)).max())
    return 0.1 < eyes < 0.4 and 0.12 < below < 0.45 and offset < LOST_DISTANCE


def _inverse(transform: Array) -> Array:
    """Inverse of a (2, 3) transform."""
    return np.linalg.inv(np.concatenate([transform, [[0, 0, 1]]]))[:2].astype(np.float32)


def _chain(second: Array, first: Array) -> Array:
    """(2, 3) transform that applies `first`, then `second`."""
    row = np.array([[0, 0, 1]], np.float32)
    both = np.concatenate([second, row]) @ np.concatenate([first, row])
    return np.asarray(both[:2], np.float32)


def _frame_points(transform: Array, size: int) -> Array:
    """Where the canonical eyes and mouth of a crop lie in its frame, in pixels."""
    return apply_transform(_inverse(transform), CANONICAL_POINTS * size)


def _to_frame(transform: Array, points: Array, engine: Engine) -> Array:
    """Crop units -> pixels of the frame the transform was made for."""
    return apply_transform(_inverse(transform), points * engine.config.image_size)
