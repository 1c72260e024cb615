"""Work of torch that is recorded once and replayed; and networks that run so on host arrays.

On a card a CUDA graph per batch size, with pinned memory on both ends; with `device="cpu"` the
same code runs eagerly, which is how it is tested without a card. All graphs of an engine share
one pool of memory: what a graph leaves behind is copied to the host before another one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.codes import Array
from models.networks import Exported
from models.runtime.device_network import padded


@dataclass(frozen=True)
class Place:
    """A device and the memory pool of its graphs (None on the CPU)."""

    device: torch.device
    pool: Any = None

    @classmethod
    def on(cls, device: torch.device) -> Place:
        """With a pool of its own."""
        return cls(device, torch.cuda.graph_pool_handle() if device.type == "cuda" else None)

    def staged(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros in host memory that copies to and from the device need not wait for."""
        return torch.zeros(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def wait(self) -> None:
        """Block until everything is done that was started."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


class Recorded:
    """A function of fixed tensors: a CUDA graph on a card, called again and again elsewhere."""

    def __init__(self, work: Callable[[], tuple[Tensor, ...]], place: Place) -> None:
        self._work, self._graph = work, None
        device = place.device
        if device.type == "cuda":
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(3):
                    work()
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=place.pool, capture_error_mode="thread_local"):
                self._outputs = work()

    def run(self) -> tuple[Tensor, ...]:
        """Outputs; on a card always the same tensors, overwritten by the next run of any graph."""
        if self._graph is None:
            return self._work()
        self._graph.replay()
        return self._outputs


@dataclass(frozen=True)
class _Plan:
    """One batch size of a network: inputs on both sides, the recording, outputs on the host."""

    fixed: dict[str, Tensor]
    staged: dict[str, Tensor]
    recorded: Recorded
    found: dict[str, Tensor]


class BatchRunner:
    """One network on arrays, recorded per batch size when first needed."""

    def __init__(self, net: Exported, place: Place) -> None:
        self._net, self._place = net, place
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    def run(self, inputs: Mapping[str, Array | Tensor]) -> dict[str, Array]:
        """Float32 arrays, or tensors on the device, with a batch axis -> named outputs, float32."""
        count = len(inputs[self._net.inputs[0]])
        shapes = tuple(tuple(inputs[n].shape[1:]) for n in self._net.inputs)
        plan = self._plan(padded(count), shapes)
        for name, fixed in plan.fixed.items():
            given = inputs[name]
            if isinstance(given, Tensor):
                fixed[:count].copy_(given)
            else:
                np.copyto(plan.staged[name].numpy()[:count], given)
                fixed[:count].copy_(plan.staged[name][:count], non_blocking=True)
        outputs = plan.recorded.run()
        for found, output in zip(plan.found.values(), outputs, strict=True):
            found[:count].copy_(output[:count], non_blocking=True)
        self._place.wait()
        return {n: found[:count].numpy().copy() for n, found in plan.found.items()}

    def _plan(self, batch: int, shapes: tuple[tuple[int, ...], ...]) -> _Plan:
        if (batch, shapes) not in self._plans:
            sizes = {n: (batch, *s) for n, s in zip(self._net.inputs, shapes, strict=True)}
            fixed = {n: torch.zeros(s, device=self._place.device) for n, s in sizes.items()}
            staged = {n: self._place.staged(s, torch.float32) for n, s in sizes.items()}

            def work() -> tuple[Tensor, ...]:
                return tuple(output.float() for output in self._net(*fixed.values()))

            recorded = Recorded(work, self._place)
            found = {
                n: self._place.staged(tuple(output.shape), torch.float32)
                for n, output in zip(self._net.outputs, recorded.run(), strict=True)
            }
            self._plans[batch, shapes] = _Plan(fixed, staged, recorded, found)
        return self._plans[batch, shapes]
