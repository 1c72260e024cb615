"""Optimisers and learning rates as a recipe names them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from models.networks.generator import Generator
from trainer.loop import cosine, set_rate
from trainer.recipes.config import Optim
from trainer.stages.system import AnyGenerator


def adam(parameters: Sequence[nn.Parameter], spec: Optim, lr: float | None = None) -> Optimizer:
    """Adam over the parameters that are trained."""
    mine = [p for p in parameters if p.requires_grad]
    return torch.optim.Adam(mine, lr or spec.lr, spec.betas, weight_decay=spec.weight_decay)


def picture_adam(generator: AnyGenerator, others: Sequence[nn.Parameter], spec: Optim) -> Optimizer:
    """Adam for a generator; the few weights of the flow's kernel learn eight times faster."""
    kernel = list(generator.kernel.parameters()) if isinstance(generator, Generator) else []
    slow = {id(p) for p in kernel}
    rest = [p for p in [*generator.parameters(), *others] if id(p) not in slow]
    groups = [{"params": rest, "scale": 1.0}]
    if kernel:
        groups.append({"params": kernel, "scale": 8.0})
    return torch.optim.Adam(groups, spec.lr, spec.betas, weight_decay=spec.weight_decay)


def rate(spec: Optim, step: int, steps: int, peak: float | None = None) -> float:
    """Learning rate of a step (from 0): published stairs, or a cosine; both warm up."""
    lr = peak or spec.lr
    if spec.fall == "cosine":
        return cosine(step, peak=lr, steps=steps, warm_up=spec.warm_up, floor=spec.floor)
    stairs: float = spec.decay ** (step // spec.decay_every)
    return lr * min(1.0, (step + 1) / spec.warm_up) * stairs


def schedule(optimiser: Optimizer, spec: Optim, step: int, steps: int) -> None:
    """Set this step's learning rate."""
    set_rate(optimiser, rate(spec, step, steps))
