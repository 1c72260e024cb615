"""From somebody's picture to a portrait that the generator can move.

Enrolment uses the exact crop of training (`models.face`), checks that the picture is fit
for it, and computes everything that is needed only once (E_app, landmarks, neutral
shape). Errors are sentences for the person who uploaded the picture.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.detect import Face, find_faces
from models.face import apply_transform, canonical_transform, crop_points, lip_gap, warp_crop
from models.runtime.engine import Appearance, Engine

MAX_IMAGE_BYTES = 12 * 1024 * 1024
MAX_IMAGE_PIXELS = 40_000_000
PORTRAIT_SIZE = 512
MIN_FACE_PX = 90
MAX_YAW = 0.45
MAX_PITCH = 0.45
MAX_LIP_GAP = 0.06


class PortraitError(ValueError):
    """The picture cannot become a portrait; `code` is stable, the message is for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Portrait:
    """One enrolled face: `image` is the (512, 512, 3) uint8 RGB canonical crop."""

    id: str
    name: str
    image: NDArray[np.uint8]
    appearance: Appearance


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """JPEG, PNG or WebP bytes -> (H, W, 3) uint8 RGB, turned as its EXIF says.

    The size is read from the header before anything is decoded, so a decompression bomb
    costs nothing.

    Raises:
        PortraitError: `image_too_large`, `image_unknown` or `image_damaged`.
    """
    if len(data) > MAX_IMAGE_BYTES:
        limit = MAX_IMAGE_BYTES // 2**20
        raise PortraitError("image_too_large", f"The picture is larger than {limit} MB.")
    size = _image_size(data)
    if size is None:
        raise PortraitError("image_unknown", "This is not a JPEG, PNG or WebP picture.")
    if size[0] * size[1] > MAX_IMAGE_PIXELS or max(size) > 16_384:
        raise PortraitError(
            "image_too_large", f"The picture has {size[0]} x {size[1]} pixels; that is too many."
        )
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise PortraitError("image_damaged", "The picture is damaged and cannot be read.")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def _image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the header, or None for an unknown or broken one."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack(">II", data[16:24])
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            width, height = _webp_size(data)
        elif data[:2] == b"\xff\xd8":
            width, height = _jpeg_size(data)
        else:
            return None
    except (struct.error, IndexError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while True:
        if data[position] != 0xFF:
            raise ValueError("not a JPEG marker")
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            return int(width), int(height)
        if 0xD0 <= marker <= 0xD9 or marker == 0x01:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def prepare_portrait(image: NDArray[np.uint8], engine: Engine, *, id: str, name: str) -> Portrait:
    """Crop, check and encode a picture (H, W, 3) uint8 RGB; call it on the engine's thread.

    Raises:
        PortraitError: `no_face`, `many_faces`, `face_too_small`, `face_turned`, `mouth_open`
            or `face_unclear`.
    """
    face = _one_face(image)
    points = face.points
    for _ in range(3):
        transform = canonical_transform(points, engine.config.image_size)
        crop = warp_crop(image, transform, engine.config.image_size)
        landmarks = engine.motion(crop).landmarks
        inverse = np.linalg.inv(np.concatenate([transform, [[0, 0, 1]]]))[:2].astype(np.float32)
        points = apply_transform(inverse, crop_points(landmarks) * engine.config.image_size)
    if not np.isfinite(points).all() or _disagree(points, face):
        raise PortraitError(
            "face_unclear",
            "The face could not be read clearly. Try a sharper, evenly lit picture without "
            "anything in front of the face.",
        )
    crop = warp_crop(image, canonical_transform(points, engine.config.image_size),
                     engine.config.image_size)  # fmt: skip
    appearance = engine.appearance(crop)
    _check_pose(appearance)
    large = warp_crop(image, canonical_transform(points, PORTRAIT_SIZE), PORTRAIT_SIZE)
    return Portrait(id, name, large, appearance)


def _one_face(image: NDArray[np.uint8]) -> Face:
    faces = find_faces(image)
    if not faces:
        raise PortraitError(
            "no_face", "No face was found. Use a picture of one face, seen from the front."
        )
    if len(faces) > 1 and faces[1].height_px > 0.6 * faces[0].height_px:
        raise PortraitError("many_faces", "There is more than one face in the picture.")
    if faces[0].height_px < MIN_FACE_PX:
        raise PortraitError(
            "face_too_small",
            f"The face is only {faces[0].height_px:.0f} pixels high; it needs at least "
            f"{MIN_FACE_PX}. Use a larger picture or crop it closer.",
        )
    return faces[0]


def _disagree(points: Array, face: Face) -> bool:
    """Whether landmarks ended up elsewhere than the face that was detected."""
    distance = np.linalg.norm(points - face.points, axis=1).max()
    return bool(distance > 0.25 * face.height_px)


def _check_pose(appearance: Appearance) -> None:
    yaw, pitch = (float(v) for v in appearance.code.pose[:2])
    if abs(yaw) > MAX_YAW or abs(pitch) > MAX_PITCH:
        raise PortraitError(
            "face_turned", "The face is turned too far. Look straight into the camera."
        )
    if float(lip_gap(appearance.landmarks)) > MAX_LIP_GAP:
        raise PortraitError("mouth_open", "The mouth is open. Use a picture with closed lips.")
