"""The four motion codes and what each dimension means.

A *motion code* says how a face moves in one video frame, independent of whose face it
is. It is four factors that can each come from another place (METHOD.md section 2):

====  ===  ==========================================================================
name  dim  meaning in the `live` configuration (float32)
====  ===  ==========================================================================
lip   16   speech shape of lips and jaw: coefficients of the lip basis of
           `models.face.FaceModel`, in standard deviations of real speech; 0 = closed,
           relaxed mouth
pose  6    yaw, pitch, roll in radians (x right, y up, z to the viewer; yaw > 0 nose to
           image right, pitch > 0 up, roll > 0 counter-clockwise in the image), then
           translation x, y in crop widths (y down) and log scale; all relative to the
           canonical crop
eye   6    {0, 1} closure of the lid at image left / right, 0 open .. 1 shut; {2, 3}
           gaze yaw and pitch in the head frame, units of 20 degrees; {4, 5} lid
           widening at image left / right, 0 .. 1
exp   30   `EXPRESSION_NAMES`, 0 .. 1 each, 0 = neutral
====  ===  ==========================================================================

Dims {0, 1, 4, 5} of the eye code carry the lids and {2, 3} the gaze, as in the paper's
released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Factor = Literal["lip", "pose", "eye", "exp"]

FACTORS: tuple[Factor, ...] = ("lip", "pose", "eye", "exp")
DIMS: dict[Factor, int] = {"lip": 16, "pose": 6, "eye": 6, "exp": 30}
CODE_DIM = sum(DIMS.values())

#: Subject's side: `_L` is at the image right. Names follow ICT-FaceKit / ARKit.
EXPRESSION_NAMES: tuple[str, ...] = (
    "browDown_L", "browDown_R", "browInnerUp_L", "browInnerUp_R", "browOuterUp_L", "browOuterUp_R",
    "cheekPuff_L", "cheekPuff_R", "cheekSquint_L", "cheekSquint_R", "eyeSquint_L", "eyeSquint_R",
    "mouthSmile_L", "mouthSmile_R", "mouthFrown_L", "mouthFrown_R", "mouthDimple_L",
    "mouthDimple_R", "mouthStretch_L", "mouthStretch_R", "mouthPress_L", "mouthPress_R",
    "mouthUpperUp_L", "mouthUpperUp_R", "mouthLowerDown_L", "mouthLowerDown_R",
    "noseSneer_L", "noseSneer_R", "mouthFunnel", "mouthShrugLower",
)  # fmt: skip
assert len(EXPRESSION_NAMES) == DIMS["exp"]


def _zeros(factor: Factor) -> Array:
    return np.zeros(DIMS[factor], np.float32)


@dataclass(frozen=True, slots=True)
class MotionCode:
    """One frame of motion. Arrays are float32 of shape (DIMS[factor],); treat them as read-only.

    Only the lip code may be longer: the `paper` configuration learns 500 dimensions.
    """

    lip: Array = field(default_factory=lambda: _zeros("lip"))
    pose: Array = field(default_factory=lambda: _zeros("pose"))
    eye: Array = field(default_factory=lambda: _zeros("eye"))
    exp: Array = field(default_factory=lambda: _zeros("exp"))

    def __post_init__(self) -> None:
        for name in FACTORS:
            code = getattr(self, name)
            # The learnt lip code of `paper` has another length than the named one.
            shape = code.shape if name == "lip" and code.ndim == 1 else (DIMS[name],)
            if code.shape != shape or code.dtype != np.float32:
                raise ValueError(
                    f"{name} code must be float32 ({DIMS[name]},), got {code.dtype} {code.shape}"
                )

    def get(self, factor: Factor) -> Array:
        """Return the code of one factor."""
        code: Array = getattr(self, factor)
        return code

    def with_(self, factor: Factor, code: Array) -> MotionCode:
        """Return a copy with one factor replaced."""
        return replace(self, **{factor: code})

    def concat(self) -> Array:
        """Return the (CODE_DIM,) vector in the order of `FACTORS`."""
        return np.concatenate([self.get(f) for f in FACTORS])

    @staticmethod
    def split(vector: Array) -> MotionCode:
        """Inverse of `concat`; copies. What pose, eye and expression leave is the lip code."""
        vector = np.asarray(vector, np.float32)
        lip = vector.size - (CODE_DIM - DIMS["lip"])
        if vector.ndim != 1 or lip < 1:
            raise ValueError(f"motion vector must have shape ({CODE_DIM},), got {vector.shape}")
        parts: dict[str, Array] = {}
        start = 0
        for factor in FACTORS:
            end = start + (lip if factor == "lip" else DIMS[factor])
            parts[factor] = vector[start:end].copy()
            start = end
        return MotionCode(**parts)


FACTOR_SLICES: dict[Factor, slice] = {}
_start = 0
for _factor in FACTORS:
    FACTOR_SLICES[_factor] = slice(_start, _start + DIMS[_factor])
    _start += DIMS[_factor]
