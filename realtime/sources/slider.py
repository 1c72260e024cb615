"""Sliders that a person moves by hand, one set per factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from models.codes import DIMS, Array, Factor
from models.rates import FRAME_MS
from realtime import presets, protocol
from realtime.sources.base import Moment

#: A slider's value reaches the face with this time constant, so steps of the mouse do not show.
SMOOTHING_MS = 80.0
_ALPHA = 1.0 - math.exp(-FRAME_MS / SMOOTHING_MS)
_SETTLED = 1e-4


@dataclass(frozen=True, slots=True)
class SliderSpec:
    """One slider: its range for people and the code it adds at +1 and at -1."""

    slider: protocol.Slider
    positive: Array
    negative: Array


def _spec(
    name: str,
    label: str,
    positive: Array,
    negative: Array | None = None,
    *,
    minimum: float | None = None,
) -> SliderSpec:
    low = minimum if minimum is not None else (-1.0 if negative is not None else 0.0)
    zero = np.zeros_like(positive)
    return SliderSpec(
        protocol.Slider(name, label, minimum=low), positive, zero if negative is None else negative
    )


def _axis(factor: Factor, index: int, value: float) -> Array:
    code = np.zeros(DIMS[factor], np.float32)
    code[index] = value
    return code


def _two_way(name: str, label: str, code: Array) -> SliderSpec:
    return _spec(name, label, code, -code)


def _face(name: str, label: str, up: dict[str, float], down: dict[str, float]) -> SliderSpec:
    return _spec(name, label, presets.expression(up), presets.expression(down) if down else None)


_SPECS: dict[Factor, list[SliderSpec]] = {
    "lip": [],
    "pose": [
        _two_way("yaw", "Turn", presets.pose(yaw=18.0)),
        _two_way("pitch", "Nod", presets.pose(pitch=14.0)),
        _two_way("roll", "Tilt", presets.pose(roll=14.0)),
        _two_way("x", "Left / right", _axis("pose", 3, 0.06)),
        _two_way("y", "Up / down", _axis("pose", 4, -0.06)),
        _two_way("zoom", "Nearer / farther", _axis("pose", 5, 0.12)),
    ],
    "eye": [
        _two_way("gaze_x", "Look left / right", presets.eye(gaze=(20.0, 0.0))),
        _two_way("gaze_y", "Look up / down", presets.eye(gaze=(0.0, 15.0))),
        _spec("blink", "Close eyes", presets.eye(1.0, 1.0)),
        _spec("wink_left", "Close left eye", presets.eye(1.0, 0.0)),
        _spec("wink_right", "Close right eye", presets.eye(0.0, 1.0)),
        _spec("wide", "Widen eyes", presets.eye(wide=1.0)),
    ],
    "exp": [
        _face(
            "smile", "Frown / smile",
            {"mouthSmile": 0.9, "cheekSquint": 0.5, "mouthDimple": 0.25},
            {"mouthFrown": 0.8, "mouthShrugLower": 0.3},
        ),
        _face(
            "brows", "Brows down / up",
            {"browInnerUp": 0.8, "browOuterUp": 0.8},
            {"browDown": 0.9},
        ),
        _face("worry", "Inner brows", {"browInnerUp": 0.9}, {}),
        _face("squint", "Squint", {"eyeSquint": 0.8, "cheekSquint": 0.4}, {}),
        _face("sneer", "Wrinkle nose", {"noseSneer": 0.9, "mouthUpperUp": 0.3}, {}),
        _face("press", "Press lips", {"mouthPress": 0.8}, {}),
        _face("puff", "Puff cheeks", {"cheekPuff": 0.9}, {}),
    ],
}  # fmt: skip

#: Sliders by factor, then by name. Lips have none: a voice, a face or a clip drives them.
SLIDERS: Mapping[Factor, Mapping[str, SliderSpec]] = MappingProxyType(
    {
        factor: MappingProxyType({spec.slider.name: spec for spec in specs})
        for factor, specs in _SPECS.items()
    }
)


def slider_list(factor: Factor) -> list[protocol.Slider]:
    """The sliders of one factor in the order in which to show them."""
    return [spec.slider for spec in SLIDERS[factor].values()]


class SliderSource:
    """All sliders of one session; one instance serves every factor."""

    kind: Literal["slider"] = "slider"
    name: None = None
    blinks = False

    def __init__(self) -> None:
        self._values: dict[Factor, dict[str, float]] = {
            factor: {name: spec.slider.default for name, spec in table.items()}
            for factor, table in SLIDERS.items()
        }
        self._targets = {factor: self._target(factor) for factor in SLIDERS}
        self._codes = {factor: target.copy() for factor, target in self._targets.items()}
        self._frames: dict[Factor, int | None] = dict.fromkeys(SLIDERS)

    def values(self, factor: Factor) -> dict[str, float]:
        """Present slider values of one factor."""
        return dict(self._values[factor])

    def set(self, factor: Factor, values: Mapping[str, float]) -> None:
        """Set sliders by name, others keep theirs; values are clipped to the slider's range.

        Raises KeyError for an unknown name (then nothing changes).
        """
        table = SLIDERS[factor]
        unknown = [name for name in values if name not in table]
        if unknown:
            raise KeyError(f"{factor} has no slider called {unknown[0]!r}")
        for name, value in values.items():
            slider = table[name].slider
            self._values[factor][name] = min(slider.maximum, max(slider.minimum, value))
        self._targets[factor] = self._target(factor)

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        """Smoothed code; None for a factor without sliders."""
        if not SLIDERS[factor]:
            return None
        last = self._frames[factor]
        steps = 0 if last is None else moment.frame_index - last
        if last is None or steps > 0:
            self._frames[factor] = moment.frame_index
        if last is None:
            self._codes[factor] = self._targets[factor]
        elif steps > 0:
            gap = self._targets[factor] - self._codes[factor]
            if float(np.abs(gap).max()) < _SETTLED:
                self._codes[factor] = self._targets[factor]
            else:
                share = np.float32(1.0 - (1.0 - _ALPHA) ** steps)
                self._codes[factor] = self._codes[factor] + share * gap
        return self._codes[factor]

    def _target(self, factor: Factor) -> Array:
        total = np.zeros(DIMS[factor], np.float32)
        for name, value in self._values[factor].items():
            spec = SLIDERS[factor][name]
            total = total + np.float32(abs(value)) * (
                spec.positive if value >= 0 else spec.negative
            )
        return total
