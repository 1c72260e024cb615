"""Faces in videos: where they are in every picture, and clips cut to one fixed crop.

Two passes, because the crop of a clip is fixed by the mean of all its landmarks, as for
the training pack: `Scanner` looks at every picture once and remembers numbers only;
`read_crops` reads the codes of pictures that were cut with the transform that came out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.detect import find_faces
from models.face import apply_transform, canonical_transform, crop_points, warp_crop
from models.runtime.engine import Engine
from models.tracking import plausible

Pixels = NDArray[np.uint8]
F32 = NDArray[np.float32]
#: The detector looks again after this many pictures; in between E_mot's landmarks steer.
DETECT_EVERY = 12
#: A second face counts if it is at least this share of the first one's height.
SECOND_FACE = 0.35


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one picture showed."""

    landmarks: F32 | None
    """(152, 2) in pixels of the picture; None: no face."""
    faces: int
    """Faces that the last look of the detector found."""
    eye_distance_px: float
    sharpness: float
    """Mean fine detail of the face crop, grey levels."""
    yaw: float
    pitch: float
    """Radians."""
    cut: bool
    """Whether the whole picture differs from the one before as only a cut does."""


_NOTHING = {"landmarks": None, "eye_distance_px": 0.0, "sharpness": 0.0, "yaw": 0.0, "pitch": 0.0}


class Scanner:
    """Looks at pictures one after the other; engine's thread, about 25 ms each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._points: F32 | None = None
        self._faces = 0
        self._until_look = 0
        self._thumbnail: NDArray[np.float32] | None = None

    def look(self, picture: Pixels) -> Sighting:
        """Take the next picture (H, W, 3) uint8 RGB."""
        cut = self._is_cut(picture)
        if cut:
            self._points = None
        if self._points is None or self._until_look <= 0:
            self._detect(picture)
        self._until_look -= 1
        if self._points is None:
            return Sighting(faces=self._faces, cut=cut, **_NOTHING)  # type: ignore[arg-type]
        size = self._engine.config.image_size
        transform = canonical_transform(self._points, size)
        crop = warp_crop(picture, transform, size)
        reading = self._engine.motion(crop)
        if not plausible(reading.landmarks):
            self._points = None
            return Sighting(faces=self._faces, cut=cut, **_NOTHING)  # type: ignore[arg-type]
        landmarks = apply_transform(_inverse(transform), reading.landmarks * np.float32(size))
        target = crop_points(landmarks)
        self._points = (0.7 * self._points + 0.3 * target).astype(np.float32)
        return Sighting(
            landmarks,
            self._faces,
            float(np.linalg.norm(target[1] - target[0])),
            face_detail(crop),
            float(reading.code.pose[0]),
            float(reading.code.pose[1]),
            cut,
        )

    def _detect(self, picture: Pixels) -> None:
        found = find_faces(picture)
        large = [f for f in found if f.height_px > SECOND_FACE * found[0].height_px]
        self._faces, self._until_look = len(large), DETECT_EVERY
        if not large:
            self._points = None
        elif self._points is None or _far(self._points, large[0].points):
            self._points = settle(picture, large[0].points, self._engine)

    def _is_cut(self, picture: Pixels) -> bool:
        small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        before, self._thumbnail = self._thumbnail, small
        if before is None:
            return False
        # Light that changes everywhere is no cut: compare what is left without the mean.
        change = np.abs((small - small.mean((0, 1))) - (before - before.mean((0, 1)))).mean()
        return bool(change > 22)


def _far(a: F32, b: F32) -> bool:
    width = float(np.linalg.norm(a[1] - a[0]))
    return float(np.linalg.norm(a - b, axis=1).mean()) > 0.6 * width


def settle(picture: Pixels, points: F32, engine: Engine) -> F32:
    """Replace the detector's rough eyes and mouth (3, 2) by the landmarks' own, twice."""
    size = engine.config.image_size
    for _ in range(2):
        transform = canonical_transform(points, size)
        landmarks = engine.motion(warp_crop(picture, transform, size)).landmarks
        points = apply_transform(_inverse(transform), crop_points(landmarks) * np.float32(size))
    return points


def _inverse(transform: F32) -> F32:
    return np.linalg.inv(np.concatenate([transform, [[0, 0, 1]]]))[:2].astype(np.float32)


def face_detail(crop: Pixels) -> float:
    """Mean fine detail in the middle of a canonical crop, in grey levels; blur takes it away."""
    size = len(crop)
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    grey = grey[int(0.3 * size) : int(0.85 * size), int(0.25 * size) : int(0.75 * size)]
    return float(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1.5)).mean())


@dataclass(frozen=True, slots=True)
class FaceClip:
    """One clip in one fixed canonical crop."""

    crops: list[Pixels]
    """(256, 256, 3) uint8 RGB each."""
    codes: F32
    """(T, 58), as E_mot reads them."""
    landmarks: F32
    """(T, 152, 2) in crop units."""


def clip_transform(landmarks_TK2: F32, size: int) -> F32:
    """The clip's transform (2, 3): eyes and mouth of the mean landmarks become canonical."""
    return canonical_transform(crop_points(landmarks_TK2.mean(0).astype(np.float32)), size)


def read_crops(crops: Iterable[Pixels], engine: Engine) -> FaceClip:
    """Run E_mot on every crop of a clip."""
    kept, codes, landmarks = [], [], []
    for crop in crops:
        reading = engine.motion(crop)
        kept.append(crop)
        codes.append(reading.code.concat())
        landmarks.append(reading.landmarks)
    return FaceClip(kept, np.stack(codes), np.stack(landmarks).astype(np.float32))


def read_clip(pictures: list[Pixels], engine: Engine) -> FaceClip:
    """A short clip that shows one face throughout. Raises ValueError where it does not."""
    scanner = Scanner(engine)
    seen = [s.landmarks for s in map(scanner.look, pictures) if s.landmarks is not None]
    if len(seen) < 0.8 * len(pictures):
        raise ValueError(f"a face was seen in {len(seen)} of {len(pictures)} pictures only")
    size = engine.config.image_size
    transform = clip_transform(np.stack(seen), size)
    return read_crops((warp_crop(p, transform, size) for p in pictures), engine)
