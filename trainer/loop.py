"""What the loops of all stages share: learning rate, one step downhill, log line, saved state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: What a stage saves by name: networks and its optimiser.
Parts = Mapping[str, nn.Module | Optimizer]


def cosine(step: int, *, peak: float, steps: int, warm_up: int, floor: float = 0.0) -> float:
    """Learning rate of `step` (from 0): linear warm-up times half a cosine from 1 to `floor`.

    Past `steps` it stays at `floor * peak`.
    """
    fall = 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    return peak * min(1, (step + 1) / warm_up) * (fall * (1 - floor) + floor)


def set_rate(optimiser: Optimizer, rate: float) -> None:
    """Give every parameter group `rate`, times its own `scale` where it has one."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def descend(
    optimiser: Optimizer,
    terms: Mapping[str, Tensor],
    parameters: Iterable[Tensor],
    *,
    limit: float,
) -> None:
    """One step of the optimiser down the sum of `terms`, the gradient's norm cut at `limit`.

    Raises:
        FloatingPointError: a term is infinite or not a number; nothing was changed.
    """
    loss = torch.stack(list(terms.values())).sum()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"loss is { {k: v.item() for k, v in terms.items()} }")
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(parameters, limit)
    optimiser.step()


class OutOfTime(Exception):  # noqa: N818 - no error: the run goes on when it is called again
    """The wall-clock limit came; everything is saved."""


def check_time(deadline: float | None, what: str, step: int, steps: int) -> None:
    """Raises OutOfTime when the monotonic clock has passed `deadline` (s; None: never)."""
    if deadline is not None and time.monotonic() > deadline:
        raise OutOfTime(f"{what} stands at step {step} of {steps}")


class Report:
    """Running means of the losses, printed with the seconds per step every `every` steps."""

    def __init__(self, *, every: int, keep: float = 0.98, digits: int = 3) -> None:
        self.every, self.keep, self.digits = every, keep, digits
        self.means: dict[str, float] = {}
        self._began = time.monotonic()

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Take the losses of the step that ended as number `step` (from 1)."""
        for name, term in terms.items():
            value = term.item()
            self.means[name] = self.keep * self.means.get(name, value) + (1 - self.keep) * value
        if step % self.every == 0:
            now = time.monotonic()
            speed, self._began = (now - self._began) / self.every, now
            shown = {name: round(mean, self.digits) for name, mean in self.means.items()}
            print(step, f"{speed:.2f} s", shown, flush=True)


def save(path: Path, parts: Parts, **extra: Any) -> None:
    """Write the states of `parts` and `extra` (tensors and plain values) into one file."""
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, **extra}, path)


def resume(path: Path, parts: Parts) -> dict[str, Any]:
    """Load `parts` from a file of `save` and return what else it holds; no file: step 0."""
    if not path.exists():
        return {"step": 0}
    state: dict[str, Any] = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state.pop(name))
    return state
