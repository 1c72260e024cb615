"""Presets and sliders are in range and mean what they say."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from models.codes import DIMS, EXPRESSION_NAMES, FACTORS
from realtime.presets import PRESETS, expression, preset_names
from realtime.protocol import SetSource
from realtime.router import GAZE_LIMIT, POSE_LIMIT
from realtime.sources import SLIDERS, Moment, Preset, slider_list

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("factor", FACTORS)
def test_every_preset_is_a_read_only_code_in_range(factor: str) -> None:
    for name, code in PRESETS[factor].items():  # type: ignore[index]
        assert code.shape == (DIMS[factor],), name  # type: ignore[index]
        assert code.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            code[0] = 1.0
        if factor == "exp":
            assert (code >= 0).all()
            assert (code <= 1).all()
        elif factor == "pose":
            assert (np.abs(code) <= POSE_LIMIT).all()
        else:
            assert np.abs(code[2:4]).max() <= GAZE_LIMIT
            assert ((code[[0, 1, 4, 5]] >= 0) & (code[[0, 1, 4, 5]] <= 1)).all()


def test_names_fit_the_protocol_and_come_once() -> None:
    names = preset_names()
    assert list(names) == list(FACTORS)
    assert names["lip"] == []
    assert {"smile", "grin", "surprise", "sad", "angry", "wink"} <= set(names["exp"])
    assert "look_left" in names["eye"]
    assert "look_left" not in names["exp"]
    for factor, presets in names.items():
        assert len(presets) == len(set(presets))
        assert presets[:1] in ([], ["neutral"])
        for name in presets:
            msgspec.convert({"factor": factor, "source": "preset", "name": name}, SetSource)


def test_presets_move_the_right_side() -> None:
    # The subject's left is at the image right.
    wink = PRESETS["eye"]["wink"]
    assert (wink[0], wink[1]) == (0.0, 1.0)
    winking = PRESETS["exp"]["wink"]
    assert winking[EXPRESSION_NAMES.index("cheekSquint_L")] > 0
    assert winking[EXPRESSION_NAMES.index("cheekSquint_R")] == 0
    assert PRESETS["eye"]["look_left"][2] < 0 < PRESETS["eye"]["look_right"][2]
    assert PRESETS["pose"]["turn_left"][0] < 0 < PRESETS["pose"]["turn_right"][0]
    assert PRESETS["pose"]["chin_up"][1] > 0
    assert not PRESETS["exp"]["neutral"].any()


def test_expression_takes_names_of_one_or_both_sides() -> None:
    both = expression({"mouthSmile": 0.5})
    one = expression({"mouthSmile_L": 0.5, "mouthSmile_R": 0.5})
    np.testing.assert_array_equal(both, one)
    with pytest.raises(KeyError, match="mouthSmirk"):
        expression({"mouthSmirk": 1.0})


def test_a_preset_has_nothing_to_say_about_other_factors() -> None:
    turn = Preset("turn_left")
    assert turn.code("exp", Moment(0)) is None
    assert turn.code("pose", Moment(0)) is not None
    with pytest.raises(KeyError, match="no preset"):
        Preset("frobnicate")


@pytest.mark.parametrize("factor", FACTORS)
def test_sliders_are_described_and_in_range(factor: str) -> None:
    for slider in slider_list(factor):  # type: ignore[arg-type]
        spec = SLIDERS[factor][slider.name]  # type: ignore[index]
        assert slider.label
        assert -1.0 <= slider.minimum <= slider.default == 0.0 <= slider.maximum <= 1.0
        assert spec.positive.any()
        assert bool(spec.negative.any()) == (slider.minimum < 0)
        if factor == "exp":
            assert (spec.positive >= 0).all()
            assert (spec.negative >= 0).all()
