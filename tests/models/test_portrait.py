"""Enrolment: bad pictures get a sentence, bombs cost nothing, good ones become portraits."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest

from models import portrait as module
from models.face import CANONICAL_POINTS, crop_points
from models.portrait import PortraitError, decode_image, prepare_portrait

pytestmark = pytest.mark.unit


def encoded(image: np.ndarray, kind: str = ".png") -> bytes:
    return cv2.imencode(kind, image[..., ::-1])[1].tobytes()


@pytest.mark.parametrize("kind", [".png", ".jpg", ".webp"])
def test_pictures_decode_as_rgb(kind: str) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = 200
    decoded = decode_image(encoded(image, kind))
    assert decoded.shape == (40, 60, 3)
    assert decoded[..., 0].mean() > 180
    assert decoded[..., 2].mean() < 30


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF1234WEBPVP8 ", b"GIF89a" * 9],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(PortraitError, match="not a JPEG") as error:
        decode_image(data)
    assert error.value.code == "image_unknown"


def test_a_damaged_picture_is_refused() -> None:
    data = encoded(np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(PortraitError, match="damaged"):
        decode_image(data[:40])


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = io.BytesIO()
    png.write(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk)
    png.write(struct.pack(">I", zlib.crc32(chunk)))

    def never(*args: object) -> None:
        raise AssertionError("a bomb must not be decoded")

    monkeypatch.setattr(module.cv2, "imdecode", never)
    with pytest.raises(PortraitError, match="60000 x 60000"):
        decode_image(png.getvalue())


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(PortraitError, match="larger than"):
        decode_image(bytes(module.MAX_IMAGE_BYTES + 1))


def test_no_face_is_said(engine) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    with pytest.raises(PortraitError, match="No face") as error:
        prepare_portrait(picture, engine, id="x", name="x")
    assert error.value.code == "no_face"


def test_two_faces_are_said(engine, portrait_picture) -> None:
    both = np.concatenate([portrait_picture, portrait_picture], 1)
    with pytest.raises(PortraitError, match="more than one"):
        prepare_portrait(both, engine, id="x", name="x")


def test_a_tiny_face_is_said(engine, portrait_picture) -> None:
    # A face is about two thirds of its portrait: 77 pixels here, 90 are needed.
    canvas = np.full((600, 600, 3), 128, np.uint8)
    canvas[250:365, 250:365] = cv2.resize(
        portrait_picture, (115, 115), interpolation=cv2.INTER_AREA
    )
    with pytest.raises(PortraitError, match="pixels high"):
        prepare_portrait(canvas, engine, id="x", name="x")


def test_a_portrait_lands_in_the_canonical_crop(engine, portrait_picture) -> None:
    tilted = cv2.warpAffine(
        portrait_picture, cv2.getRotationMatrix2D((256, 256), 8, 0.8), (512, 512),
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    for picture in (portrait_picture, tilted):
        portrait = prepare_portrait(picture, engine, id="a", name="A")
        assert portrait.image.shape == (512, 512, 3)
        points = crop_points(portrait.appearance.landmarks)
        assert np.abs(points - CANONICAL_POINTS).max() < 0.03
        assert abs(float(portrait.appearance.code.pose[2])) < 0.08, "roll is taken out"
