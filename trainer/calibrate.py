"""Give an exported checkpoint its INT8 generator, with ranges found on training faces.

    python -m trainer.calibrate CACHE models/weights/live

Portraits come from the training split and are compared on the unseen one. Each is moved by
the codes of other people's frames, so that mouths, lids and heads are seen all over their range.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from models.checkpoint import CheckpointError, open_checkpoint
from models.codes import FACTOR_SLICES, Array, MotionCode
from models.quantize import Feed, quantise_generator
from models.runtime.base import BaseEngine, generator_inputs
from models.runtime.openvino_engine import OpenVINOEngine
from trainer.frames import FrameCache
from trainer.joined import cache_of

PORTRAITS, UNSEEN, DRIVERS = 40, 20, 5
_POSE = FACTOR_SLICES["pose"]


def feeds(
    cache: FrameCache,
    engine: BaseEngine,
    rows: NDArray[np.int64],
    drivers: NDArray[np.int64],
    rng: np.random.Generator,
) -> list[Feed]:
    """Generator inputs: the frames `rows` as portraits, `DRIVERS` random driving codes each."""
    made = []
    for row in rows:
        appearance = engine.appearance(np.ascontiguousarray(cache.pixels[row]))
        for driver in rng.choice(drivers, DRIVERS):
            driving = _moved(appearance.code, cache.code[driver])
            made.append(generator_inputs(appearance, driving))
    return made


def _moved(portrait: MotionCode, driver: Array) -> MotionCode:
    """The driver's lips, eyes, expression and most of its turn on the portrait's own place."""
    code = driver.copy()
    own = portrait.pose
    code[_POSE] = own
    code[_POSE][:3] += 0.7 * driver[_POSE][:3]
    return MotionCode.split(code.astype(np.float32))


def calibrate(cache_dir: Path, checkpoint: Path, seed: int = 0) -> None:
    """Quantise, check against float32 and enter the result into the manifest."""
    rng = np.random.default_rng(seed)
    cache = FrameCache(cache_of(cache_dir))
    split = cache.split()
    if not len(split.test):
        raise ValueError("nothing is held out of this data, so the result could not be checked")
    engine = OpenVINOEngine(open_checkpoint(checkpoint), precision="float32")
    drivers = split.train[cache.kind[split.train] != "still"]
    seen = feeds(cache, engine, rng.choice(split.train, PORTRAITS), drivers, rng)
    unseen = feeds(cache, engine, rng.choice(split.test, UNSEEN), drivers, rng)
    print(json.dumps(quantise_generator(checkpoint, seen, unseen), indent=1))


if __name__ == "__main__":
    try:
        typer.run(calibrate)
    except (ValueError, CheckpointError) as error:
        sys.exit(f"calibrate: {error}")
