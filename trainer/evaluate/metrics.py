"""Figures from pairs of signals and pairs of pictures; numpy only, no model inside.

Signals are (T,) float64 at 25 frames a second. A positive lag means that the first signal
is late. Every function says what it returns where there is nothing to measure: NaN, which
reports show as a dash, never a zero that looks like a result.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
MAX_LAG = 8
_TINY = 1e-9


def correlation(a: F64, b: F64) -> float:
    """Pearson's r of two signals; NaN where one of them stands still."""
    if len(a) < 3 or a.std() < _TINY or b.std() < _TINY:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def correlations_by_lag(a: F64, b: F64, max_lag: int = MAX_LAG) -> dict[int, float]:
    """r of `a` against `b` with `a` taken `lag` frames later, for all |lag| <= `max_lag`."""
    count = min(len(a), len(b))
    out = {}
    max_lag = min(max_lag, max(0, count - 3))
    for lag in range(-max_lag, max_lag + 1):
        x = a[max(lag, 0) : count + min(lag, 0)]
        y = b[max(-lag, 0) : count - max(lag, 0)]
        out[lag] = correlation(x, y)
    return out


def best_lag(a: F64, b: F64, max_lag: int = MAX_LAG) -> tuple[float, float]:
    """Lag in frames, to a fraction by a parabola through the peak, and r at that peak."""
    r = correlations_by_lag(a, b, max_lag)
    known = {lag: value for lag, value in r.items() if np.isfinite(value)}
    if not known:
        return float("nan"), float("nan")
    top = max(known, key=lambda lag: known[lag])
    return top + _peak(known.get(top - 1), known[top], known.get(top + 1)), known[top]


def _peak(left: float | None, top: float, right: float | None) -> float:
    """Offset of a parabola's vertex from the middle of three equidistant values."""
    if left is None or right is None:
        return 0.0
    bend = left - 2 * top + right
    return 0.0 if bend > -_TINY else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))


def slope(a: F64, b: F64) -> float:
    """How much `a` moves per unit of `b`, at the lag where they agree best (least squares)."""
    count = min(len(a), len(b))
    lag = best_lag(a, b)[0]
    if not np.isfinite(lag):
        return float("nan")
    shift = round(lag)
    x, y = b[max(-shift, 0) : count - max(shift, 0)], a[max(shift, 0) : count + min(shift, 0)]
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum()) if (x * x).sum() > _TINY else float("nan")


def follow(ours: F64, driver: F64, unit: float = 1.0) -> dict[str, float]:
    """How well a signal follows its driver.

    `r` at lag 0, `best_r` and `lag_frames` at the best lag, `slope` at that lag, `mae` in the
    signal's unit divided by `unit`, `mae_centred` after both means are taken away (a
    portrait's own pose is no error), and the driver's own spread `driver_std`.
    """
    count = min(len(ours), len(driver))
    a, b = ours[:count].astype(np.float64), driver[:count].astype(np.float64)
    lag, peak = best_lag(a, b)
    centred = (a - a.mean()) - (b - b.mean())
    return {
        "r": correlation(a, b),
        "best_r": peak,
        "lag_frames": lag,
        "slope": slope(a, b),
        "mae": float(np.abs(a - b).mean() / unit),
        "mae_centred": float(np.abs(centred).mean() / unit),
        "driver_std": float(b.std() / unit),
    }


def events(signal: F64, threshold: float) -> list[tuple[int, int]]:
    """Runs [start, end) in which a signal is at or above `threshold`."""
    high = np.concatenate([[False], np.asarray(signal) >= threshold, [False]])
    change = np.flatnonzero(high[1:] != high[:-1])
    return [(int(a), int(b)) for a, b in zip(change[::2], change[1::2], strict=True)]


def blink_f1(ours: F64, driver: F64, threshold: float = 0.5, slack: int = 3) -> dict[str, float]:
    """F1 of blinks: one of ours is right if it comes within `slack` frames of a driver's.

    `count` is the driver's number of blinks; without any blink on both sides F1 is NaN.
    """
    a, b = events(ours, threshold), events(driver, threshold)
    free = list(b)
    right = 0
    for start, end in a:
        match = next((e for e in free if start < e[1] + slack and e[0] < end + slack), None)
        if match is not None:
            free.remove(match)
            right += 1
    total = len(a) + len(b)
    return {"f1": 2 * right / total if total else float("nan"), "count": float(len(b))}


def jitter(points_TK2: F64, keep: int = 5) -> float:
    """Restlessness of landmarks: RMS distance to their own `keep`-frame mean, in their unit."""
    if len(points_TK2) <= keep:
        return float("nan")
    kernel = np.ones(keep) / keep
    flat = points_TK2.reshape(len(points_TK2), -1)
    smooth = np.stack([np.convolve(c, kernel, "valid") for c in flat.T], 1)
    half = keep // 2
    away = (flat[half : half + len(smooth)] - smooth).reshape(len(smooth), -1, 2)
    return float(np.sqrt((away**2).sum(-1).mean()))


# --- pictures -------------------------------------------------------------------------


def psnr(a: U8, b: U8) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 pictures; infinite if they are equal."""
    error = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: U8, b: U8) -> float:
    """Structural similarity of the luma (Wang et al., 2004): Gaussian window, sigma 1.5."""
    x, y = (cv2.cvtColor(i, cv2.COLOR_RGB2GRAY).astype(np.float64) for i in (a, b))

    def blur(image: Any) -> F64:
        return np.asarray(cv2.GaussianBlur(image, (11, 11), 1.5), np.float64)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = blur(x), blur(y)
    vx, vy, both = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    score = (2 * mx * my + c1) * (2 * both + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(score[5:-5, 5:-5].mean())


def sharpness(image: U8, hull: F64) -> float:
    """Mean gradient magnitude of the luma's fine detail inside a convex hull (K, 2) in pixels.

    Fine detail is what a Gaussian of 1.5 pixels takes away, so light and pose count little.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 1.5)
    mask = np.zeros(grey.shape, np.uint8)
    points = cv2.convexHull(np.asarray(hull, np.float32).reshape(-1, 1, 2)).astype(np.int32)
    cv2.fillConvexPoly(mask, points, 1)
    return float(np.abs(fine)[mask > 0].mean()) if mask.any() else float("nan")


# --- audio against picture ------------------------------------------------------------


def lse(audio_TD: F64, visual_TD: F64, max_offset: int = 15) -> dict[str, float]:
    """Confidence and offset of sound against picture, as SyncNet's evaluation defines them.

    Mean distance between the embeddings at every offset; `distance` is the smallest (LSE-D),
    `confidence` how far it lies below the median (LSE-C), `offset_frames` where it is:
    positive when the picture is late (Chung & Zisserman, 2016; Prajwal et al., 2020).
    """
    count = min(len(audio_TD), len(visual_TD))
    means = []
    offsets = list(range(-max_offset, max_offset + 1))
    for offset in offsets:
        a = audio_TD[max(-offset, 0) : count - max(offset, 0)]
        v = visual_TD[max(offset, 0) : count + min(offset, 0)]
        means.append(float(np.linalg.norm(a - v, axis=1).mean()) if len(a) else float("inf"))
    best = int(np.argmin(means))
    finite = [m for m in means if np.isfinite(m)]
    return {
        "confidence": float(np.median(finite) - means[best]),
        "distance": means[best],
        "offset_frames": float(offsets[best]),
    }


# --- what a code knows ----------------------------------------------------------------


def probe_r2(
    codes_ND: F64, factor_NK: F64, groups_N: NDArray[Any], *, folds: int = 5, ridge: float = 1.0
) -> float:
    """R² of a linear (ridge) probe from a code to a factor, cross-validated by group.

    Groups (identities, clips) never sit on both sides. The mean over the factor's columns;
    below 0 means worse than the mean: shown as it is.
    """
    names = np.unique(groups_N)
    folds = min(folds, len(names))
    if folds < 2:
        return float("nan")
    fold_of = {name: i % folds for i, name in enumerate(names)}
    fold = np.array([fold_of[g] for g in groups_N])
    predicted = np.zeros_like(factor_NK, np.float64)
    baseline = np.zeros_like(predicted)
    for k in range(folds):
        train, test = fold != k, fold == k
        mean, spread = codes_ND[train].mean(0), codes_ND[train].std(0)
        # Dimensions that a code hardly uses would be blown up on people who do use them.
        spread = np.maximum(spread, 0.02 * spread.max() + _TINY)
        x = (codes_ND - mean) / spread
        centre = factor_NK[train].mean(0)
        left = x[train].T @ x[train] + ridge * np.eye(x.shape[1])
        weight = np.linalg.solve(left, x[train].T @ (factor_NK[train] - centre))
        predicted[test] = x[test] @ weight + centre
        baseline[test] = centre
    error = ((predicted - factor_NK) ** 2).sum(0)
    spread = ((factor_NK - baseline) ** 2).sum(0)
    known = spread > _TINY
    return float((1 - error[known] / spread[known]).mean()) if known.any() else float("nan")


def retrieval(
    query_ND: F64, target_NM: F64, groups_N: NDArray[Any], *, among: int = 50, seed: int = 0
) -> dict[str, float]:
    """Whether a code finds its own sound: linear map to the target, then nearest of `among`.

    The map is learnt on half of the groups and tried on the other half, where every query
    chooses between its own target and `among` - 1 others. `chance` is 1 / `among`.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(np.unique(groups_N))
    learn = np.isin(groups_N, names[: len(names) // 2])
    if learn.sum() < 10 or (~learn).sum() < among:
        return {"top1": float("nan"), "chance": 1 / among}
    spread = query_ND[learn].std(0) + _TINY
    x = (query_ND - query_ND[learn].mean(0)) / spread
    scale = target_NM[learn].std(0) + _TINY
    y = (target_NM - target_NM[learn].mean(0)) / scale
    left = x[learn].T @ x[learn] + np.eye(x.shape[1])
    guess = x[~learn] @ np.linalg.solve(left, x[learn].T @ y[learn])
    truth = y[~learn]
    hits = 0
    for i in range(len(truth)):
        others = rng.choice(np.delete(np.arange(len(truth)), i), among - 1, replace=False)
        distances = np.linalg.norm(truth[np.concatenate([[i], others])] - guess[i], axis=1)
        hits += int(np.argmin(distances) == 0)
    return {"top1": hits / len(truth), "chance": 1 / among}
