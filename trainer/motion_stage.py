"""Train E_mot: codes and landmarks from one face crop.

Synthetic clips give every code exactly; GRID gives lips, lids and poses of real video
(fitted); stills give landmarks and poses of many faces. Dimensions are weighted by how far
they move the face, and a geometric loss compares where the predicted codes put the
landmarks, which is what the generator will do with them. Samples are two moments of one clip:
the difference of their codes is motion, free of what the person looks like.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.codes import DIMS, FACTOR_SLICES, FACTORS, Factor
from models.config import ModelConfig
from models.face import GROUPS
from models.networks.motion import MotionEncoder
from trainer.frames import (
    KINDS,
    SIZE,
    WHOLE,
    FrameCache,
    Pool,
    augmented,
    chain,
    degrade,
    random_similarity,
    rarity,
    shares,
)
from trainer.loader import Make, Sample, batches, to_unit
from trainer.loop import Parts, Report, check_time, cosine, descend, resume, save, set_rate


@dataclass(frozen=True, slots=True)
class MotionRecipe:
    """Everything that decides the run; share of kinds is synth, grid, stills."""

    batch: int = 32
    steps: int = 6000
    lr: float = 1.2e-3
    share: tuple[float, float, float] = (0.6, 0.25, 0.15)
    seed: int = 1


#: Which factors a kind of data teaches, and how much.
_TRUST: dict[str, dict[Factor, float]] = {
    "synth": {"lip": 1.0, "pose": 1.0, "eye": 1.0, "exp": 1.0},
    "grid": {"lip": 1.0, "pose": 1.0, "eye": 1.0, "exp": 0.2},
    "still": {"lip": 0.0, "pose": 0.6, "eye": 0.0, "exp": 0.0},
}
_LOCAL = (("eye_left", "iris_left"), ("eye_right", "iris_right"), ("lips_outer", "lips_inner"),
          ("brow_left", "eye_left"), ("brow_right", "eye_right"))  # fmt: skip
#: Dimensions whose correlation with the labels is shown.
_WATCHED: dict[str, tuple[Factor, int]] = {
    "jaw0": ("lip", 0), "jaw1": ("lip", 1), "yaw": ("pose", 0), "pitch": ("pose", 1),
    "roll": ("pose", 2), "blink": ("eye", 0), "gaze_x": ("eye", 2), "gaze_y": ("eye", 3),
    "smile": ("exp", 12), "brow": ("exp", 2),
}  # fmt: skip
#: One unit of these scaled codes is an error that a person would see.
_SCALE: dict[Factor, float] = {"lip": 1.5, "pose": 10.0, "eye": 4.0, "exp": 4.0}
#: What a wrong change between two moments costs.
_CHANGE: dict[Factor, float] = {"pose": 12.0, "eye": 2.0, "exp": 1.0}


def sampler(cache: FrameCache, rows: NDArray[np.int64], recipe: MotionRecipe) -> Make:
    """A function rng -> two moments of one clip in nearly the same crop; persons come first.

    Arrays have a leading axis of 2; of a still both moments are the same frame.
    """
    rare = rarity(cache)
    by_kind = {kind: rows[cache.kind[rows] == kind] for kind in KINDS}
    misc = by_kind["grid"][cache.person[by_kind["grid"]] != "s1"]
    pools = {kind: Pool.weighted(mine, rare) for kind, mine in by_kind.items()}
    misc_pool = Pool.weighted(misc, rare)
    share = shares(cache, rows, recipe.share)
    clips = _by_clip(cache, rows)

    def make(rng: np.random.Generator) -> Sample:
        kind = str(rng.choice(KINDS, p=share))
        other = kind == "grid" and len(misc) > 0 and rng.random() < 0.2
        row = (misc_pool if other else pools[kind]).draw(rng)
        crop = random_similarity(rng, zoom=0.1, angle=0.1, shift=0.045)
        flip = rng.random() < 0.5
        moments = []
        for frame in (row, int(rng.choice(clips[str(cache.clip[row])]))):
            move = chain(random_similarity(rng, zoom=0.02, angle=0.02, shift=0.01), crop)
            moment = augmented(cache, frame, move, flip=flip, out=WHOLE, size=SIZE)
            moments.append((degrade(rng, moment[0]), *moment[1:]))
        face, landmarks, code = (np.stack(part) for part in zip(*moments, strict=True))
        trust = np.stack([trust_of(kind)] * 2)
        return {"face": face, "landmarks": landmarks, "code": code, "trust": trust}

    return make


def _by_clip(cache: FrameCache, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The rows of every clip among `rows`."""
    ordered = rows[np.argsort(cache.clip[rows], kind="stable")]
    names, first = np.unique(cache.clip[ordered], return_index=True)
    return dict(zip(names.tolist(), np.split(ordered, first[1:]), strict=True))


def trust_of(kind: str) -> NDArray[np.float32]:
    """How much each of the 58 named dimensions of a kind of data counts, in scaled units."""
    parts = [np.full(DIMS[f], _TRUST[kind][f] * _SCALE[f]) for f in FACTORS]
    return np.concatenate(parts).astype(np.float32)


def lip_weights(cache: FrameCache) -> Tensor:
    """Weight (16,) of each lip dimension: how far one unit moves the lips, mean 1, floor .1."""
    spread = np.sqrt((cache.face.basis[: DIMS["lip"], 112:] ** 2).mean((1, 2)))
    weight = np.maximum(spread / spread.max() * 2, 0.1)
    return torch.from_numpy(weight.astype(np.float32))


def losses(
    out: dict[str, Tensor], batch: dict[str, Tensor], lip_weight: Tensor
) -> dict[str, Tensor]:
    """Smooth L1 per factor in scaled units, L1 of the landmarks with eyes and lips doubled.

    Plain L1 would answer with the median, which for blinks and smiles is "never".
    """
    result: dict[str, Tensor] = {}
    for factor in FACTORS:
        part = FACTOR_SLICES[factor]
        error = (out[factor] - batch["code"][:, part]) * batch["trust"][:, part]
        error = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none") * 2
        result[factor] = (error * lip_weight).mean() if factor == "lip" else error.mean()
    error = out["landmarks"] - batch["landmarks"]
    result["landmarks"] = (error.abs().mean() + error[:, 56:].abs().mean()) * 25
    # Irises, lids, brows and lips against their own surroundings: gaze and blinks are
    # movements of one or two pixels that the place of the face would drown.
    local = []
    for parts in _LOCAL:
        points = torch.cat([error[:, GROUPS[name]] for name in parts], 1)
        local.append((points - points.mean(1, keepdim=True)).abs().mean())
    result["local"] = torch.stack(local).sum() * 25
    return result


def motion_between(out: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """L1 of the change of pose, eye and expression between the moments of a pair, weighted.

    Rows 2i and 2i + 1 are a pair. A head's own error of pitch is larger than most nods; what
    is left of it after the difference is what a viewer sees.
    """
    total = out["pose"].new_zeros(())
    for factor, weight in _CHANGE.items():
        error = out[factor] - batch["code"][:, FACTOR_SLICES[factor]]
        total = total + weight * error.view(-1, 2, DIMS[factor]).diff(dim=1).abs().mean()
    return total


@torch.no_grad()
def evaluate(net: MotionEncoder, cache: FrameCache, rows: NDArray[np.int64]) -> dict[str, float]:
    """Landmark error in pixels of 256 and correlations with the labels, by kind."""
    net.eval()
    still = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    rng = np.random.default_rng(0)
    result: dict[str, float] = {}
    for kind in KINDS:
        held = rows[cache.kind[rows] == kind]
        if not len(held):
            continue
        mine = rng.choice(held, 300)
        faces, landmarks, codes = zip(
            *[augmented(cache, int(r), still, flip=False, out=WHOLE, size=SIZE) for r in mine],
            strict=True,
        )
        out = net(to_unit(torch.from_numpy(np.stack(faces))) * 2 - 1)
        error = np.linalg.norm(out["landmarks"].numpy() - np.stack(landmarks), axis=-1).mean() * 256
        result[f"{kind}/landmark_px"] = float(error)
        truth = np.stack(codes)
        if kind == "still":
            continue
        for name, (factor, d) in _WATCHED.items():
            a = out[factor][:, d].numpy()
            b = truth[:, FACTOR_SLICES[factor].start + d]
            result[f"{kind}/{name}_r"] = float(np.corrcoef(a, b)[0, 1])
    net.train()
    return {k: round(v, 3) for k, v in result.items()}


def _adopt(net: MotionEncoder, path: Path) -> None:
    """Begin from the eye reader of `eye_stage`, or from what fits of another run of this stage."""
    saved = torch.load(path, weights_only=True)
    reader = saved.get("reader", {})
    known = saved.get("net", {f"eye.{k}": v for k, v in reader.items()})
    own = net.state_dict()
    fitting = {k: v for k, v in known.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict({**own, **fitting})


def train(cache_dir: Path, out: Path, steps: int = 6000, batch: int = 32, threads: int = 2,
          start: Path | None = None, lr: float = 1.2e-3, deadline: float | None = None,
          ) -> None:  # fmt: skip
    """Train E_mot; writes `out` (.pt) every 250 steps and resumes from it.

    Raises OutOfTime once `deadline` (monotonic clock) has passed; the state is saved.
    """
    torch.set_num_threads(threads)
    recipe = MotionRecipe(steps=steps, batch=batch, lr=lr)
    torch.manual_seed(recipe.seed)
    cache = FrameCache(cache_dir)
    rows = cache.split()
    net = MotionEncoder(ModelConfig())
    net.mean_landmarks.copy_(torch.from_numpy(cache.landmarks[rows.train].mean(0)))
    optimiser = torch.optim.AdamW(net.parameters(), recipe.lr, (0.9, 0.99), weight_decay=1e-3)
    parts: Parts = {"net": net, "optimiser": optimiser}
    if start is not None and not out.exists():
        _adopt(net, start)
    step = int(resume(out, parts)["step"])
    weight = lip_weights(cache)
    make = sampler(cache, rows.train, recipe)
    stream = batches(make, size=recipe.batch // 2, seed=recipe.seed, start=step)
    report = Report(every=50)
    while step < recipe.steps:
        data = {name: part.flatten(0, 1) for name, part in next(stream).items()}
        set_rate(optimiser, cosine(step, peak=recipe.lr, steps=recipe.steps, warm_up=200))
        with torch.autocast("cpu", torch.bfloat16):
            read = net(to_unit(data["face"]) * 2 - 1)
        out_of = {k: v.float() for k, v in read.items()}
        terms = {**losses(out_of, data, weight), "motion": motion_between(out_of, data)}
        descend(optimiser, terms, net.parameters(), limit=5.0)
        step += 1
        report.add(step, terms)
        late = deadline is not None and time.monotonic() > deadline
        if step % 250 == 0 or step == recipe.steps or late:
            save(out, parts, step=step)
        check_time(deadline, "stage prior, E_mot,", step, recipe.steps)
        if step % 500 == 0:
            print(json.dumps(evaluate(net, cache, rows.test)), flush=True)


if __name__ == "__main__":
    import typer

    typer.run(train)
