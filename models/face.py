"""A linear 3-D landmark model of the moving face, and the canonical crop it lives in.

The *canonical crop* is a square cut of a picture in which eyes and mouth sit at fixed
places (`CANONICAL_POINTS`), about 1.7 face heights wide. Its coordinates run from 0 to 1,
x right and y down. Portraits are cut once; a webcam's cut moves slowly and causally
(`models.tracking`).

A head is 152 landmarks in the head frame (x right, y up, z to the viewer, in crop widths,
origin at the neck's pivot): a neutral shape that belongs to the person plus a basis that
belongs to everybody, times the lip, eye and expression codes. The pose code turns,
scales and shifts it (scaled orthographic camera). The basis is fitted by
`trainer.face_fit` to clips whose motion is known exactly; nothing here is learnt by
gradient descent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS, Array, MotionCode

LANDMARKS = 152
#: Rows of the landmark axis by group (left and right are the image's).
GROUPS: dict[str, slice] = {
    "oval": slice(0, 36),
    "brow_left": slice(36, 46),
    "brow_right": slice(46, 56),
    "eye_left": slice(56, 72),
    "eye_right": slice(72, 88),
    "iris_left": slice(88, 93),
    "iris_right": slice(93, 98),
    "nose": slice(98, 112),
    "lips_outer": slice(112, 132),
    "lips_inner": slice(132, 152),
}
#: Left eye, right eye and mouth centre in the canonical crop.
CANONICAL_POINTS: Array = np.array([[0.392, 0.440], [0.608, 0.440], [0.5, 0.705]], np.float32)
#: Where the neck pivot of an unturned head lies in the canonical crop.
CANONICAL_ORIGIN: Array = np.array([0.5, 0.743], np.float32)
BASIS_DIM = DIMS["lip"] + DIMS["eye"] + DIMS["exp"]

# Pairs of inner-lip landmarks, upper and lower, around the middle of the mouth.
_INNER_UPPER = [146, 147, 148]
_INNER_LOWER = [136, 137, 138]


def rotation(pose: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(..., >=3) yaw, pitch, roll in radians -> (..., 3, 3) = Ry(yaw) Rx(-pitch) Rz(roll)."""
    yaw, pitch, roll = np.moveaxis(np.asarray(pose, np.float64)[..., :3], -1, 0)
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    rows = [
        [cy * cr - sy * sp * sr, -cy * sr - sy * sp * cr, sy * cp],
        [cp * sr, cp * cr, sp],
        [-sy * cr - cy * sp * sr, sy * sr - cy * sp * cr, cy * cp],
    ]
    return np.stack([np.stack(r, -1) for r in rows], -2)


def euler(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3, 3) -> (..., 3) yaw, pitch, roll; inverse of `rotation`."""
    return np.stack(
        [
            np.arctan2(matrix[..., 0, 2], matrix[..., 2, 2]),
            np.arcsin(np.clip(matrix[..., 1, 2], -1, 1)),
            np.arctan2(matrix[..., 1, 0], matrix[..., 1, 1]),
        ],
        -1,
    )


def move_pose(pose: Array, transform: Array) -> Array:
    """Pose code (6,) after a similarity (2, 3) of the crop, in crop units."""
    linear = transform[:, :2].astype(np.float64)
    # The image's y points down, the head frame's up, hence the sign.
    angle = -np.arctan2(linear[1, 0], linear[0, 0])
    turned = rotation(np.array([0, 0, angle])) @ rotation(pose)
    origin = apply_transform(transform, CANONICAL_ORIGIN + pose[3:5]) - CANONICAL_ORIGIN
    zoom = float(pose[5]) + 0.5 * np.log(np.linalg.det(linear))
    return np.concatenate([euler(turned), origin, [zoom]]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FaceModel:
    """Mean neutral head (152, 3) and basis (52, 152, 3): lip 16, eye 6, expression 30."""

    mean: Array
    basis: Array

    def __post_init__(self) -> None:
        if self.mean.shape != (LANDMARKS, 3) or self.basis.shape != (BASIS_DIM, LANDMARKS, 3):
            raise ValueError(f"bad face model shapes {self.mean.shape}, {self.basis.shape}")

    def offsets(self, code: MotionCode) -> Array:
        """Displacement (152, 3) of the landmarks by the lip, eye and expression codes."""
        weights = np.concatenate([code.lip, code.eye, code.exp])
        return np.asarray(np.tensordot(weights, self.basis, 1), np.float32)

    def project(self, shape: Array, code: MotionCode) -> Array:
        """Landmarks (152, 2) in crop units of a neutral `shape` (152, 3) moved by `code`."""
        turned = (shape + self.offsets(code)) @ rotation(code.pose)[:2].T
        turned = turned * np.exp(code.pose[5]) * (1.0, -1.0)
        return np.asarray(turned + CANONICAL_ORIGIN + code.pose[3:5], np.float32)

    def lift(self, landmarks: Array, code: MotionCode) -> Array:
        """Neutral shape (152, 3) that `project` maps exactly to `landmarks` (152, 2).

        Depth is the mean head's, because one view does not show it.
        """
        turn = rotation(code.pose)
        offsets = self.offsets(code)
        seen = (landmarks - CANONICAL_ORIGIN - code.pose[3:5]) * (1.0, -1.0) / np.exp(code.pose[5])
        depth = ((self.mean + offsets) @ turn.T)[:, 2:]
        return (np.concatenate([seen, depth], 1) @ turn - offsets).astype(np.float32)


def crop_points(landmarks: Array) -> Array:
    """(152, 2) landmarks -> (3, 2): centres of the left eye, the right eye and the mouth."""
    return np.stack(
        [
            landmarks[GROUPS["eye_left"], :2].mean(0),
            landmarks[GROUPS["eye_right"], :2].mean(0),
            landmarks[GROUPS["lips_outer"], :2].mean(0),
        ]
    ).astype(np.float32)


def canonical_transform(points: Array, size: int) -> Array:
    """Similarity (2, 3) that maps eyes and mouth (3, 2), in pixels, into a crop of `size` pixels.

    Least squares over the three points, so no point is favoured. Pixel centres are at
    +0.5 in crop units, as in the labels.
    """
    src = np.asarray(points, np.float64)
    dst = CANONICAL_POINTS.astype(np.float64) * size
    src_mean, dst_mean = src.mean(0), dst.mean(0)
    a, b = src - src_mean, dst - dst_mean
    norm = float((a * a).sum())
    if norm < 1e-9:
        raise ValueError("eyes and mouth coincide: no crop can be made from them")
    cos = float((a * b).sum()) / norm
    sin = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / norm
    linear = np.array([[cos, -sin], [sin, cos]])
    shift = dst_mean - linear @ src_mean
    return np.concatenate([linear, shift[:, None]], 1).astype(np.float32)


def warp_crop(image: NDArray[np.uint8], transform: Array, size: int) -> NDArray[np.uint8]:
    """Cut (size, size, 3) from `image` with a transform of `canonical_transform`.

    The transform speaks of continuous coordinates (pixel centres at +0.5), OpenCV of
    pixel indices, hence the half-pixel shifts. Shrinking is anti-aliased.
    """
    shifted = np.asarray(transform, np.float64).copy()
    shifted[:, 2] += shifted[:, :2] @ np.array([0.5, 0.5]) - 0.5
    scale = float(np.hypot(shifted[0, 0], shifted[1, 0]))
    if scale < 0.6:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.45 / scale), np.uint8)
    flags = cv2.INTER_CUBIC if scale > 1.2 else cv2.INTER_LINEAR
    out = cv2.warpAffine(image, shifted, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.uint8)


def apply_transform(transform: Array, points: Array) -> Array:
    """Map (..., 2) points by a (2, 3) transform."""
    return (points @ transform[:, :2].T + transform[:, 2]).astype(np.float32)


def lip_gap(landmarks: Array) -> Array:
    """Inner-lip gap over face height (forehead 0 to chin 18); (..., 152, 2) -> (...)."""
    gap = landmarks[..., _INNER_LOWER, :2].mean(-2) - landmarks[..., _INNER_UPPER, :2].mean(-2)
    height = landmarks[..., 18, :2] - landmarks[..., 0, :2]
    size = np.linalg.norm(height, axis=-1)
    return np.asarray((gap * height).sum(-1) / np.maximum(size, 1e-6) ** 2, np.float32)
