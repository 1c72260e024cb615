"""Train E_mot: codes and landmarks from one face crop.

Synthetic clips give every code exactly; GRID gives lips, lids and poses of real video
(fitted); stills give landmarks and poses of many faces. Dimensions are weighted by how far
they move the face, and a geometric loss compares where the predicted codes put the
landmarks, which is what the generator will do with them.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from models.codes import DIMS, FACTOR_SLICES, FACTORS
from models.config import ModelConfig
from models.face import GROUPS
from models.networks.motion import MotionEncoder
from trainer.cache import SIZE
from trainer.frames import FrameCache, augmented, degrade, random_similarity, rarity
from trainer.loader import Sample, batches, to_unit


@dataclass(frozen=True, slots=True)
class MotionRecipe:
    """Everything that decides the run; share of kinds is synth, grid, stills."""

    batch: int = 32
    steps: int = 6000
    lr: float = 1.2e-3
    share: tuple[float, float, float] = (0.6, 0.25, 0.15)
    seed: int = 1


#: Which factors a kind of data teaches, and how much.
_TRUST = {
    "synth": {"lip": 1.0, "pose": 1.0, "eye": 1.0, "exp": 1.0},
    "grid": {"lip": 1.0, "pose": 1.0, "eye": 1.0, "exp": 0.2},
    "still": {"lip": 0.0, "pose": 1.0, "eye": 0.0, "exp": 0.0},
}
_LOCAL = (("eye_left", "iris_left"), ("eye_right", "iris_right"), ("lips_outer", "lips_inner"),
          ("brow_left", "eye_left"), ("brow_right", "eye_right"))  # fmt: skip
#: One unit of these scaled codes is an error that a person would see.
_SCALE = {"lip": 1.5, "pose": 10.0, "eye": 4.0, "exp": 4.0}


def sampler(cache: FrameCache, rows: np.ndarray, recipe: MotionRecipe) -> object:
    """A function rng -> one augmented sample; persons are drawn before frames."""
    by_kind = {}
    for kind in ("synth", "grid", "still"):
        mine = rows[cache.kind[rows] == kind]
        by_kind[kind] = mine
    misc = by_kind["grid"][cache.person[by_kind["grid"]] != "s1"]
    whole = np.array([[SIZE, 0, 0], [0, SIZE, 0]], np.float32)

    rare = rarity(cache)
    totals: dict[int, np.ndarray] = {}

    def _running(pool: np.ndarray) -> np.ndarray:
        if id(pool) not in totals:
            sums = np.cumsum(rare[pool])
            totals[id(pool)] = sums / sums[-1]
        return totals[id(pool)]

    def make(rng: np.random.Generator) -> Sample:
        kind = str(rng.choice(["synth", "grid", "still"], p=recipe.share))
        pool = misc if kind == "grid" and len(misc) and rng.random() < 0.2 else by_kind[kind]
        row = int(pool[np.searchsorted(_running(pool), rng.random())])
        move = random_similarity(rng, zoom=0.08, angle=0.08, shift=0.025)
        pixels, landmarks, code = augmented(
            cache, row, move, flip=rng.random() < 0.5, out=whole, size=SIZE
        )
        trust = np.concatenate(
            [np.full(DIMS[f], _TRUST[kind][f] * _SCALE[f]) for f in FACTORS]
        )
        return {
            "face": degrade(rng, pixels),
            "landmarks": landmarks,
            "code": code,
            "trust": trust.astype(np.float32),
        }

    return make


def lip_weights(cache: FrameCache) -> Tensor:
    """Weight (16,) of each lip dimension: how far one unit moves the lips, mean 1, floor .1."""
    spread = np.sqrt((cache.face.basis[: DIMS["lip"], 112:] ** 2).mean((1, 2)))
    weight = np.maximum(spread / spread.max() * 2, 0.1)
    return torch.from_numpy(weight.astype(np.float32))


def losses(out: dict[str, Tensor], batch: dict[str, Tensor], lip_weight: Tensor) -> dict[str, Tensor]:
    """Smooth L1 per factor in scaled units, L1 of the landmarks with eyes and lips doubled.

    Plain L1 would answer with the median, which for blinks and smiles is "never".
    """
    result = {}
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


@torch.no_grad()
def evaluate(net: MotionEncoder, cache: FrameCache, rows: np.ndarray) -> dict[str, float]:
    """Landmark error in pixels of 256 and correlations with the labels, by kind."""
    net.eval()
    whole = np.array([[SIZE, 0, 0], [0, SIZE, 0]], np.float32)
    still = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    rng = np.random.default_rng(0)
    result: dict[str, float] = {}
    for kind in ("synth", "grid", "still"):
        mine = rng.choice(rows[cache.kind[rows] == kind], 300)
        faces, landmarks, codes = zip(
            *[augmented(cache, int(r), still, flip=False, out=whole, size=SIZE) for r in mine],
            strict=True,
        )
        out = net(to_unit(torch.from_numpy(np.stack(faces))) * 2 - 1)
        error = np.linalg.norm(out["landmarks"].numpy() - np.stack(landmarks), axis=-1).mean() * 256
        result[f"{kind}/landmark_px"] = float(error)
        truth = np.stack(codes)
        if kind == "still":
            continue
        dims = {"jaw0": ("lip", 0), "jaw1": ("lip", 1), "yaw": ("pose", 0), "pitch": ("pose", 1),
                "roll": ("pose", 2), "blink": ("eye", 0), "gaze_x": ("eye", 2),
                "gaze_y": ("eye", 3), "smile": ("exp", 12), "brow": ("exp", 2)}  # fmt: skip
        for name, (factor, d) in dims.items():
            a = out[factor][:, d].numpy()
            b = truth[:, FACTOR_SLICES[factor].start + d]
            result[f"{kind}/{name}_r"] = float(np.corrcoef(a, b)[0, 1])
    net.train()
    return {k: round(v, 3) for k, v in result.items()}


def train(cache_dir: Path, out: Path, steps: int = 6000, batch: int = 32, threads: int = 2,
          start: Path | None = None) -> None:  # fmt: skip
    """Train E_mot; writes `out` (.pt) every 250 steps and resumes from it."""
    torch.set_num_threads(threads)
    recipe = MotionRecipe(steps=steps, batch=batch)
    torch.manual_seed(recipe.seed)
    cache = FrameCache(cache_dir)
    rows = cache.split()
    net = MotionEncoder(ModelConfig())
    net.mean_landmarks.copy_(torch.from_numpy(cache.landmarks[rows.train].mean(0)))
    optimiser = torch.optim.AdamW(net.parameters(), recipe.lr, (0.9, 0.99), weight_decay=1e-3)
    step = 0
    if out.exists():
        state = torch.load(out, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    elif start is not None:
        known = torch.load(start, weights_only=True)["net"]
        own = net.state_dict()
        fitting = {k: v for k, v in known.items() if k in own and own[k].shape == v.shape}
        net.load_state_dict({**own, **fitting})
    schedule = lambda s: recipe.lr * min(1, (s + 1) / 200) * 0.5 * (1 + np.cos(np.pi * min(1, s / recipe.steps)))  # noqa: E731
    weight = lip_weights(cache)
    stream = batches(sampler(cache, rows.train, recipe), size=recipe.batch, seed=recipe.seed, start=step)
    average: dict[str, float] = {}
    began = time.monotonic()
    while step < recipe.steps:
        data = next(stream)
        for group in optimiser.param_groups:
            group["lr"] = float(schedule(step))
        with torch.autocast("cpu", torch.bfloat16):
            read = net(to_unit(data["face"]) * 2 - 1)
        parts = losses({k: v.float() for k, v in read.items()}, data, weight)
        loss = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        step += 1
        for k, v in parts.items():
            average[k] = 0.98 * average.get(k, v.item()) + 0.02 * v.item()
        if step % 50 == 0:
            speed = (time.monotonic() - began) / 50
            began = time.monotonic()
            print(step, f"{speed:.2f} s", {k: round(v, 3) for k, v in average.items()}, flush=True)
        if step % 250 == 0 or step == recipe.steps:
            torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, out)
        if step % 500 == 0:
            print(json.dumps(evaluate(net, cache, rows.test)), flush=True)


if __name__ == "__main__":
    typer.run(train)
