"""The leakage matrix: swap one code between two clips and see what else moves.

For drivers A and B on one portrait the videos `A`, `B` (all codes from one driver) and,
per factor f, `A with f of B` are rendered and measured from outside. Entry (f, g) is how
far factor g moved away from A when only code f was swapped, as a share of how far A and B
are apart in g. A perfect system has 1 on the diagonal and 0 elsewhere (METHOD.md section 6), and
so would a perfect measure: what ours confuses and its noise are in these figures too, which
makes them an upper bound. `explained.py` takes them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Signals = Mapping[str, F64]
FACTOR_ORDER = ("lip", "pose", "eye", "exp")
#: Which measured signals stand for a factor, and the smallest mean A-B difference (in the
#: signal's unit) that counts as a difference at all.
FACTOR_SIGNALS: dict[str, dict[str, float]] = {
    "lip": {"mouth_gap": 0.010},
    "pose": {"yaw": 1.5, "pitch": 1.5, "roll": 1.5},
    "eye": {"blink": 0.05, "gaze_x": 3.0, "gaze_y": 3.0},
    "exp": {"smile": 0.08, "brow_up": 0.08, "brow_down": 0.08},
}


@dataclass(frozen=True, slots=True)
class Swap:
    """Measured signals of one pair of drivers on one portrait."""

    a: Signals
    b: Signals
    swapped: Mapping[str, Signals]
    """By factor: all of A, but this code of B."""
    labels: tuple[Signals, Signals] | None = None
    """What the drivers' labels say of A and of B, frame by frame; None: nobody knows."""


def leakage_matrix(
    swaps: Sequence[Swap], factors: Mapping[str, Mapping[str, float]] = FACTOR_SIGNALS
) -> dict[str, dict[str, float]]:
    """{swapped factor: {measured factor: share}} over all pairs; NaN where nothing differs.

    Signals count in units of their own floor, and pairs where A and B hardly differ in a
    signal are left out of it, so that measuring noise is not divided by nothing.
    """
    return {f: {g: _entry(swaps, f, signals) for g, signals in factors.items()} for f in factors}


def _entry(swaps: Sequence[Swap], factor: str, signals: Mapping[str, float]) -> float:
    moved = natural = 0.0
    for swap in swaps:
        if factor not in swap.swapped:
            continue
        for name, floor in signals.items():
            a, b, s = (x[name] for x in (swap.a, swap.b, swap.swapped[factor]))
            count = min(len(a), len(b), len(s))
            apart = float(np.abs(a[:count] - b[:count]).mean())
            if apart < floor:
                continue
            moved += float(np.abs(s[:count] - a[:count]).mean()) / floor
            natural += apart / floor
    return moved / natural if natural else float("nan")


def signal_leakage(swaps: Sequence[Swap]) -> dict[str, dict[str, float]]:
    """The same matrix by single signals, to see which one leaks."""
    single = {name: {name: floor} for group in FACTOR_SIGNALS.values()
              for name, floor in group.items()}  # fmt: skip
    return {
        f: {name: _entry(swaps, f, signals) for name, signals in single.items()}
        for f in FACTOR_ORDER
    }


@dataclass(frozen=True, slots=True)
class ExactPair:
    """Two clips that were drawn alike in everything but one factor.

    `ours_a` is a redrawn from one of its frames, `ours_b` the same with that factor's code of b.
    """

    factor: str
    a: Signals
    b: Signals
    ours_a: Signals | None = None
    ours_b: Signals | None = None


def crosstalk(pairs: Sequence[ExactPair], swaps: Sequence[Swap]) -> dict[str, dict[str, float]]:
    """The measure's own leakage: the same matrix from clips that differ in one factor only.

    Off the diagonal it is what the measuring model says moved although it did not: a
    leakage matrix below that cannot be measured with this model. Changes are shares of the
    same natural differences as in `leakage_matrix`; the diagonal says how large the exact
    pairs' own change was.
    """
    out: dict[str, dict[str, float]] = {}
    for factor in FACTOR_ORDER:
        mine = [p for p in pairs if p.factor == factor]
        if not mine:
            continue
        out[factor] = {}
        for group, signals in FACTOR_SIGNALS.items():
            moved, natural = [], []
            for name, floor in signals.items():
                differences = [_apart(s.a[name], s.b[name]) for s in swaps]
                differences = [d for d in differences if d >= floor]
                if differences:
                    moved.append(np.mean([_apart(p.a[name], p.b[name]) for p in mine]) / floor)
                    natural.append(np.mean(differences) / floor)
            out[factor][group] = float(np.sum(moved) / np.sum(natural)) if natural else float("nan")
    return out


def _apart(a: F64, b: F64) -> float:
    count = min(len(a), len(b))
    return float(np.abs(a[:count] - b[:count]).mean())


def arrival(swaps: Sequence[Swap]) -> dict[str, float]:
    """How far the swapped factor ended up from where B has it; 0 is arrived, 1 not moved."""
    out = {}
    for factor, signals in FACTOR_SIGNALS.items():
        left = natural = 0.0
        for swap in swaps:
            for name, floor in signals.items():
                a, b, s = (x[name] for x in (swap.a, swap.b, swap.swapped[factor]))
                count = min(len(a), len(b), len(s))
                apart = float(np.abs(a[:count] - b[:count]).mean())
                if apart >= floor:
                    left += float(np.abs(s[:count] - b[:count]).mean()) / floor
                    natural += apart / floor
        out[factor] = left / natural if natural else float("nan")
    return out
