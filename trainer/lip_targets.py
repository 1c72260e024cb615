"""Lip codes of film that are in time, and open and close as far as the landmarks say.

The landmark labels of the training pack come from a tracker that smooths (MediaPipe's VIDEO mode,
which repeats them to 1e-4): against the same model on single pictures they are .43 frames late,
17 ms, and short closures are rounded off. `in_time` takes that back.

The fit of `face_fit` shares one movement among many codes and prefers small ones: on GRID its
inner-lip gap follows the measured one with r .96 but only .78 of its size, and in a short b, p
or m it stays half open. The gap is what a viewer sees of speech, so the codes are moved along the
gap's own direction, by as little as gives the measured gap. What a closed mouth is called stays
as it was: the codes of each person's closed frames keep their median.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS
from models.face import FaceModel, lip_gap

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
#: Inner-lip gap over face height below which lips touch.
CLOSED = 0.003
#: What undoes the smoothing: weights of the frames t - 1, t, t + 1, t + 2. Least squares from the
#: labels' gap to that of single pictures, 14 training clips; r .964 -> .990, slope .90 -> .98.
_STEPS = (-1, 0, 1, 2)
_SHARPEN = (-0.4755, 1.2662, 0.2629, -0.0536)
#: Further than this the landmarks themselves are more likely wrong.
MOST = 0.03


def in_time(smoothed: F32 | F64) -> F64:
    """Undo the tracker's smoothing of signals (T, ...) at 25 fps; ends are repeated."""
    count = len(smoothed)
    at = np.arange(count)
    parts = [
        w * smoothed[np.clip(at + k, 0, count - 1)] for k, w in zip(_STEPS, _SHARPEN, strict=True)
    ]
    return np.asarray(np.sum(parts, 0))


def code_gap(face: FaceModel, shape: F32, lip_TD: F32) -> F64:
    """Inner-lip gap over face height (T,) of one neutral `shape` (152, 3) under codes (T, 16)."""
    heads = shape + np.tensordot(lip_TD.astype(np.float64), face.basis[: DIMS["lip"]], 1)
    return lip_gap((heads[..., :2] * (1.0, -1.0)).astype(np.float32)).astype(np.float64)


def meet_gap(
    face: FaceModel, lips: list[F32], gaps: list[F64], shapes: list[F32], people: list[str]
) -> list[F32]:
    """Corrected lip codes (T, 16) of clips with fitted codes, measured gaps (T,) and shapes.

    `gaps` are `lip_gap` of the landmarks. A person who never closes the mouth gets everybody's
    rest; without anybody's, codes are left alone.
    """
    own = [code_gap(face, s, c) for s, c in zip(shapes, lips, strict=True)]
    rest: dict[str, list[F64]] = {}
    for person, has, wants in zip(people, own, gaps, strict=True):
        rest.setdefault(person, []).append((has - wants)[wants < CLOSED])
    every = np.concatenate([part for parts in rest.values() for part in parts])
    if len(every) == 0:
        return lips
    out = []
    for person, shape, lip, has, wants in zip(people, shapes, lips, own, gaps, strict=True):
        closed = np.concatenate(rest[person])
        target = wants + np.median(closed if len(closed) >= 5 else every)
        target = has + np.clip(target - has, -MOST, MOST)
        code = lip
        for _ in range(2):  # the gap is nearly linear in the code
            code = _towards(face, shape, code, target)
        out.append(code)
    return out


def _towards(face: FaceModel, shape: F32, lip: F32, target: F64) -> F32:
    """One Newton step of the least change that gives the wanted gaps."""
    middle = lip.mean(0)
    steps = np.concatenate([middle[None], middle + 0.1 * np.eye(DIMS["lip"], dtype=np.float32)])
    found = code_gap(face, shape, steps.astype(np.float32))
    slope = (found[1:] - found[0]) / 0.1
    missing = target - code_gap(face, shape, lip)
    return np.asarray(lip + (missing / (slope @ slope))[:, None] * slope, np.float32)
