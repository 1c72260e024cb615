"""One stage's run: batches in order, guarded steps, curves, and a file to resume from exactly.

A stage reads `for step, batch in run.steps(...)`, computes its terms, calls `run.descend` and
`run.log`. What it passed to `run.track` (networks, optimisers, averages, memory banks) is
saved together with the step and the state of the random generators, so that a resumed run
takes the very steps the uninterrupted one would have taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.loader import Make, batches
from trainer.loop import check_time
from trainer.stages import parallel

Batch = dict[str, Tensor]
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stateful(Protocol):
    """Anything that can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Inverse of `state_dict`."""


class Average:
    """Exponential moving average of some networks' parameters; follows fast at first."""

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self.decay, self.count = decay, 0
        self._networks = networks
        self.values = {k: v.detach().clone() for k, v in self._parameters()}

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, net in self._networks.items():
            for key, value in net.named_parameters():
                yield f"{name}.{key}", value

    @torch.no_grad()
    def follow(self) -> None:
        """Take one step towards the present weights."""
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 19))
        for key, value in self._parameters():
            self.values[key].lerp_(value.detach(), 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Overwrite the networks with their average."""
        for key, value in self._parameters():
            value.copy_(self.values[key])

    def state_dict(self) -> dict[str, Any]:
        """Values and how often they moved."""
        return {"values": self.values, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.count = int(state["count"])
        for key, value in state["values"].items():
            self.values[key].copy_(value)


class Run:
    """Folder, device and precision of one stage."""

    def __init__(
        self, folder: Path, name: str, *, device: torch.device, precision: str = "bf16",
        seed: int = 0, save_every: int = 250, picture_every: int = 500, log_every: int = 10,
        threads: int = 2,        deadline: float | None = None, show: bool = True, repeat: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.name, self.device = folder, name, device
        self.seed, self.save_every, self.picture_every = seed, save_every, picture_every
        self.threads, self.deadline, self.show = threads, deadline, show
        self.log_every, self.repeat = log_every, repeat
        self.dtype = _PRECISIONS[precision]
        self.step = 0
        self.about: dict[str, Any] = {}
        self._parts: dict[str, Stateful] = {}
        self._batch: Batch = {}
        self._writer: Any = None
        self._no_writer = False
        self._bar: Any = None
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        """The file that this stage saves to and resumes from."""
        return self.folder / f"stage-{self.name}.pt"

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return parallel.rank() == 0

    def track(self, **parts: Stateful) -> None:
        """Name what is saved; loads it at once where a file of this stage exists."""
        self._parts |= parts
        self._parts.setdefault("scaler", self._scaler)
        if not self.path.exists():
            modules = [p for p in parts.values() if isinstance(p, nn.Module)]
            parallel.same_everywhere(modules)
            return
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.step = int(state["step"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def save(self) -> None:
        """Write the file; the old one is replaced only when the new one is whole."""
        if not self.first:
            return
        state: dict[str, Any] = {k: p.state_dict() for k, p in self._parts.items()}
        state |= {"step": self.step, "about": self.about, "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.path)

    def steps(self, make: Make, *, batch: int, steps: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch on the device) from where the run stands until `steps` are done.

        Saves every `save_every` steps and at the end, also when the loop is interrupted between
        two steps.

        Raises:
            OutOfTime: the deadline has passed; the state is saved.
        """
        stream = batches(
            make, size=batch, seed=self.seed, start=0 if self.repeat else self.step,
            threads=self.threads, part=(parallel.rank(), parallel.world()),
        )  # fmt: skip
        again = [next(stream) for _ in range(self.repeat)]
        if self.show and self.first:
            self._bar = _progress(f"stage {self.name}", steps, self.step)
        try:
            while self.step < steps:
                data = again[self.step % self.repeat] if again else next(stream)
                self._batch = {k: v.to(self.device, non_blocking=True) for k, v in data.items()}
                yield self.step, self._batch
                self.step += 1
                if self._bar is not None:
                    self._bar.update()
                if self.step % self.save_every == 0 or self.step == steps:
                    self.save()
                if self.deadline is not None and time.monotonic() > self.deadline:
                    self.save()
                    check_time(self.deadline, f"stage {self.name}", self.step, steps)
        finally:
            stream.close()  # type: ignore[attr-defined] # a generator: its threads end here
            if self._bar is not None:
                self._bar.close()
            if self._writer is not None:
                self._writer.close()

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as the recipe says."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def descend(
        self, optimiser: Optimizer, terms: Mapping[str, Tensor], parameters: Iterable[Tensor],
        *, limit: float,
    ) -> None:  # fmt: skip
        """One step down the sum of `terms`; gradients averaged over processes, cut at `limit`.

        Raises:
            FloatingPointError: a term is not finite; the batch is saved beside the run and nothing
                was changed.
        """
        if not terms:
            return
        parameters = list(parameters)
        loss = torch.stack([t.float() for t in terms.values()]).sum()
        if not torch.isfinite(loss):
            path = self.folder / f"broken-{self.name}-{self.step}-{parallel.rank()}.pt"
            torch.save({"batch": self._batch, "step": self.step}, path)
            found = {k: v.item() for k, v in terms.items()}
            raise FloatingPointError(f"loss is {found}; its batch is {path.name} in the run folder")
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.unscale_(optimiser)
        parallel.share_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, limit)
        self._scaler.step(optimiser)
        self._scaler.update()

    def log(self, terms: Mapping[str, Tensor]) -> None:
        """Note this step's losses: progress bar, TensorBoard, a line of `curve-*.jsonl`."""
        if self.step % self.log_every:
            return
        means = parallel.mean(torch.stack([v.detach().float() for v in terms.values()]))
        values = dict(zip(terms, means.tolist(), strict=True))
        if not self.first:
            return
        if self._bar is not None:
            shown = {k: f"{v:.3f}" for k, v in list(values.items())[:6]}
            self._bar.set_postfix(shown, refresh=False)
        with (self.folder / f"curve-{self.name}.jsonl").open("a") as file:
            line = {"step": self.step, **{k: round(v, 6) for k, v in values.items()}}
            file.write(json.dumps(line) + "\n")
        writer = self._tensorboard()
        if writer is not None:
            for key, value in values.items():
                writer.add_scalar(f"{self.name}/{key}", value, self.step)

    def pictures(self, name: str, columns: list[Tensor]) -> None:
        """Show columns of pictures (B, 3, H, W) in [-1, 1] side by side, now and then."""
        if not self.first or self.step % self.picture_every:
            return
        shown = [c[:4].detach().float().clamp(-1, 1).cpu() for c in columns]
        grid = torch.cat([torch.cat(list(c), 1) for c in shown], 2)
        writer = self._tensorboard()
        if writer is not None:
            writer.add_image(f"{self.name}/{name}", (grid + 1) / 2, self.step)

    def _tensorboard(self) -> Any:
        """TensorBoard's writer, opened when first needed; None, said once, where it is missing."""
        if self._writer is None and not self._no_writer:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                print("tensorboard is not installed: curves go to curve-*.jsonl only")
                self._no_writer = True
                return None
            self._writer = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=self.step or None
            )
        return self._writer


def _progress(title: str, total: int, done: int) -> Any:
    """A progress bar, or None where there is none to be had: a bare machine only has torch."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, initial=done, desc=title, mininterval=2)


def set_frozen(*modules: nn.Module) -> None:
    """No gradients, and evaluation mode: batch norms neither use nor change batch statistics."""
    for module in modules:
        module.requires_grad_(False).eval()


def set_trained(*modules: nn.Module) -> list[nn.Parameter]:
    """Gradients and training mode; returns all parameters."""
    for module in modules:
        module.requires_grad_(True).train()
        parallel.share_batch_norms(module)
    return [p for module in modules for p in module.parameters()]
