"""Named faces: expressions, looks and head poses that a person can pick by name.

A preset is a set of *relative* codes: what it adds to the portrait's own motion code. A
name may exist for several factors (`wink` moves a cheek and shuts an eye); for the others
it means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from models.codes import DIMS, EXPRESSION_NAMES, Array, Factor

_BOTH = ("_L", "_R")


def expression(weights: Mapping[str, float]) -> Array:
    """Weights by name -> expression code (30,) float32.

    Names are `EXPRESSION_NAMES`; without `_L` or `_R` a name means both sides. Raises
    KeyError for a name that is none of them.
    """
    code = np.zeros(DIMS["exp"], np.float32)
    for name, weight in weights.items():
        sides = [name] if name in EXPRESSION_NAMES else [name + side for side in _BOTH]
        for side in sides:
            if side not in EXPRESSION_NAMES:
                raise KeyError(f"{name!r} is no expression name")
            code[EXPRESSION_NAMES.index(side)] = weight
    return code


def eye(
    shut_left: float = 0.0,
    shut_right: float = 0.0,
    gaze: tuple[float, float] = (0.0, 0.0),
    wide: float = 0.0,
) -> Array:
    """Lids at image left and right 0..1, gaze right and up in degrees, widening -> (6,)."""
    code = (shut_left, shut_right, gaze[0] / 20.0, gaze[1] / 20.0, wide, wide)
    return np.array(code, np.float32)


def pose(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Degrees -> pose code (6,) float32."""
    angles = [math.radians(angle) for angle in (yaw, pitch, roll)]
    return np.array([*angles, 0.0, 0.0, 0.0], np.float32)


_EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {
        "mouthSmile": 0.6, "cheekSquint": 0.35, "mouthDimple": 0.2, "eyeSquint": 0.15,
    },
    "grin": {
        "mouthSmile": 0.9, "cheekSquint": 0.6, "mouthUpperUp": 0.35, "mouthStretch": 0.2,
        "eyeSquint": 0.3, "mouthDimple": 0.25,
    },
    "surprise": {"browInnerUp": 0.85, "browOuterUp": 0.8, "mouthFunnel": 0.15},
    "sad": {
        "browInnerUp": 0.75, "mouthFrown": 0.6, "mouthShrugLower": 0.35, "browDown": 0.1,
    },
    "angry": {
        "browDown": 0.85, "eyeSquint": 0.35, "noseSneer": 0.4, "mouthPress": 0.4,
        "mouthFrown": 0.25,
    },
    "disgust": {
        "noseSneer": 0.8, "mouthUpperUp": 0.4, "browDown": 0.4, "cheekSquint": 0.3,
        "mouthFrown": 0.25,
    },
    "fear": {"browInnerUp": 0.8, "browOuterUp": 0.35, "browDown": 0.2, "mouthStretch": 0.5},
    "doubt": {
        "browOuterUp_L": 0.7, "browDown_R": 0.45, "mouthPress": 0.25, "mouthDimple_R": 0.3,
    },
    "thinking": {"browDown": 0.3, "mouthPress": 0.35, "mouthShrugLower": 0.25},
    "wink": {
        "cheekSquint_L": 0.6, "mouthSmile_L": 0.5, "mouthSmile_R": 0.25, "browDown_L": 0.2,
    },
}  # fmt: skip

_EYES: dict[str, Array] = {
    "neutral": eye(),
    "look_left": eye(gaze=(-15.0, 0.0)),
    "look_right": eye(gaze=(15.0, 0.0)),
    "look_up": eye(gaze=(0.0, 12.0)),
    "look_down": eye(0.25, 0.25, gaze=(0.0, -12.0)),
    "surprise": eye(wide=0.7),
    "fear": eye(wide=0.6),
    "grin": eye(0.12, 0.12),
    "sad": eye(0.15, 0.15, gaze=(0.0, -5.0)),
    "thinking": eye(gaze=(9.0, 9.0)),
    "wink": eye(shut_right=1.0),
    "closed": eye(1.0, 1.0),
    "sleepy": eye(0.45, 0.45),
}

_POSES: dict[str, Array] = {
    "neutral": pose(),
    "turn_left": pose(yaw=-12.0),
    "turn_right": pose(yaw=12.0),
    "chin_up": pose(pitch=8.0),
    "chin_down": pose(pitch=-8.0),
    "tilt_left": pose(roll=8.0),
    "tilt_right": pose(roll=-8.0),
    "thinking": pose(yaw=6.0, pitch=4.0, roll=-4.0),
    "doubt": pose(yaw=-3.0, roll=5.0),
}


def _frozen(table: Mapping[str, Array]) -> Mapping[str, Array]:
    for code in table.values():
        code.flags.writeable = False
    return MappingProxyType(dict(table))


#: Relative code by factor and preset name; arrays are read-only. Lips have no presets.
PRESETS: Mapping[Factor, Mapping[str, Array]] = MappingProxyType(
    {
        "lip": MappingProxyType({}),
        "pose": _frozen(_POSES),
        "eye": _frozen(_EYES),
        "exp": _frozen({name: expression(weights) for name, weights in _EXPRESSIONS.items()}),
    }
)


def preset_names() -> dict[Factor, list[str]]:
    """Names of each factor's presets, in the order to show them."""
    return {factor: list(table) for factor, table in PRESETS.items()}
