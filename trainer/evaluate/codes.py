"""What the codes themselves know, without drawing anything.

Linear probes say which factor can be read from which code of unseen people. On synthetic
frames the truth was drawn, not measured; a code that is free of a factor has R² near 0
for it. Retrieval asks whether an expression code still carries speech.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.codes import EXPRESSION_NAMES, FACTOR_SLICES, FACTORS
from models.runtime.base import BaseEngine
from trainer.evaluate.metrics import probe_r2, retrieval
from trainer.evaluate.studio import lip_codes
from trainer.frames import FrameCache

F64 = NDArray[np.float64]
_PAIRS = {
    "smile": ("mouthSmile_L", "mouthSmile_R"),
    "brow_up": ("browInnerUp_L", "browInnerUp_R"),
    "brow_down": ("browDown_L", "browDown_R"),
}


def factors_of(codes_ND: F64) -> dict[str, F64]:
    """The drawn truth (N, 58) as named factors (N, k)."""
    lip, pose, eye, exp = (codes_ND[:, FACTOR_SLICES[f]] for f in FACTORS)
    out = {
        "mouth": lip[:, :2],
        "pose": pose[:, :3],
        "blink": eye[:, :2],
        "gaze": eye[:, 2:4],
    }
    for name, pair in _PAIRS.items():
        columns = [EXPRESSION_NAMES.index(n) for n in pair]
        out[name] = exp[:, columns].mean(1, keepdims=True)
    return out


def probes(
    cache: FrameCache, engine: BaseEngine, limit: int, on_done: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """R² of every code for every factor on `limit` held-out synthetic frames, by identity."""
    test = cache.split().test
    rows = test[cache.kind[test] == "synth"]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))]
    read = []
    for row in rows:
        read.append(engine.motion(np.asarray(cache.pixels[int(row)])).code.concat())
        on_done()
    if not read:
        return {}
    codes = np.stack(read).astype(np.float64)
    truth = factors_of(cache.code[rows].astype(np.float64))
    people = cache.person[rows]
    return {
        code: {
            name: probe_r2(codes[:, FACTOR_SLICES[code]], values, people)
            for name, values in truth.items()
        }
        for code in FACTORS
    }


def speech_in_codes(
    folder: Path,
    cache: FrameCache,
    engine: BaseEngine,
    clips: Sequence[str],
    on_done: Callable[[], None],
) -> dict[str, dict[str, float]]:
    """Whether a frame's code finds its own sound among 50, from unseen film.

    `lip` shows what a code that does carry speech reaches; `exp` should be at chance.
    """  # fmt: skip
    with np.load(folder / "speech.npz", allow_pickle=False) as z:
        names, offset = [str(c) for c in z["clip"]], z["offset"]
        samples = z["samples"]
    spoken, read, groups = [], [], []
    for clip in clips:
        if clip not in names:
            continue
        i = names.index(clip)
        frames = int(offset[i + 1] - offset[i])
        signal = samples[offset[i] * 640 : offset[i + 1] * 640].astype(np.float32)
        lip = lip_codes(signal, frames, engine)
        for row in np.flatnonzero(cache.clip == clip):
            code = engine.motion(np.asarray(cache.pixels[int(row)])).code
            read.append(code.concat())
            spoken.append(lip[min(int(cache.frame[row]), frames - 1)])
            groups.append(clip)
        on_done()
    if len(read) < 100:
        return {}
    codes = np.stack(read).astype(np.float64)
    target, group = np.stack(spoken).astype(np.float64), np.array(groups)
    return {factor: retrieval(codes[:, FACTOR_SLICES[factor]], target, group) for factor in FACTORS}
