"""Teach the eye reader of E_mot on eye patches alone, before the joint stage.

An eye patch costs a fiftieth of a face, so lids and gaze see hundreds of thousands of
samples while the whole face would see ten thousand. Frames are flipped at random, so the
image-left patch is both eyes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.codes import FACTOR_SLICES
from models.face import GROUPS
from models.networks.motion import LEFT_EYE, EyeReader
from trainer.frames import (
    KINDS,
    SIZE,
    FrameCache,
    Pool,
    augmented,
    degrade,
    random_similarity,
    rarity,
    shares,
)
from trainer.loader import Make, Sample, batches, to_unit
from trainer.loop import Parts, Report, check_time, cosine, descend, resume, save, set_rate

_POINTS = np.r_[GROUPS["eye_left"], GROUPS["iris_left"]]
_DIMS = np.array([0, 2, 3, 4]) + FACTOR_SLICES["eye"].start
LR = 3e-3
TARGETS = len(_DIMS) + 2 * len(_POINTS)


def sampler(cache: FrameCache, rows: NDArray[np.int64], augment: bool = True) -> Make:
    """A function rng -> eye patch, closure, gaze x and y, widening, 21 points, and trust."""
    top, left, size, _ = LEFT_EYE
    cut = np.array([[SIZE, 0, -left], [0, SIZE, -top]], np.float32)
    weight = rarity(cache)
    pools = {kind: Pool.weighted(rows[cache.kind[rows] == kind], weight) for kind in KINDS}
    share = shares(cache, rows, (0.65, 0.15, 0.2))

    def make(rng: np.random.Generator) -> Sample:
        kind = str(rng.choice(KINDS, p=share))
        row = pools[kind].draw(rng)
        if augment:
            move = random_similarity(rng, zoom=0.1, angle=0.1, shift=0.02)
        else:
            move = np.eye(2, 3, dtype=np.float32)
        patch, points, code = augmented(
            cache, row, move, flip=augment and rng.random() < 0.5, out=cut, size=size
        )
        local = (points[_POINTS] * SIZE - (left + size / 2, top + size / 2)) / 16
        target = np.concatenate([code[_DIMS], local.reshape(-1)]).astype(np.float32)
        trust = np.ones(TARGETS, np.float32)
        trust[: len(_DIMS)] = {"synth": 1.0, "grid": 0.5, "still": 0.0}[kind]
        return {"eye": degrade(rng, patch) if augment else patch, "target": target, "trust": trust}

    return make


def centred(values: Tensor) -> Tensor:
    """Split off the iris centre relative to the lids: (B, TARGETS) -> (B, 2)."""
    points = values[:, len(_DIMS) :].view(len(values), -1, 2)
    return points[:, 16:].mean(1) - points[:, :16].mean(1)


@torch.no_grad()
def evaluate(net: nn.Module, test: dict[str, Tensor]) -> dict[str, float]:
    """Correlation of lids and gaze with the labels: exact ones where there are, else measured."""
    net.eval()
    read = net(to_unit(test["eye"]) * 2 - 1)
    net.train()
    known = test["trust"][:, 0] == test["trust"][:, 0].max()
    pairs = zip(read[known].T[:4].numpy(), test["target"][known].T[:4].numpy(), strict=True)
    names = ("blink", "gaze_x", "gaze_y", "wide")
    return {
        name: round(float(np.corrcoef(a, b)[0, 1]), 3)
        for name, (a, b) in zip(names, pairs, strict=True)
    }


def train(
    cache_dir: Path, out: Path, steps: int = 4000, batch: int = 96, deadline: float | None = None
) -> None:
    """Train; writes `out` every 500 steps and resumes from it, `reader` being what counts.

    Raises OutOfTime once `deadline` (monotonic clock) has passed; the state is saved.
    """
    torch.set_num_threads(1)
    torch.manual_seed(11)
    cache = FrameCache(cache_dir)
    split = cache.split()
    reader = EyeReader()
    net = nn.Sequential(reader, nn.Linear(128, TARGETS))
    optimiser = torch.optim.AdamW(net.parameters(), LR, (0.9, 0.99), weight_decay=1e-3)
    parts: Parts = {"reader": reader, "whole": net, "optimiser": optimiser}
    begun = int(resume(out, parts)["step"])
    if begun >= steps:
        return
    stream = batches(sampler(cache, split.train), size=batch, seed=11, start=begun, threads=1)
    test = next(batches(sampler(cache, split.test, augment=False), size=600, seed=12))
    report = Report(every=100, digits=4)
    for step in range(begun + 1, steps + 1):
        data = next(stream)
        set_rate(optimiser, cosine(step - 1, peak=LR, steps=steps, warm_up=100))
        with torch.autocast("cpu", torch.bfloat16):
            read = net(to_unit(data["eye"]) * 2 - 1).float()
        error = (read - data["target"]) * data["trust"]
        codes = nn.functional.smooth_l1_loss(4 * error[:, :4], torch.zeros_like(error[:, :4]))
        gaze = (centred(read) - centred(data["target"])).abs().mean()
        points = error[:, 4:].abs().mean()
        terms = {"codes": codes, "points": 2 * points, "gaze": 4 * gaze}
        descend(optimiser, terms, net.parameters(), limit=5.0)
        report.add(step, terms)
        late = deadline is not None and time.monotonic() > deadline
        if step % 500 == 0 or step == steps or late:
            save(out, parts, step=step)
        check_time(deadline, "stage prior, the eye reader,", step, steps)
        if step % 500 == 0 or step == steps:
            print(json.dumps(evaluate(net, test)), flush=True)


if __name__ == "__main__":
    import typer

    typer.run(train)
