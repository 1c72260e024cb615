"""Engine = eager, on real pictures and real speech; drawings do what the codes say."""

import numpy as np
import pytest

from models.codes import DIMS, MotionCode
from models.composite import compose
from models.portrait import Portrait, prepare_portrait
from models.runtime import load_engine
from models.runtime.base import BaseEngine
from models.runtime.engine import EngineError
from models.streaming import AudioWindow

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def portrait(engine: BaseEngine, portrait_picture: np.ndarray) -> Portrait:
    return prepare_portrait(portrait_picture, engine, id="a", name="A")


@pytest.fixture(scope="module")
def reference() -> BaseEngine:
    return load_engine("torch", threads=2)


def driven(portrait: Portrait, lip: float = 0.0, yaw: float = 0.0, shut: float = 0.0) -> MotionCode:
    lips = np.zeros(DIMS["lip"], np.float32)
    lips[0] = lip
    pose = portrait.appearance.code.pose + np.array([yaw, 0, 0, 0, 0, 0], np.float32)
    eye = portrait.appearance.code.eye.copy()
    eye[:2] = np.maximum(eye[:2], shut)
    code = portrait.appearance.code
    return code.with_("lip", lips).with_("pose", pose.astype(np.float32)).with_("eye", eye)


def draw(engine: BaseEngine, portrait: Portrait, code: MotionCode) -> np.ndarray:
    return compose(engine.draw(portrait.appearance, code), portrait.image, 512)


def test_openvino_equals_torch(
    engine: BaseEngine, reference: BaseEngine, portrait: Portrait
) -> None:
    crop = portrait.image[::2, ::2].copy()
    a, b = engine.motion(crop), reference.motion(crop)
    np.testing.assert_allclose(a.code.concat(), b.code.concat(), atol=2e-3)
    np.testing.assert_allclose(a.landmarks, b.landmarks, atol=1e-3)
    code = driven(portrait, lip=1.5, yaw=0.1)
    c, d = engine.draw(portrait.appearance, code), reference.draw(portrait.appearance, code)
    np.testing.assert_allclose(c.flow, d.flow, atol=1e-3)
    np.testing.assert_allclose(c.mask, d.mask, atol=4e-3)
    np.testing.assert_allclose(c.rgb, d.rgb, atol=4e-3)


def test_lip_codes_do_not_depend_on_chunks(engine: BaseEngine) -> None:
    rng = np.random.default_rng(0)
    samples = (rng.standard_normal(16_000) * 0.1).astype(np.float32)

    def codes(chunk: int) -> np.ndarray:
        window = AudioWindow(engine.config)
        found = []
        for i in range(0, len(samples), chunk):
            found += [engine.audio(mel) for _, mel in window.push(samples[i : i + chunk])]
        return np.stack(found)

    np.testing.assert_array_equal(codes(160), codes(len(samples)))
    np.testing.assert_array_equal(codes(777), codes(len(samples)))


def test_its_own_code_redraws_the_portrait(engine: BaseEngine, portrait: Portrait) -> None:
    frame = draw(engine, portrait, portrait.appearance.code).astype(float)
    error = np.abs(frame - portrait.image.astype(float))
    assert error.mean() < 4, "grey levels of 255"


def test_codes_move_the_pixels_they_should(engine: BaseEngine, portrait: Portrait) -> None:
    still = draw(engine, portrait, driven(portrait)).astype(float)

    def change(code: MotionCode) -> tuple[float, float]:
        difference = np.abs(draw(engine, portrait, code).astype(float) - still).mean(2)
        return difference[165:285].mean(), difference[310:450].mean()

    eyes, mouth = change(driven(portrait, lip=2.0))
    assert mouth > 3 * eyes
    eyes, mouth = change(driven(portrait, shut=1.0))
    assert eyes > 3 * mouth
    turned = engine.motion(draw(engine, portrait, driven(portrait, yaw=0.2))[::2, ::2].copy())
    straight = engine.motion(still[::2, ::2].astype(np.uint8))
    moved = float(turned.code.pose[0] - straight.code.pose[0])
    assert 0.1 < moved < 0.3, "E_mot reads the turn back"


def test_a_lip_code_of_another_kind_leaves_the_lips_alone(
    engine: BaseEngine, portrait: Portrait
) -> None:
    own = portrait.appearance.code
    foreign = own.with_("lip", np.full(500, 3, np.float32))
    drawn, still = (engine.draw(portrait.appearance, code) for code in (foreign, own))
    np.testing.assert_array_equal(drawn.rgb, still.rgb)


def test_wrong_inputs_are_refused(engine: BaseEngine, portrait: Portrait) -> None:
    with pytest.raises(ValueError, match="mel window"):
        engine.audio(np.zeros((3, 80), np.float32))
    drawing = engine.draw(portrait.appearance, portrait.appearance.code)
    with pytest.raises(ValueError, match="source must be"):
        compose(drawing, portrait.image, 256)
    with pytest.raises(EngineError, match="unknown engine"):
        load_engine("gpu")  # type: ignore[arg-type]
