"""A frame's number in its pixels: exact, through a starved VP8, and never a wrong one."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codes import MotionCode
from realtime.bench.client import luma_plane, mouth_patch
from realtime.stamp import NUMBER_BITS, read_stamp, stamp
from tests.fakes import paint_face

pytestmark = pytest.mark.unit


def picture(size: int, mouth: float = 0.0) -> np.ndarray:
    code = MotionCode()
    code.lip[0] = mouth
    rgb = paint_face(code, size=size)
    # A little texture, so that the encoder has something else to spend its bits on.
    noise = np.random.default_rng(5).normal(0, 8, rgb.shape)
    rgb = np.clip(rgb + noise, 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), np.uint8)


@given(number=st.integers(0, 2**NUMBER_BITS - 1), size=st.sampled_from([128, 256, 384, 512]))
def test_what_is_written_is_read(number: int, size: int) -> None:
    i420 = np.full((size * 3 // 2, size), 90, np.uint8)
    stamp(i420, number)
    assert read_stamp(i420[:size]) == number


def test_numbers_wrap_and_the_rest_of_the_picture_stays() -> None:
    i420 = picture(256)
    before = i420.copy()
    stamp(i420, 2**NUMBER_BITS + 7)
    assert read_stamp(i420[:256]) == 7
    assert np.array_equal(i420[16:256], before[16:256])
    chroma, old = i420[256:].reshape(2, 128, 128), before[256:].reshape(2, 128, 128)
    assert np.array_equal(chroma[:, 8:], old[:, 8:])
    assert (chroma[:, :8] == 128).all()


def test_pictures_without_a_stamp_have_none(rng: np.random.Generator) -> None:
    assert read_stamp(picture(256)[:256]) is None
    assert read_stamp(np.zeros((256, 256), np.uint8)) is None
    assert read_stamp(np.zeros((20, 20), np.uint8)) is None
    for _ in range(300):
        noise = rng.integers(0, 256, (32, 32), np.uint8)
        assert read_stamp(cv2.resize(noise, (256, 256), interpolation=cv2.INTER_NEAREST)) is None


@given(number=st.integers(0, 2**NUMBER_BITS - 1), block=st.integers(2, 31))
def test_any_single_wrong_block_is_noticed(number: int, block: int) -> None:
    i420 = np.full((384, 256), 90, np.uint8)
    stamp(i420, number)
    row, column = divmod(block, 16)
    area = i420[row * 8 : row * 8 + 8, column * 16 : column * 16 + 16]
    area[:] = 248 - area
    assert read_stamp(i420[:256]) is None


@pytest.mark.parametrize("size", [256, 512])
def test_stamps_survive_vp8_at_150_kbit_per_second(size: int) -> None:
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.width = encoder.height = size
    encoder.pix_fmt = "yuv420p"
    encoder.bit_rate = 150_000
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25, 1)
    encoder.options = {
        "deadline": "realtime", "cpu-used": "-8", "lag-in-frames": "0", "minrate": "150000",
        "maxrate": "150000", "bufsize": "75000", "static-thresh": "1",
    }  # fmt: skip
    decoder = av.CodecContext.create("libvpx", "r")
    encoder.thread_count = 1
    read, wrong, size_bytes = 0, 0, 0
    count = 75
    faces = [picture(size, float(mouth)) for mouth in np.linspace(0, 3, 6)]
    for number in range(1000, 1000 + count):
        i420 = faces[number % 6].copy()
        stamp(i420, number)
        frame = av.VideoFrame.from_ndarray(i420, format="yuv420p")
        frame.pts = number
        for packet in encoder.encode(frame):
            size_bytes += packet.size
            for decoded in decoder.decode(av.Packet(bytes(packet))):
                found = read_stamp(luma_plane(decoded))
                read += found == number
                wrong += found is not None and found != number
    assert size_bytes * 8 / (count / 25) < 260_000, "the encoder must really be starved"
    assert wrong == 0
    assert read >= 0.95 * count


def test_the_mouths_patch_follows_the_mouth() -> None:
    shut, half, wide = (mouth_patch(picture(256, lip)[:256]) for lip in (0.0, 1.5, 3.0))
    assert shut.shape == (12, 12)
    assert np.abs(wide - shut).mean() > 1.5 * np.abs(half - shut).mean() > 5
