"""The CPU's frame renderer equals the three steps it replaces, byte for byte."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from models.codes import DIMS, MotionCode
from models.composite import compose
from models.portrait import Portrait, prepare_portrait
from models.runtime.base import BaseEngine
from models.runtime.engine import DeviceLostError, EngineError
from models.runtime.frames import (
    CpuFrameRenderer,
    FrameRequest,
    FrameResult,
    frame_renderer,
    to_i420,
)

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def portrait(engine: BaseEngine, portrait_picture: np.ndarray) -> Portrait:
    return prepare_portrait(portrait_picture, engine, id="a", name="A")


def speaking(portrait: Portrait, lip: float) -> MotionCode:
    code = np.zeros(DIMS["lip"], np.float32)
    code[0] = lip
    return portrait.appearance.code.with_("lip", code)


@pytest.mark.parametrize("size", [256, 384, 512])
def test_a_frame_equals_draw_compose_convert(
    engine: BaseEngine, portrait: Portrait, size: int
) -> None:
    source = np.asarray(cv2.resize(portrait.image, (size, size)), np.uint8)
    driving = speaking(portrait, 1.5)
    renderer = frame_renderer(engine)
    assert renderer.max_batch == 1
    [frame] = renderer.render([FrameRequest(portrait.appearance, source, driving)])
    rgb = compose(engine.draw(portrait.appearance, driving), source, size)
    np.testing.assert_array_equal(frame.i420, cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420))
    assert frame.i420.shape == (size * 3 // 2, size)


def test_spans_are_the_time_each_step_took(engine: BaseEngine, portrait: Portrait) -> None:
    ticks = iter([100, 120, 150, 190])
    renderer = CpuFrameRenderer(engine, clock=lambda: next(ticks))
    [frame] = renderer.render(
        [FrameRequest(portrait.appearance, portrait.image, portrait.appearance.code)]
    )
    assert frame.spans == {"draw": 20, "compose": 30, "convert": 40}


def test_every_frame_is_the_receivers_own(engine: BaseEngine, portrait: Portrait) -> None:
    renderer = frame_renderer(engine)
    first, second = (
        renderer.render([FrameRequest(portrait.appearance, portrait.image, code)])[0].i420
        for code in (portrait.appearance.code, speaking(portrait, 2.0))
    )
    assert not np.shares_memory(first, second)
    assert (first != second).any()


def test_bad_batches_and_sources_are_refused(engine: BaseEngine, portrait: Portrait) -> None:
    renderer = frame_renderer(engine)
    code = portrait.appearance.code
    good = FrameRequest(portrait.appearance, portrait.image, code)
    for batch in ([], [good, good]):
        with pytest.raises(ValueError, match="1 to 1 requests"):
            renderer.render(batch)
    for source in (portrait.image[:-1, :-1], portrait.image[:300], portrait.image / 255.0):
        with pytest.raises(ValueError, match=r"must be \(N, N, 3\) uint8 with even N"):
            renderer.render([FrameRequest(portrait.appearance, source, code)])


def test_an_engine_with_its_own_renderer_is_asked_for_it(engine: BaseEngine) -> None:
    class Own:
        max_batch = 16

        def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
            raise DeviceLostError("gone")

    own = Own()

    class Fused(type(engine)):  # type: ignore[misc]
        def frame_renderer(self) -> Own:
            return own

    fused = Fused.__new__(Fused)
    assert frame_renderer(fused) is own
    with pytest.raises(EngineError, match="gone"):
        own.render([])


def test_grey_becomes_limited_range_grey() -> None:
    white = to_i420(np.full((4, 4, 3), 255, np.uint8))
    assert white.shape == (6, 4)
    assert (white[:4] == 235).all()
    assert (white[4:] == 128).all()


def test_a_batch_of_sounds_equals_one_by_one(engine: BaseEngine) -> None:
    rng = np.random.default_rng(1)
    mel = rng.random((5, engine.config.mel_window, 80), np.float32)
    lips = engine.audio_batch(mel)
    assert lips.shape == (5, DIMS["lip"])
    np.testing.assert_array_equal(lips, np.stack([engine.audio(m) for m in mel]))
    with pytest.raises(ValueError, match="B >= 1"):
        engine.audio_batch(mel[:0])
