"""What a clip's labels say its face does, in the names and units of the measured signals.

Labels of synthetic clips were chosen and then drawn, so they are exact; labels of film were
read by a model. They say which clips move a factor at all, and how well a measuring model
sees what is really there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.codes import EXPRESSION_NAMES, FACTOR_SLICES
from trainer.face_fit import GAZE_UNIT_DEG
from trainer.frames import FrameCache
from trainer.lip_targets import code_gap

F64 = NDArray[np.float64]
#: Smallest standard deviation in a clip with which a signal counts as moved. Gaze: .2 of a code.
FLOORS: dict[str, float] = {
    "yaw": 2.0, "pitch": 2.0, "roll": 2.0, "blink": 0.1, "gaze_x": 4.0, "gaze_y": 4.0,
    "smile": 0.1, "brow_up": 0.1, "brow_down": 0.1,
}  # fmt: skip
_SHAPES = {"smile": "mouthSmile", "brow_up": "browInnerUp", "brow_down": "browDown"}


def signals_of(codes_ND: F64) -> dict[str, F64]:
    """Motion codes (N, 58) as signals (N,): pose and gaze in degrees, the rest 0 .. 1."""
    pose, eye, exp = (codes_ND[:, FACTOR_SLICES[f]] for f in ("pose", "eye", "exp"))
    out = {name: np.degrees(pose[:, i]) for i, name in enumerate(("yaw", "pitch", "roll"))}
    out |= {"blink": eye[:, :2].mean(1), "gaze_x": eye[:, 2] * GAZE_UNIT_DEG}
    out["gaze_y"] = eye[:, 3] * GAZE_UNIT_DEG
    for name, shape in _SHAPES.items():
        out[name] = exp[:, [EXPRESSION_NAMES.index(f"{shape}_{side}") for side in "LR"]].mean(1)
    return out


@dataclass(frozen=True, slots=True)
class Truth:
    """Labels of one clip: signals (N,) at the frames (N,) of the clip that the cache has."""

    frames: NDArray[np.int64]
    signals: Mapping[str, F64]

    def at_every_frame(self, count: int) -> dict[str, F64]:
        """Signals (count,) of frames 0 .. count - 1, straight lines between known ones."""
        at = np.arange(count)
        return {name: np.interp(at, self.frames, known) for name, known in self.signals.items()}

    @property
    def moved(self) -> tuple[str, ...]:
        """Signals whose spread reaches its floor."""
        return tuple(n for n, floor in FLOORS.items() if self.signals[n].std() >= floor)


def truth_of(cache: FrameCache, clip: str) -> Truth:
    """Labels of a clip of the cache, in the order of its frames."""
    rows = np.flatnonzero(cache.clip == clip)
    rows = rows[np.argsort(cache.frame[rows])]
    frames, codes = cache.frame[rows].astype(np.int64), cache.code[rows]
    gap = code_gap(cache.face, cache.face.mean, codes[:, FACTOR_SLICES["lip"]])
    return Truth(frames, signals_of(codes.astype(np.float64)) | {"mouth_gap": gap})


def exact_labels(cache: FrameCache, clip: str) -> bool:
    """Whether a clip's labels were drawn rather than read."""
    kinds = cache.kind[cache.clip == clip]
    return bool(len(kinds)) and str(kinds[0]) == "synth"
