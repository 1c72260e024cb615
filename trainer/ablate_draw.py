"""A variant drawn: sync and the leakage matrix of what its networks show, measured from outside.

The networks of a variant become a checkpoint folder, and a small part of `visavis evaluate`'s suite
is drawn and measured with it: sentences of real speakers for sync, swaps of single codes and
exact pairs for the leakage matrix. What a variant does not train is the same in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from models.codes import FACTORS
from models.export import export_checkpoint
from trainer.evaluate.evaluate import Options, evaluate
from trainer.evaluate.explained import square
from trainer.evaluate.suite import Counts
from trainer.stages.sampling import Data
from trainer.stages.system import System

#: Twelve variants have to be drawn: a third of the whole suite, and none of its other questions.
COUNTS = Counts(
    sentences=4, speakers=2, voices=0, per_factor=0, codes=0, self_synth=0, self_film=0, swaps=5,
    exact=3,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Suite:
    """Where the clips are, and who measures (`trainer.evaluate`)."""

    data: Path
    cache: Path
    measure_python: Path | None = None
    measure_model: Path | None = None
    counts: Counts = COUNTS


def drawn(system: System, data: Data, folder: Path, suite: Suite) -> dict[str, float]:
    """Figures of the networks of `system`: sync, and cell (f, g) of the matrix as "f into g".

    Raises SuiteError, MeasureError, ParityError.
    """
    checkpoint = folder / "checkpoint"
    about: dict[str, Any] = {"name": folder.name, "version": "0", "data": [], "metrics": {}}
    export_checkpoint(system.networks(), data.frames.face, checkpoint, about=about)
    options = Options(
        suite.data, suite.cache, folder / "drawn", checkpoint, quick=True, threads=1,
        measure_python=suite.measure_python, measure_model=suite.measure_model,
        counts=suite.counts,
    )  # fmt: skip
    result, _ = evaluate(options, Console(quiet=True))
    return figures(result)


def figures(result: dict[str, Any]) -> dict[str, float]:
    """What the table shows of a result of `evaluate`; NaN where it has nothing."""
    summary = result["summary"]

    def of(name: str, key: str = "median") -> float:
        return float(summary.get(f"speech.mouth_gap.{name}", {}).get(key, np.nan))

    out = {"drawn sentences": of("r", "count"), "drawn mouth r": of("r"),
           "drawn worst r": of("r", "worst"), "drawn lag frames": of("lag_frames"),
           "drawn slope": of("slope")}  # fmt: skip
    matrix = square(result["leakage"]["explained"])
    out |= {f"{f} into {g}": matrix[f][g] for f in FACTORS for g in FACTORS if f != g}
    return out
