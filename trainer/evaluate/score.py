"""From measured signals and pictures of one item to its figures, and from items to a summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.face import GROUPS
from models.runtime.base import BaseEngine
from trainer.evaluate import metrics
from trainer.evaluate.perceptual import perceptual
from trainer.evaluate.truth import FLOORS, Truth

Pixels = NDArray[np.uint8]
F64 = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
Figures = dict[str, dict[str, float]]
MOUTH = np.r_[GROUPS["lips_outer"], GROUPS["lips_inner"]]
#: Points that neither speak nor look: their restlessness is the picture's own.
STILL_POINTS = np.r_[GROUPS["nose"], GROUPS["oval"]]
REGIONS: dict[str, list[slice]] = {
    "face": [GROUPS["oval"]],
    "mouth": [GROUPS["lips_outer"]],
    "eyes": [GROUPS["eye_left"], GROUPS["eye_right"]],
}
#: Signals that a driver moves, and the measured spread below which it does not move them; where
#: an item names the signals that its labels say are moved, that decides instead.
FOLLOWED: dict[str, float] = {
    "yaw": 1.5, "pitch": 1.5, "roll": 1.5, "blink": 0.06, "gaze_x": 2.0, "gaze_y": 2.0,
    "smile": 0.08, "brow_up": 0.08, "brow_down": 0.06, "mouth_gap": 0.008,
}  # fmt: skip
UNITS = {"yaw": "deg", "pitch": "deg", "roll": "deg", "gaze_x": "deg", "gaze_y": "deg",
         "mouth_gap": "face heights"}  # fmt: skip
#: Blinks of the measured score count above this share of its range in the clip.
_BLINK = 0.45
_LEAST_BLINK = 0.15
_STILL = 1e-9
_SEEN = 0.9
#: Mean errors of the literature: average pose distance, average expression distance.
_MEAN_ERRORS = {"apd": ("yaw", "pitch", "roll"), "aed": ("smile", "brow_up", "brow_down")}


def follow_all(ours: Arrays, driver: Arrays) -> Figures:
    """`metrics.follow` of every signal, and F1 of blinks."""
    out = {name: metrics.follow(ours[name], driver[name]) for name in FOLLOWED}
    out["blink"] |= metrics.blink_f1(_lids(ours["blink"]), _lids(driver["blink"]), _BLINK)
    for title, names in _MEAN_ERRORS.items():
        out[title] = {"mae": float(np.mean([out[n]["mae"] for n in names]))}
    return out


def _lids(score: F64) -> F64:
    """A blink score (T,) from its rest to its top: how high blinks reach differs by face."""
    rest = float(np.percentile(score, 10))
    return np.asarray((score - rest) / max(float(score.max()) - rest, _LEAST_BLINK))


def add_truth(figures: Figures, ours: Arrays, driver: Arrays, truth: Truth) -> None:
    """What the labels of the driver say, beside what the measure saw on both sides.

    `measure_r` and `measure_slope` are the measure on the driver's own true frames against the
    labels: no system can be seen to do better than this r. `truth_r` is ours against the labels.
    `seen_r` is r in the clips whose driver the measure itself sees well (`_SEEN`).
    """
    count = min(len(ours["yaw"]), len(driver["yaw"]))
    rows = truth.frames < count
    at = truth.frames[rows]
    for name in FLOORS:
        labels = truth.signals[name][rows]
        seen = driver[name][at].astype(np.float64)
        spread = float(labels.var()) * len(labels)
        measure_r = metrics.correlation(seen, labels)
        figures[name] |= {
            "measure_r": measure_r,
            "seen_r": figures[name]["r"] if measure_r >= _SEEN else float("nan"),
            "measure_slope": float(((seen - seen.mean()) * labels).sum() / spread)
            if spread > _STILL else float("nan"),
            "truth_r": metrics.correlation(ours[name][at].astype(np.float64), labels),
        }  # fmt: skip


def landmark_distance(ours: Arrays, driver: Arrays) -> dict[str, float]:
    """Mean distance of landmarks in pixels of 256: mouth, and all but the oval.

    `mouth_relative` first takes away where each mouth is, so that pose does not count
    (LMD as it is usually reported is not normalised; both are here).
    """
    count = min(len(ours["landmarks"]), len(driver["landmarks"]))
    a, b = ours["landmarks"][:count], driver["landmarks"][:count]

    def mean(x: F64, y: F64) -> float:
        return float(np.linalg.norm(x - y, axis=-1).mean())

    mouth_a, mouth_b = a[:, MOUTH], b[:, MOUTH]
    middle = [m - m.mean(1, keepdims=True) for m in (mouth_a, mouth_b)]
    inner = np.arange(GROUPS["oval"].stop, a.shape[1])
    return {
        "mouth": mean(mouth_a, mouth_b),
        "mouth_relative": mean(middle[0], middle[1]),
        "full": mean(a[:, inner], b[:, inner]),
    }


def identity_distance(frames: Iterable[Pixels], source: Pixels, engine: BaseEngine) -> float:
    """Mean cosine distance of E_app's identity vector to the source's; 0 is the same.

    E_app's vector was not trained to tell people apart: a drift in it shows that the face
    changed for our own networks, no more.
    """
    wanted = own_identity(source, engine)
    seen = [own_identity(frame, engine) for frame in frames]
    return float(np.mean([1 - v @ wanted for v in seen]))


def own_identity(crop: Pixels, engine: BaseEngine) -> F64:
    """E_app's identity vector (64,) at unit length."""
    x = crop.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(127.5) - np.float32(1)
    vector = engine.run("appearance", {"source": x})["identity"][0].astype(np.float64)
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


def embedding_distance(ours: Arrays, source: Arrays) -> float:
    """Mean Euclidean distance of independent embeddings (dlib); NaN where there are none."""
    a, b = ours["identity"], source["identity"]
    if not a.size or not b.size:
        return float("nan")
    return float(np.linalg.norm(a - b.mean(0), axis=1).mean())


def embedding_cosine(ours: Arrays, source: Arrays) -> float:
    """CSIM: mean cosine of those embeddings to the source's; 1 is the same."""
    a, b = ours["identity"], source["identity"]
    if not a.size or not b.size:
        return float("nan")
    to = b.mean(0)
    return float(np.mean(a @ to / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(to), 1e-9)))


def sharpness_ratio(
    frames: Sequence[Pixels], landmarks_TK2: F64, sources: Sequence[Pixels], source_TK2: F64
) -> dict[str, float]:
    """Fine detail of face, mouth and eyes as a share of the source's; median over frames."""
    out = {}
    for name, groups in REGIONS.items():
        ratios = []
        for i, frame in enumerate(frames):
            j = min(i, len(sources) - 1)
            ours = [metrics.sharpness(frame, landmarks_TK2[i][g]) for g in groups]
            theirs = [metrics.sharpness(sources[j], source_TK2[j][g]) for g in groups]
            ratios.append(np.mean(ours) / max(float(np.mean(theirs)), 1e-6))
        out[name] = float(np.nanmedian(ratios))
    return out


def jitter(ours: Arrays, driver: Arrays) -> dict[str, float]:
    """Restlessness of nose and outline in pixels of 256, and the driver's own."""
    return {
        "px": metrics.jitter(ours["landmarks"][:, STILL_POINTS]),
        "driver_px": metrics.jitter(driver["landmarks"][:, STILL_POINTS]),
    }


def image_metrics(frames: Sequence[Pixels], truth: Sequence[Pixels]) -> dict[str, float]:
    """Means of PSNR (dB), SSIM and the perceptual distance over every fourth frame."""
    pairs = list(zip(frames, truth, strict=False))[::4]
    return {
        "psnr_db": float(np.mean([metrics.psnr(a, b) for a, b in pairs])),
        "ssim": float(np.mean([metrics.ssim(a, b) for a, b in pairs])),
        "perceptual": float(np.mean([perceptual(a, b) for a, b in pairs])),
    }


@dataclass(frozen=True, slots=True)
class Result:
    """Figures of one item: {group: {figure: value}}."""

    kind: str
    name: str
    figures: Figures
    signals: tuple[str, ...] = ()
    """Signals that the driver's labels say it moves; empty where nobody says."""

    def counts(self, signal: str) -> bool:
        """Whether this clip says anything about a signal."""
        if self.signals and signal in FLOORS:
            return signal in self.signals
        return self.figures[signal].get("driver_std", 1.0) >= FOLLOWED.get(signal, 0.0)


def summarise(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Median, worst and count of the figures that matter, by `kind.signal.figure`.

    A signal counts only in clips whose driver really moves it (`Result.counts`); the worst is
    the smallest for r and F1 and the largest for errors.
    """
    values: dict[str, list[float]] = {}
    for result in results:
        for group, figures in result.figures.items():
            still = group in FOLLOWED and not result.counts(group)
            for name, value in figures.items():
                if name in ("driver_std", "count") or still:
                    continue
                if np.isfinite(value):
                    values.setdefault(f"{result.kind}.{group}.{name}", []).append(value)
    return {
        key: {
            "median": float(np.median(v)),
            "worst": float(min(v) if key.endswith(_HIGHER) else max(v, key=abs)),
            "count": len(v),
        }
        for key, v in sorted(values.items())
    }


_HIGHER = (
    ".r", ".best_r", ".truth_r", ".seen_r", ".measure_r", ".measure_slope", ".csim", ".f1",
    ".psnr_db", ".ssim", ".slope", ".face", ".mouth", ".eyes", ".confidence",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure shall reach: at least, or at most in absolute value."""

    title: str
    key: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        """Whether a median reaches the target."""
        if self.at_least is not None:
            return value >= self.at_least
        return abs(value) <= (self.at_most or 0.0)


TARGETS = (
    Target("mouth opening follows the speaker, r", "speech.mouth_gap.r", at_least=0.75),
    Target("mouth lag, frames (20 ms)", "speech.mouth_gap.lag_frames", at_most=0.5),
    Target("yaw r", "driven.yaw.r", at_least=0.97),
    Target("pitch r", "driven.pitch.r", at_least=0.97),
    Target("roll r", "driven.roll.r", at_least=0.97),
    Target("yaw error, degrees", "driven.yaw.mae_centred", at_most=2.0),
    Target("pitch error, degrees", "driven.pitch.mae_centred", at_most=2.0),
    Target("roll error, degrees", "driven.roll.mae_centred", at_most=2.0),
    Target("blink r", "driven.blink.r", at_least=0.9),
    Target("gaze x r", "driven.gaze_x.r", at_least=0.9),
    Target("smile r", "driven.smile.r", at_least=0.85),
    Target("identity distance (independent)", "driven.identity.independent", at_most=0.45),
    Target("sharpness of the face", "driven.sharpness.face", at_least=0.9),
    Target("sharpness of the mouth", "driven.sharpness.mouth", at_least=0.9),
    Target("sharpness of the eyes", "driven.sharpness.eyes", at_least=0.9),
    Target("mouth of unseen voices, r", "voice.mouth_gap.r", at_least=0.75),
    Target("their lag, frames (20 ms)", "voice.mouth_gap.lag_frames", at_most=0.5),
    Target("largest leakage, carried and along", "leakage.explained.max", at_most=0.15),
    Target("largest leakage, raw (with the measure's own)", "leakage.raw.max", at_most=0.15),
)


def judge(summary: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Every target with the figure found, whether it was met, and on how many clips."""
    out = []
    for target in TARGETS:
        found = summary.get(target.key)
        out.append({
            "title": target.title, "key": target.key,
            "wanted": f"≥ {target.at_least}" if target.at_least is not None
            else f"≤ {target.at_most}",
            "median": found["median"] if found else None,
            "worst": found["worst"] if found else None,
            "count": int(found["count"]) if found else 0,
            "met": target.met(found["median"]) if found else None,
        })  # fmt: skip
    return out
