"""Leakage taken apart: what a swapped code carries, and what is drawn along with it.

The raw matrix of `leakage.py` adds up everything that moves: real leakage, what a face rightly
does (a smile opens the mouth), what the measure confuses (differently for every face) and its
noise. Two questions have answers that none of these touch:

*Carried*: does code f still hold g of its driver? Over time, the change of signal g when only f
was swapped is regressed on all labels of both drivers jointly, and so is the whole natural
difference b - a. The share is the weight of B's own g in the first over that in the second: 0
nothing, 1 all of what B does in g came over with the wrong code. Labels know nothing of the
portrait or of the measure. Both drivers' labels and not their difference, because a smile of A
that is drawn or read weaker in the pose of B is not carried by anything.

*Along*: does an avatar that moves f alone move g, more than a true face does? Clips exist that
were drawn alike in all but f. Their person is redrawn from one frame, once with all codes of the
first clip and once with code f of the second; what the true frames show for the same movement,
scaled to how far ours went, is taken away. What is left counts as far as it follows f (least
squares on f's own signals within the pair), as a share of the natural differences. No clips
differ in the lips alone, so for them nothing is taken away: an upper bound.

The whole is sqrt(carried^2 + along^2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.leakage import FACTOR_ORDER, FACTOR_SIGNALS, ExactPair, Signals, Swap

F64 = NDArray[np.float64]
Matrix = dict[str, dict[str, float]]
#: In units that are comparable, for a regression of all at once.
UNITS = {name: unit for group in FACTOR_SIGNALS.values() for name, unit in group.items()}
NAMES = tuple(UNITS)
_COLUMNS = {f: [NAMES.index(n) for n in group] for f, group in FACTOR_SIGNALS.items()}
#: Ridge of a regression per frame, as the variance of trembling: half a unit. What moves no more
#: than that teaches nothing about what it does.
_TREMBLING = 0.25
_DRAWS = 1000
#: Fewer pairs have no interval worth the name.
LEAST_PAIRS = 3


def difference(a: Signals, b: Signals) -> F64:
    """(T, 10): b - a of every signal in its unit, as long as the shorter one."""
    count = min(len(a[NAMES[0]]), len(b[NAMES[0]]))
    return np.stack([(b[n][:count] - a[n][:count]) / UNITS[n] for n in NAMES], 1)


def explained(swaps: Sequence[Swap], pairs: Sequence[ExactPair], seed: int = 0) -> Matrix:
    """{swapped factor: {key: share}} for every factor g beside it, NaN where pairs are missing.

    Keys: `g` the whole, `g low` and `g high` its 90 % interval (bootstrap over pairs), `g carried`
    (signed), `g along`. On the diagonal `g` is what arrived of the factor's own labels.
    """
    rng = np.random.default_rng(seed)
    labelled = [s for s in swaps if s.labels is not None]
    carried = _carried(labelled, rng) if len(labelled) >= LEAST_PAIRS else None
    out: Matrix = {}
    for i, f in enumerate(FACTOR_ORDER):
        along = _along(f, swaps, pairs, rng)
        row: dict[str, float] = {}
        for j, g in enumerate(FACTOR_ORDER):
            held = np.full(_DRAWS + 1, np.nan) if carried is None else carried[:, i, j]
            moved = np.zeros_like(held) if f == g else along[:, j]
            whole = held if f == g else np.hypot(held, moved)
            low, high = np.percentile(whole[1:], (5, 95))
            row |= {g: float(whole[0]), f"{g} low": float(low), f"{g} high": float(high)}
            row |= {f"{g} carried": float(held[0]), f"{g} along": float(moved[0])}
        out[f] = row
    return out


def _carried(swaps: Sequence[Swap], rng: np.random.Generator) -> F64:
    """(1 + draws, F, F) weights of B's own g when f is swapped; row 0 is of all pairs."""
    squares, products = [], []
    for swap in swaps:
        assert swap.labels is not None
        natural = difference(swap.a, swap.b)
        changes = [difference(swap.a, swap.swapped[f]) for f in FACTOR_ORDER] + [natural]
        second, first = swap.labels[1], swap.labels[0]
        x = np.stack([side[n] / UNITS[n] for side in (second, first) for n in NAMES], 1)
        length = min(len(x), *(len(c) for c in changes))
        # Zeros of labels and of the measure differ by person: only movement is compared.
        x = x[:length] - x[:length].mean(0)
        squares.append(x.T @ x + _TREMBLING * length * np.eye(x.shape[1]))
        products.append(np.stack([x.T @ c[:length] for c in changes]))
    left, right = np.stack(squares), np.stack(products)
    draws = rng.integers(0, len(swaps), (_DRAWS, len(swaps)))
    chosen = np.concatenate([np.arange(len(swaps))[None], draws])
    out = np.empty((len(chosen), len(FACTOR_ORDER), len(FACTOR_ORDER)))
    for k, rows in enumerate(chosen):
        xx = left[rows].sum(0)
        weights = np.linalg.solve(xx[None], right[rows].sum(0))
        own = np.diagonal(weights, axis1=1, axis2=2)
        power = own[-1] * np.diag(xx)[: len(NAMES)]
        for j, g in enumerate(FACTOR_ORDER):
            c = _COLUMNS[g]
            out[k, :, j] = own[:-1, c] @ power[c] / max(float(own[-1, c] @ power[c]), 1e-9)
    return out


def _along(
    factor: str, swaps: Sequence[Swap], pairs: Sequence[ExactPair], rng: np.random.Generator
) -> F64:
    """(1 + draws, F) shares of natural differences that are drawn along with a factor."""
    if factor == "lip":
        moved = [_following(factor, difference(s.a, s.swapped[factor]), None) for s in swaps]
    else:
        moved = [
            _following(factor, difference(p.ours_a, p.ours_b), difference(p.a, p.b))
            for p in pairs
            if p.factor == factor and p.ours_a is not None and p.ours_b is not None
        ]
    if len(moved) < LEAST_PAIRS or not swaps:
        return np.full((_DRAWS + 1, len(FACTOR_ORDER)), np.nan)
    energy = np.stack(moved)
    natural = np.mean([np.square(difference(s.a, s.b)).mean(0) for s in swaps], 0)
    draws = rng.integers(0, len(moved), (_DRAWS, len(moved)))
    means = np.concatenate([energy.mean(0)[None], energy[draws].mean(1)])
    share = [means[:, c].sum(1) / max(float(natural[c].sum()), 1e-9) for c in _COLUMNS.values()]
    return np.asarray(np.sqrt(np.stack(share, 1)))


def _following(factor: str, ours: F64, true: F64 | None) -> F64:
    """(10,) mean square of the excess of our movement that follows the factor's own signals."""
    count = len(ours) if true is None else min(len(ours), len(true))
    own, excess = ours[:count, _COLUMNS[factor]], ours[:count]
    if true is not None:
        truly = true[:count, _COLUMNS[factor]]
        reach = float((own * truly).sum() / max(float((truly * truly).sum()), 1e-9))
        excess = excess - reach * true[:count]
        own = truly
    left = own.T @ own + _TREMBLING * count * np.eye(own.shape[1])
    followed = own @ np.linalg.solve(left, own.T @ excess)
    return np.asarray(np.square(followed).mean(0))


def square(matrix: Mapping[str, Mapping[str, float]], suffix: str = "") -> Matrix:
    """The factors' columns alone, or those of one of the suffixes above."""
    return {f: {g: row.get(g + suffix, float("nan")) for g in FACTOR_ORDER}
            for f, row in matrix.items()}  # fmt: skip
