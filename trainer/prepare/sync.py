"""Whether sound and lips belong together, and how far apart they are.

The mouth that E_aud expects from the sound is compared with the mouth that is seen, at
every offset. A file whose offset is small and the same in its parts is corrected; one
whose offset wanders, is large, or that shows no relation at all (a voice over pictures,
music) is dropped: it would teach lips that lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS
from models.face import FaceModel, lip_gap
from models.rates import FPS, MODEL_RATE_HZ
from trainer.evaluate.metrics import correlations_by_lag

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SyncLimits:
    """What counts as in sync, as correctable and as foreign."""

    search_frames: int = 12
    correct_frames: float = 8.0
    ignore_frames: float = 1.0
    """Less than this is within what the estimate of one file knows."""
    bias_frames: float = -0.08
    """What the estimate says of film that is in sync, in the median of 17 held-out GRID clips
    with the shipped weights."""
    agree_frames: float = 1.5
    min_r: float = 0.35
    min_lead: float = 0.04
    """How far the peak must stand above every offset more than three frames away."""


@dataclass(frozen=True, slots=True)
class Sync:
    """Result for one file. `offset_frames` > 0: the lips are late; the sound must wait."""

    offset_frames: float
    r: float
    reason: str | None
    """Why the file is dropped, or None."""

    @property
    def shift_samples(self) -> int:
        """By how many 16 kHz samples the sound is moved later; 0 where nothing is corrected."""
        return 0 if self.reason else round(self.offset_frames * MODEL_RATE_HZ / FPS)


def expected_gap(lip_TD: F32, face: FaceModel) -> F64:
    """Mouth opening (T,) over face height that lip codes (T, 16) make on the mean head."""
    basis = face.basis[: DIMS["lip"]].astype(np.float64)
    heads = face.mean + np.tensordot(lip_TD.astype(np.float64), basis, 1)
    plane = heads[..., :2] * (1.0, -1.0)
    return lip_gap(plane.astype(np.float32)).astype(np.float64)


def check(seen: Sequence[F64], expected: Sequence[F64], limits: SyncLimits | None = None) -> Sync:
    """Compare mouths seen and expected, clip by clip of one file."""
    limits = limits or SyncLimits()
    parts = _parts(seen, expected)
    if not parts:
        return Sync(0.0, 0.0, "too short to check the sync")
    estimates = [_peak(_by_lag([p], limits.search_frames)) for p in parts]
    good = [o for o, r, gap in estimates if r >= limits.min_r and gap >= limits.min_lead]
    offset, peak, lead = _peak(_by_lag(parts, limits.search_frames))
    offset -= limits.bias_frames
    if len(good) >= 2 and np.ptp(good) > 2 * limits.agree_frames:
        return Sync(offset, peak, "the offset of the sound wanders")
    if peak < limits.min_r or lead < limits.min_lead:
        return Sync(offset, peak, "the sound is not this mouth's")
    if abs(offset) > limits.correct_frames:
        return Sync(offset, peak, "the sound is too far off")
    return Sync(0.0 if abs(offset) < limits.ignore_frames else offset, peak, None)


def _parts(seen: Sequence[F64], expected: Sequence[F64]) -> list[tuple[F64, F64]]:
    """Pieces of four to eight seconds: enough syllables for one estimate."""
    out = []
    for a, b in zip(seen, expected, strict=True):
        pieces = max(1, len(a) // (4 * FPS))
        edges = np.linspace(0, len(a), pieces + 1).astype(int)
        for start, end in pairwise(edges):
            if end - start >= 2 * FPS and a[start:end].std() > 1e-6:
                out.append((a[start:end], b[start:end]))
    return out


def _by_lag(parts: Sequence[tuple[F64, F64]], reach: int) -> dict[int, float]:
    """Mean r over pieces at every offset, weighted by their length."""
    total: dict[int, float] = {}
    weight = 0.0
    for a, b in parts:
        weight += len(a)
        for lag, r in correlations_by_lag(a, b, reach).items():
            total[lag] = total.get(lag, 0.0) + len(a) * (r if np.isfinite(r) else 0.0)
    return {lag: value / weight for lag, value in total.items()}


def _peak(r: dict[int, float]) -> tuple[float, float, float]:
    """Offset to a fraction of a frame, r there, and its lead over all other places."""
    top = max(r, key=lambda lag: r[lag])
    elsewhere = max((v for lag, v in r.items() if abs(lag - top) > 3), default=0.0)
    left, right = r.get(top - 1), r.get(top + 1)
    fraction = 0.0
    if left is not None and right is not None and left - 2 * r[top] + right < -1e-9:
        fraction = 0.5 * (left - right) / (left - 2 * r[top] + right)
    return top + fraction, r[top], r[top] - elsewhere


def shift(samples: F32, by: int) -> F32:
    """Sound moved `by` samples later (earlier if negative), same length, silence moved in."""
    if by == 0:
        return samples
    out = np.zeros_like(samples)
    if by > 0:
        out[by:] = samples[: len(samples) - by]
    else:
        out[:by] = samples[-by:]
    return out
