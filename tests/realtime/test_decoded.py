"""Decoded frames: their planes mean the colours that PyAV makes of them; the rest goes as RGB."""

from __future__ import annotations

import av
import numpy as np
import pytest

from kernels.yuv_to_tensor import colour_terms
from kernels.yuv_to_tensor.reference import yuv_to_tensor
from models.runtime.engine import DeviceLostError, MotionReading, YuvPicture
from realtime.decoded import to_rgb, yuv_picture
from realtime.worker import RenderWorker
from tests.fakes import FakeClock, FakeEngine, Pixels, paint_face
from tests.realtime.worker_rig import CONFIG, fake_session

pytestmark = pytest.mark.unit


def smooth(width: int, height: int, layout: str = "yuv420p") -> av.VideoFrame:
    """Broad waves of colour, as a decoder hands them over."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = [np.sin(x + 1), np.cos(2 * y), np.sin(x + y)]
    rgb = (128 + 90 * np.stack(waves, -1)).astype(np.uint8)
    return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=layout)


def rgb_of(picture: YuvPicture) -> np.ndarray:
    """(H, W, 3) float: what the kernel makes of the whole picture."""
    terms = colour_terms(picture.matrix, picture.full_range)
    whole = np.eye(2, 3)
    planes = (picture.y, picture.u, picture.v)
    shape: tuple[int, int] = picture.y.shape
    return yuv_to_tensor(*planes, whole, shape, 1, terms, 1.0, 0.0).transpose(1, 2, 0)


@pytest.mark.parametrize("layout", ["yuv420p", "yuvj420p", "nv12"])
@pytest.mark.parametrize(("width", "height"), [(96, 64), (101, 75)], ids=["even", "odd"])
@pytest.mark.parametrize("colorspace", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("color_range", [0, 1, 2])
def test_planes_have_the_colours_of_pyavs_rgb(
    layout: str, width: int, height: int, colorspace: int, color_range: int
) -> None:
    """Within 1 % of the range on average, as the kernel's product test has it; 3 % anywhere.

    libswscale rounds on the way and repeats chroma samples, where the kernel interpolates. The
    other matrix is 2 % off, the other range 3 %.
    """
    frame = smooth(width, height, layout)
    frame.colorspace, frame.color_range = colorspace, color_range
    picture = yuv_picture(frame)
    assert picture is not None
    wanted = to_rgb(frame)
    assert wanted.shape == (height, width, 3)
    error = np.abs(rgb_of(picture) - wanted) / 255
    assert error.mean() < 0.01
    assert error.max() < 0.03
    np.testing.assert_array_equal(picture.to_rgb(), wanted)


def test_what_the_kernel_does_not_know_stays_rgb() -> None:
    for layout in ("yuv422p", "yuv444p", "rgb24", "gray", "yuv420p10le"):
        assert yuv_picture(smooth(64, 48, layout)) is None
    frame = smooth(64, 48)
    for colorspace in (4, 7, 9):
        frame.colorspace = colorspace
        assert yuv_picture(frame) is None


def test_planes_outlive_their_frame() -> None:
    frame = smooth(64, 48)
    picture = yuv_picture(frame)
    assert picture is not None
    y = picture.y
    before = y.copy()
    del frame, picture
    others = [smooth(48, 64).reformat(64, 48) for _ in range(8)]
    np.testing.assert_array_equal(y, before)
    assert not np.array_equal(before, yuv_picture(others[0]).y)  # type: ignore[union-attr]


# --- the worker -------------------------------------------------------------------------


class PlanesEngine(FakeEngine):
    """A fake that reads planes, as an engine on a card does."""

    lost = False

    def motion_yuv(self, picture: YuvPicture, transform: object) -> MotionReading:
        if self.lost:
            raise DeviceLostError("the card is gone")
        return self.motion(np.asarray(rgb_of(picture), np.uint8))

    def motion_yuv_batch(self, crops: list[tuple[YuvPicture, object]]) -> list[MotionReading]:
        return [self.motion_yuv(picture, transform) for picture, transform in crops]


class Seen:
    """A tracker that keeps what it is given."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.frames: list[Pixels | YuvPicture] = []

    def update(self, frame: Pixels | YuvPicture) -> MotionReading | None:
        self.frames.append(frame)
        if isinstance(frame, YuvPicture):
            assert isinstance(self._engine, PlanesEngine)
            return self._engine.motion_yuv(frame, np.eye(2, 3))
        return self._engine.motion(frame)


def watch(engine: FakeEngine, clock: FakeClock) -> tuple[RenderWorker, list[Seen]]:
    trackers: list[Seen] = []

    def make(_: object) -> Seen:
        trackers.append(Seen(engine))
        return trackers[-1]

    worker = RenderWorker(lambda: engine, make_tracker=make, clock=clock)
    worker.load()
    return worker, trackers


def webcam(layout: str = "yuv420p") -> av.VideoFrame:
    face = paint_face()
    assert face.shape == (256, 256, 3)
    return av.VideoFrame.from_ndarray(face, "rgb24").reformat(format=layout)


def test_an_engine_that_reads_planes_gets_them() -> None:
    clock = FakeClock()
    worker, trackers = watch(PlanesEngine(config=CONFIG, clock=clock), clock)
    session = fake_session(worker, clock)
    for frame, kind in (
        (webcam(), YuvPicture),
        (webcam("nv12"), YuvPicture),
        (webcam("yuv444p"), np.ndarray),
        (paint_face(), np.ndarray),
    ):
        session.webcam(frame)  # type: ignore[arg-type]
        clock.advance(100)
        worker.step()
        assert isinstance(trackers[0].frames[-1], kind)
    assert not session.errors
    assert all(m.reading is not None for m in session.motions)
    assert len(session.motions) == 4


def test_any_other_engine_gets_the_rgb_of_before() -> None:
    clock = FakeClock()
    worker, trackers = watch(FakeEngine(config=CONFIG, clock=clock), clock)
    session = fake_session(worker, clock)
    session.webcam(webcam())  # type: ignore[arg-type]
    worker.step()
    (seen,) = trackers[0].frames
    assert isinstance(seen, np.ndarray)
    np.testing.assert_array_equal(seen, webcam().to_ndarray(format="rgb24"))


def test_a_card_lost_over_a_webcam_picture_ends_the_engine() -> None:
    clock = FakeClock()
    engine = PlanesEngine(config=CONFIG, clock=clock)
    worker, _ = watch(engine, clock)
    session = fake_session(worker, clock)
    engine.lost = True
    session.webcam(webcam())  # type: ignore[arg-type]
    with pytest.raises(DeviceLostError):
        worker.step()
    assert not session.errors, "the worker holds and restarts; the session is not to blame"
