"""Fine-tuning of the generator's decoder and E_app's last layers on one person's frames.

What geometry knows (landmarks, kernel flow, codes) stays as it is: a minute of one face
teaches how this mouth, these teeth and lids look, not how heads move. A pull towards the
base weights, and batches of other people where a cache is at hand (replay), keep the rest
of what the base can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.networks.generator import AppearanceEncoder, Generator
from trainer.frames import SIZE, WHOLE, FrameCache, augmented, random_similarity, rarity
from trainer.generator_stage import GeneratorRecipe, GeneratorStep, region_weights, sampler
from trainer.loader import Make, Sample, batches
from trainer.loop import Parts, cosine, descend, resume, save, set_rate

Rows = NDArray[np.int64]
#: Parts of the generator that are tuned, and of E_app (its adapters).
DECODER = ("decode_in", "decode_res", "to128", "at128", "to256")
ADAPTERS = ("to64.2",)


@dataclass(frozen=True, slots=True)
class TuningRecipe:
    """Everything that decides a run."""

    steps: int = 300
    sources: int = 2
    driving: int = 3
    lr: float = 3e-4
    adapter_scale: float = 0.3
    """E_app's part learns slower."""
    anchor: float = 0.05
    """Weight of the mean squared distance from the base, in units of each tensor's own spread."""
    portrait_share: float = 0.5
    """How often the portrait that will be shown is the source, rather than any frame."""
    replay_every: int = 3
    """Every n-th batch is of other people, if there is a cache of them."""
    seed: int = 11

    def generator(self) -> GeneratorRecipe:
        """Losses and windows of the generator stage."""
        return GeneratorRecipe(
            sources=self.sources, driving=self.driving, steps=self.steps, lr=self.lr,
            code_noise=0.02, seed=self.seed,
        )  # fmt: skip


def own_sampler(cache: FrameCache, rows: Rows, portrait: int, recipe: TuningRecipe) -> Make:
    """A function rng -> the person once as source, with its driving frames.

    `portrait` is the row of the frame that will be the avatar's picture.
    """
    weight = rarity(cache)[rows]
    likely = weight / weight.sum()

    def make(rng: np.random.Generator) -> Sample:
        source = portrait if rng.random() < recipe.portrait_share else int(rng.choice(rows))
        driving = rng.choice(rows, recipe.driving, replace=len(rows) < recipe.driving, p=likely)
        move = random_similarity(rng, zoom=0.04, angle=0.03, shift=0.02)
        gain = rng.uniform(0.93, 1.06, 3) * rng.uniform(0.9, 1.05)
        table = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-6, 6), 0, 255)
        pixels, landmarks, codes, regions = [], [], [], []
        for row in (source, *driving):
            image, points, code = augmented(cache, int(row), move, flip=False, out=WHOLE, size=SIZE)
            pixels.append(np.asarray(cv2.LUT(image, table.astype(np.uint8)[None]), np.uint8))
            landmarks.append(points)
            codes.append(code)
            regions.append(region_weights(points, "real"))
        return {
            "pixels": np.stack(pixels),
            "landmarks": np.stack(landmarks),
            "code": np.stack(codes),
            "region": np.stack(regions),
            "shape": cache.shape[source].astype(np.float32),
        }

    return make


def tuned_parts(
    encoder: AppearanceEncoder, net: Generator
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the decoder and of E_app's adapters; everything else is frozen."""
    for parameter in (*encoder.parameters(), *net.parameters()):
        parameter.requires_grad_(False)
    decoder = [p for name in DECODER for p in net.get_submodule(name).parameters()]
    adapters = [p for name in ADAPTERS for p in encoder.get_submodule(name).parameters()]
    for parameter in (*decoder, *adapters):
        parameter.requires_grad_(True)
    return decoder, adapters


class Anchor:
    """Mean squared distance of parameters from where they began, in units of their spread."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._start = [p.detach().clone() for p in parameters]
        self._spread = [float(p.detach().pow(2).mean().sqrt()) + 1e-4 for p in parameters]

    def __call__(self) -> Tensor:
        """Scalar; 0 at the beginning."""
        parts = zip(self._parameters, self._start, self._spread, strict=True)
        return torch.stack([((p - s) / k).pow(2).mean() for p, s, k in parts]).mean()

    @property
    def start(self) -> list[Tensor]:
        """The base's own values."""
        return self._start


def tune(
    encoder: AppearanceEncoder,
    net: Generator,
    own: Make,
    state_file: Path,
    recipe: TuningRecipe,
    replay: Make | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> list[dict[str, float]]:
    """Fine-tune in place (BN statistics stay); saves every 25 steps and resumes from there.

    Returns the losses of every step of this run. Raises FloatingPointError on a bad loss.
    """
    encoder.eval()
    net.eval()
    decoder, adapters = tuned_parts(encoder, net)
    anchor = Anchor([*decoder, *adapters])
    groups = [{"params": decoder, "scale": 1.0},
              {"params": adapters, "scale": recipe.adapter_scale}]  # fmt: skip
    optimiser = torch.optim.Adam(groups, recipe.lr, (0.9, 0.99))
    parts: Parts = {"encoder": encoder, "net": net, "optimiser": optimiser}
    step = int(resume(state_file, parts)["step"])
    one = GeneratorStep(recipe.generator(), encoder, net)
    streams = {"own": _stream(own, recipe, step)}
    if replay is not None:
        streams["replay"] = _stream(replay, recipe, step)
    history: list[dict[str, float]] = []
    while step < recipe.steps:
        rate = cosine(step, peak=recipe.lr, steps=recipe.steps, warm_up=20, floor=0.05)
        set_rate(optimiser, rate)
        others = replay is not None and step % recipe.replay_every == recipe.replay_every - 1
        torch.manual_seed(recipe.seed * 100_003 + step)
        batch = next(streams["replay" if others else "own"])
        terms = one(batch, np.random.default_rng((recipe.seed, step, 1)))
        terms["anchor"] = recipe.anchor * anchor()
        descend(optimiser, terms, [*decoder, *adapters], limit=1.0)
        step += 1
        losses = {k: v.item() for k, v in terms.items()} | {"replay": float(others)}
        history.append(losses)
        on_step(step, losses)
        if step % 25 == 0 or step == recipe.steps:
            save(state_file, parts, step=step)
    return history


def _stream(make: Make, recipe: TuningRecipe, start: int) -> Iterator[dict[str, Tensor]]:
    return batches(make, size=recipe.sources, seed=recipe.seed, start=start, ahead=2, threads=1)


def replay_sampler(cache_dir: Path, recipe: TuningRecipe) -> Make:
    """Other people's frames, from the training part of a cache."""
    cache = FrameCache(cache_dir)
    return sampler(cache, cache.split().train, recipe.generator())
