"""KID on O-Net features: how far two sets of pictures are apart as sets.

Kernel Inception Distance (Binkowski et al., 2018) with another net: the squared maximum mean
discrepancy under the kernel (x . y / d + 1)^3, by the estimator without bias, which can be
below 0. Features are mean and spread over the picture of every channel of the four layers of
`perceptual.py` (576), each in units of its spread over the real set. They see texture, light
and shape, not meaning. Figures compare only with others of this net and this suite, never
with published KID.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.perceptual import features

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
NAME = "KID on O-Net features (x 1000)"
_HALVES = 100


def describe(image: U8) -> F64:
    """Features (D,) of one picture (H, W, 3) uint8 RGB."""
    maps = features(image)
    return np.concatenate([f(m, axis=(1, 2)) for m in maps for f in (np.mean, np.std)]).astype(
        np.float64
    )


def mmd2(x_ND: F64, y_MD: F64) -> float:
    """Unbiased squared discrepancy of two sets; needs two of each."""
    xx, yy, xy = (_kernel(a, b) for a, b in ((x_ND, x_ND), (y_MD, y_MD), (x_ND, y_MD)))
    n, m = len(x_ND), len(y_MD)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def _kernel(a: F64, b: F64) -> F64:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def kid(ours: Sequence[F64], real: Sequence[F64], seed: int = 0) -> dict[str, float]:
    """KID x 1000 between groups of features (N_i, D), one group of each per person.

    `spread` is the standard deviation over random halves of the people; `floor` is the KID
    between the real frames of one random half and of the other, mean over the same draws: what
    other people alone make. NaN below four people.
    """
    if len(ours) < 4:
        return {"kid": float("nan"), "spread": float("nan"), "floor": float("nan")}
    everything = np.concatenate(list(real))
    mean, scale = everything.mean(0), everything.std(0) + 1e-6
    x, y = ([(g - mean) / scale for g in side] for side in (ours, real))
    rng = np.random.default_rng(seed)
    halves, floors = [], []
    for _ in range(_HALVES):
        order = rng.permutation(len(x))
        a, b = order[: len(x) // 2], order[len(x) // 2 :]
        halves.append(mmd2(_join(x, a), _join(y, a)))
        floors.append(mmd2(_join(y, a), _join(y, b)))
    whole = mmd2(np.concatenate(x), np.concatenate(y))
    return {"kid": 1000 * whole, "spread": 1000 * float(np.std(halves)),
            "floor": 1000 * float(np.mean(floors))}  # fmt: skip


def _join(groups: Sequence[F64], chosen: NDArray[np.int64]) -> F64:
    return np.concatenate([groups[i] for i in chosen])
