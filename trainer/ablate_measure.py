"""What `trainer.ablate` measures on people and clips that nobody trains on, without drawing.

Leakage is taken at the encoders: entry (f, g) is the share of the variance of what is read as
factor f, less its label, that the label of factor g explains in a ridge regression tested on other
clips. Rendered clips have independent factors and exact labels, so a perfect encoder has 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.codes import EXPRESSION_NAMES, FACTOR_SLICES, FACTORS, Factor
from models.config import ModelConfig
from models.rates import MEL_BANDS, MEL_PER_FRAME
from models.streaming import Loudness
from trainer.frames import FrameCache
from trainer.lip_targets import code_gap
from trainer.loader import batches, to_unit
from trainer.recipes.config import PictureWeights, Recipe
from trainer.stages.painting import Plan, paint
from trainer.stages.run import Run
from trainer.stages.sampling import Data, PairPlan, by_clip, pairs, window_rows
from trainer.stages.system import System
from trainer.voices import measure

F64 = NDArray[np.float64]
Rows = NDArray[np.int64]
_SMILE = [i for i, n in enumerate(EXPRESSION_NAMES) if n.startswith("mouthSmile")]


def ridge_share(given_ND: F64, wanted_ND: F64, group_N: NDArray[np.str_], folds: int = 5) -> float:
    """Share of the variance of `wanted` that ridge on `given` explains on groups it did not see.

    Both are standardised by all rows; penalty 1 % of the rows. 0 where it explains nothing.
    """
    names = np.unique(group_N)
    fold = np.searchsorted(names, group_N) % min(folds, len(names))
    x, y = ((v - v.mean(0)) / (v.std(0) + 1e-6) for v in (given_ND, wanted_ND))
    left = np.zeros_like(y)
    for k in range(fold.max() + 1):
        train, test = fold != k, fold == k
        a, b = x[train], y[train]
        centre_a, centre_b = a.mean(0), b.mean(0)
        a, b = a - centre_a, b - centre_b
        weight = np.linalg.solve(a.T @ a + 0.01 * len(a) * np.eye(a.shape[1]), a.T @ b)
        left[test] = y[test] - (x[test] - centre_a) @ weight - centre_b
    return max(0.0, 1 - float(np.square(left).sum() / np.square(y).sum()))


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out rows: all of some filmed clips with sound, ten of each rendered clip."""

    filmed: Rows
    rendered: Rows

    @staticmethod
    def of(data: Data, clips: int = 24, each: int = 10, rendered: int = 40) -> Held:
        """Every other speaker first, then clips spread over the main one."""
        frames = data.frames
        test = frames.split().test
        grid = by_clip(frames, test[frames.kind[test] == "grid"])
        spoken = set() if data.speech is None else {str(c) for c in data.speech.clip}
        names = sorted(n for n in grid if n in spoken)
        chosen = [
            names[i] for i in np.linspace(0, len(names) - 1, min(clips, len(names))).astype(int)
        ]
        synth = by_clip(frames, test[frames.kind[test] == "synth"])
        some = [rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).astype(int)]
                for rows in list(synth.values())[:rendered]]  # fmt: skip
        return Held(np.concatenate([grid[n] for n in chosen]), np.concatenate(some))


@torch.no_grad()
def features(system: System, frames: FrameCache, rows: Rows, folder: Path) -> Tensor:
    """Trunk features (N, 512) of undamaged pictures; read once: no variant moves the trunk."""
    path = folder / f"held-{len(rows)}-{int(rows.sum())}.npy"
    if not path.exists():
        system.eval()
        parts = []
        for part in np.array_split(rows, max(1, len(rows) // 32)):
            faces = torch.from_numpy(np.stack([frames.pixels[int(r)] for r in part]))
            parts.append(system.motion.features(to_unit(faces) * 2 - 1))
        np.save(path, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path))


def leaks(
    found_ND: F64, factor: Factor, code_NC: F64, clip_N: NDArray[np.str_]
) -> dict[str, float]:
    """A row of the leakage matrix: what is read as `factor`, less its label, explained by each."""
    error = np.asarray(found_ND - code_NC[:, FACTOR_SLICES[factor]], np.float64)
    return {
        f"{factor} moved by {g}": ridge_share(code_NC[:, FACTOR_SLICES[g]], error, clip_N)
        for g in FACTORS if g != factor
    }  # fmt: skip


@torch.no_grad()
def lips(system: System, data: Data, cache: Path, folder: Path, most: int = 60) -> dict[str, float]:
    """E_aud on held-out filmed clips, and what else moves E_mot's lip code."""
    assert data.speech is not None
    frames, networks = data.frames, system.networks()
    spoken = measure.film(cache, data.speech, frames, None)
    spoken = spoken[:: max(1, len(spoken) // most)]
    codes = [measure.read(networks, s.mel) for s in spoken]
    gaps = [code_gap(frames.face, s.shape, c) for s, c in zip(spoken, codes, strict=True)]
    found = measure.follow(gaps, [s.gap for s in spoken])
    out = {"clips": float(len(spoken)), "r at 0": found["r"], "best r": found["best"],
           "lag ms": found["lag_ms"], "spread": found["spread"]}  # fmt: skip
    out["code retrieval of 50"] = measure.agreement(codes, spoken)["retrieval of 50"]
    rows = Held.of(data).rendered
    system.eval()
    read = system.motion.heads["lip"](features(system, frames, rows, folder)).double().numpy()
    return out | leaks(read, "lip", frames.code[rows].astype(np.float64), frames.clip[rows])


@torch.no_grad()
def listener(system: System, data: Data, folder: Path, seed: int = 0) -> dict[str, float]:
    """How often a held-out picture is nearest to its own sound among 50 (cosine of 512-d
    pre-embeddings, half of the others from the same clip).
    """
    assert data.speech is not None
    frames, rows = data.frames, Held.of(data).filmed
    windows, seen = sound_of(data, rows, system.config)
    rows = rows[seen]
    system.eval()
    video = system.motion.embed(
        "lip", features(system, frames, Held.of(data).filmed, folder)[seen]
    )[0]
    audio = system.audio.embed(windows)[0]
    a, v = (torch.nn.functional.normalize(x, dim=1) for x in (audio, video))
    score, clip = (v @ a.T).numpy(), frames.clip[rows]
    rng, hits = np.random.default_rng(seed), 0
    for i in range(len(score)):
        same = np.flatnonzero((clip == clip[i]) & (np.arange(len(score)) != i))
        other = np.flatnonzero(clip != clip[i])
        others = np.concatenate([rng.choice(same, min(24, len(same)), False),
                                 rng.choice(other, min(25, len(other)), False)])  # fmt: skip
        hits += bool(score[i, i] > score[i, others].max())
    return {"pictures": float(len(score)), "feature retrieval of 50": hits / len(score)}


def sound_of(data: Data, rows: Rows, config: ModelConfig) -> tuple[Tensor, NDArray[np.bool_]]:
    """Mel windows (M, T, 80) of the rows whose window is whole, and which rows those are.

    A row counts only if its window would be whole with two frames to the right, so that every
    variant is measured on the same rows.
    """
    assert data.speech is not None
    frames, number = data.frames, {str(n): i for i, n in enumerate(data.speech.clip)}
    padded: dict[str, NDArray[np.float32]] = {}
    windows, seen = [], np.zeros(len(rows), bool)
    for i, row in enumerate(rows):
        name, frame = str(frames.clip[row]), int(frames.frame[row])
        if name not in padded:
            mel = Loudness().push(data.speech.window(0, number[name])[0])
            padded[name] = np.concatenate([np.zeros((config.left_mel, MEL_BANDS), np.float32), mel])
        start = MEL_PER_FRAME * frame
        if start + config.left_mel + 3 * MEL_PER_FRAME <= len(padded[name]):
            seen[i] = True
            windows.append(padded[name][start : start + config.mel_window])
    return torch.from_numpy(np.stack(windows)), seen


@torch.no_grad()
def expressions(
    system: System, data: Data, folder: Path, held: Held | None = None
) -> dict[str, float]:
    """The expression code over its window: right, tells nothing of speech, moved by nothing else.

    "tells of the mouth" is the share of the mouth's opening, "tells of sound" that of E_aud's
    features, that the code's 30 numbers explain on other filmed clips.
    """
    frames, held = data.frames, held or Held.of(data)
    head = system.motion.heads["exp"].eval()
    filmed = head(features(system, frames, held.filmed, folder)).double().numpy()
    code = over_window(filmed, frames, held.filmed, system.config.expression_window)
    windows, seen = sound_of(data, held.filmed, system.config)
    sound = system.audio.eval().embed(windows)[0].double().numpy()
    clip = frames.clip[held.filmed]
    gap = code_gap(frames.face, frames.face.mean, frames.code[held.filmed][:, FACTOR_SLICES["lip"]])
    read = head(features(system, frames, held.rendered, folder)).double().numpy()
    true = frames.code[held.rendered].astype(np.float64)
    wanted = true[:, FACTOR_SLICES["exp"]]
    smile, real = read[:, _SMILE].mean(1), wanted[:, _SMILE].mean(1)
    return {
        "frames": float(len(code)),
        "tells of the mouth": ridge_share(code, gap[:, None], clip),
        "tells of sound": ridge_share(code[seen], sound, clip[seen]),
        "jitter": float(
            np.mean([np.abs(np.diff(code[clip == c], axis=0)).mean() for c in np.unique(clip)])
        ),
        "error": float(np.abs(read - wanted).mean()),
        "smile r": float(np.corrcoef(smile, real)[0, 1]),
    } | leaks(read, "exp", true, frames.clip[held.rendered])


def over_window(code_ND: F64, frames: FrameCache, rows: Rows, length: int) -> F64:
    """Trailing means as the stream takes them, over the rows of each clip."""
    place = {int(r): i for i, r in enumerate(rows)}
    clips = by_clip(frames, rows)
    out = np.empty_like(code_ND)
    for i, row in enumerate(rows):
        clip = clips[str(frames.clip[row])]
        mine = window_rows(frames, clip, int(row), length, "trailing")
        out[i] = np.mean([code_ND[place[int(r)]] for r in mine], 0)
    return out


@torch.no_grad()
def draws(recipe: Recipe, system: System, data: Data, count: int = 24) -> dict[str, float]:
    """Terms of the warping generator on held-out clips, whole pictures, all weights 1."""
    spec = recipe.stage1
    frames = data.frames
    test = frames.split().test
    held = Data(frames, data.speech, test, data.train_clips)
    weights = PictureWeights(pixels=1.0, landmarks=1.0, residual=1.0, warp=1.0, flow=1.0)
    plan = PairPlan(recipe.model, spec.driving, spec.augment, 1.0, 0.0, face=False, flow=True)
    # Every sample is of the renderer's clips: they alone know their dense flow.
    run = Run(Path("."), "1", device=torch.device("cpu"), precision="fp32", show=False)
    stream = batches(pairs(held, plan), size=2, seed=12345, threads=1)
    system.eval()
    found: dict[str, list[float]] = {}
    for _ in range(count // 2):
        batch = next(stream)
        driving = batch["code"][:, 1:].flatten(0, 1)
        drawn = paint(run, system, system.first, batch, driving, Plan(weights, spec.driving, 0, 0))
        terms = drawn.terms | {"error": (drawn.picture - drawn.true).abs().mean()}
        for key, value in terms.items():
            found.setdefault(key, []).append(float(value))
    return {"portraits": float(count), **{k: float(np.mean(v)) for k, v in found.items()}}
