"""Whole frames in torch: drawn, composited and converted as one graph per batch and output size.

A portrait's tensors stay on the device, in the batch slot that they were copied to last, so a
frame moves only motion codes up and finished pictures down, both through pinned memory.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.networks import Exported
from models.runtime.base import generator_inputs
from models.runtime.device_network import padded
from models.runtime.flavour import MAX_BATCH
from models.runtime.frames import Clock, FrameRequest, FrameResult, check_requests
from models.runtime.portrait_bank import DEFAULT_BUDGET_BYTES, assign
from models.runtime.torch_graph import Place, Recorded

DRIVING, SOURCE = "driving_code", "source"
#: RGB -> Y, U, V of BT.601 in limited range, for values 0 to 255 (ITU-R BT.601-7).
_BT601 = (
    (0.256788, 0.504129, 0.097906),
    (-0.148223, -0.290993, 0.439216),
    (0.439216, -0.367788, -0.071427),
)


def composite(
    source_BHWC: Tensor, flow_B2HW: Tensor, mask_B1HW: Tensor, rgb_BCHW: Tensor
) -> Tensor:
    """uint8 source (B, N, N, 3) and the generator's drawing -> RGB (B, 3, N, N), 0 to 255.

    The arithmetic of `models.composite.compose`, float32.
    """
    size = source_BHWC.shape[1]

    def grow(x: Tensor, mode: str) -> Tensor:
        return F.interpolate(x.float(), (size, size), mode=mode, align_corners=False)

    grid = grow(flow_B2HW, "bilinear").permute(0, 2, 3, 1) * 2 - 1
    source = source_BHWC.permute(0, 3, 1, 2).float()
    warped = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    mask = grow(mask_B1HW, "bilinear")
    drawn = grow(rgb_BCHW, "bicubic").clamp(0, 1) * 255
    return mask * warped + (1 - mask) * drawn


def i420(rgb_BCHW: Tensor) -> Tensor:
    """RGB (B, 3, N, N), 0 to 255 -> (B, N * 3 / 2, N) uint8, BT.601 limited range."""
    b, _, n, _ = rgb_BCHW.shape
    red, green, blue = rgb_BCHW.clamp(0, 255).unbind(1)
    y, u, v = (r * red + g * green + b_ * blue for r, g, b_ in _BT601)
    small = [F.avg_pool2d(c[:, None], 2).reshape(b, -1) + 128 for c in (u, v)]
    planes = torch.cat([y.reshape(b, -1) + 16, *small], 1)
    return (planes + 0.5).clamp(0, 255).to(torch.uint8).reshape(b, n * 3 // 2, n)


@dataclass
class _Resident:
    """A portrait's or a source's tensors on the device."""

    owner: object
    """Kept, so that its id stays its own."""
    serial: int
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass
class _Plan:
    """One batch and output size."""

    fixed: dict[str, Tensor]
    """Inputs on the device, by name, and the sources (B, N, N, 3) uint8."""
    codes: Tensor
    frames: Tensor
    """(B, N * 3 / 2, N) uint8, on the host as `codes` is."""
    recorded: Recorded
    held: list[tuple[int, int] | None]
    """Serials of the portrait and the source that each slot holds."""
    stages: dict[str, Recorded] = field(default_factory=dict)


class TorchFrameRenderer:
    """`FrameRenderer` in torch: whole frames, batched by output size.

    `shapes()` tells the shape of each of the generator's inputs without the batch axis;
    `guard` runs work and turns torch's errors into the engine's.
    """

    max_batch = MAX_BATCH

    def __init__(
        self,
        generator: Exported,
        place: Place,
        shapes: Callable[[], dict[str, tuple[int, ...]]],
        guard: Callable[[Callable[[], Any]], Any],
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._net, self._place, self._shapes, self._guard = generator, place, shapes, guard
        self._clock = clock
        self._budget_bytes, self.used_bytes = budget_bytes, 0
        self._resident: OrderedDict[int, _Resident] = OrderedDict()
        self._serials = count()
        self._plans: dict[tuple[int, int], _Plan] = {}
        self.copies = 0
        """Slots filled so far: a measure of how often portraits change places."""

    @torch.inference_mode()
    def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
        """See `FrameRenderer.render`. Spans: draw, from the first copy to the last pixel."""
        check_requests(requests, self.max_batch)
        by_size: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_size.setdefault(len(request.source_HWC), []).append(index)
        results: dict[int, FrameResult] = {}
        for size, indices in by_size.items():
            batch = [requests[i] for i in indices]
            drawn = self._guard(partial(self._draw, batch, size))
            results.update(zip(indices, drawn, strict=True))
        return [results[i] for i in range(len(requests))]

    def _draw(self, requests: list[FrameRequest], size: int) -> list[FrameResult]:
        start = self._clock()
        plan = self.plan(padded(len(requests)), size)
        slots = self._load(plan, requests)
        plan.fixed[DRIVING].copy_(plan.codes, non_blocking=True)
        plan.frames.copy_(plan.recorded.run()[0], non_blocking=True)
        self._place.wait()
        self._forget()
        frames = plan.frames.numpy()
        copies = [frames[slot].copy() for slot in slots]
        spans = {"draw": self._clock() - start}
        return [FrameResult(copy, spans) for copy in copies]

    @torch.inference_mode()
    def plan(self, batch: int, size: int) -> _Plan:
        """Fixed inputs and recording of one batch and output size, made when first asked for."""
        if (batch, size) not in self._plans:
            device = self._place.device
            fixed = {n: torch.zeros(batch, *s, device=device) for n, s in self._shapes().items()}
            fixed[SOURCE] = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device=device)

            def work() -> tuple[Tensor, ...]:
                flow, mask, rgb = self._net(*(fixed[n] for n in self._net.inputs))
                return (i420(composite(fixed[SOURCE], flow, mask, rgb)),)

            self._plans[batch, size] = _Plan(
                fixed,
                self._place.staged(tuple(fixed[DRIVING].shape), torch.float32),
                self._place.staged((batch, size * 3 // 2, size), torch.uint8),
                Recorded(work, self._place),
                [None] * batch,
            )
        return self._plans[batch, size]

    @torch.inference_mode()
    def profile(self, batch: int, size: int, runs: int) -> dict[str, list[float]]:
        """Milliseconds per stage of a batch, each stage as a graph of its own, `runs` of each.

        Draws what the slots hold, so render a batch of that size first. For benchmarks.
        """
        plan = self.plan(batch, size)
        if not plan.stages:
            drawn = Recorded(lambda: self._net(*(plan.fixed[n] for n in self._net.inputs)),
                             self._place)  # fmt: skip
            maps = drawn.run()
            whole = Recorded(lambda: (composite(plan.fixed[SOURCE], *maps),), self._place)
            rgb = whole.run()
            planes = Recorded(lambda: (i420(*rgb),), self._place)
            plan.stages = {"generator": drawn, "compose": whole, "convert": planes}
        found: dict[str, list[float]] = {stage: [] for stage in plan.stages}
        for _ in range(runs):
            for stage, recorded in plan.stages.items():
                found[stage].append(self._ms(recorded))
        return found

    def _ms(self, recorded: Recorded) -> float:
        """How long a recording takes on the device."""
        if self._place.device.type != "cuda":
            start = self._clock()
            recorded.run()
            return (self._clock() - start) / 1e6
        before, after = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        before.record()
        recorded.run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))

    def _load(self, plan: _Plan, requests: list[FrameRequest]) -> list[int]:
        """Bring portraits, sources and codes to their slots; the slot of every request."""
        found = [self._residents(request) for request in requests]
        keys = [(features.serial, source.serial) for features, source in found]
        slots = assign(plan.held, keys)
        codes = plan.codes.numpy()
        for slot, key, request, residents in zip(slots, keys, requests, found, strict=True):
            codes[slot] = request.driving.concat()
            if plan.held[slot] == key:
                continue
            # A copy that fails half-way must not leave a slot that claims to be complete.
            plan.held[slot] = None
            for resident in residents:
                for name, tensor in resident.tensors.items():
                    plan.fixed[name][slot].copy_(tensor[0], non_blocking=True)
            plan.held[slot] = key
            self.copies += 1
        return slots

    def _residents(self, request: FrameRequest) -> tuple[_Resident, _Resident]:
        """The portrait and its source on the device, uploaded the first time."""
        features = generator_inputs(request.appearance, request.driving)
        named = {n: features[n] for n in self._net.inputs if n != DRIVING}
        found = self._upload(request.appearance, named)
        return found, self._upload(request.source_HWC, {SOURCE: request.source_HWC[None]})

    def _upload(self, owner: object, arrays: dict[str, Any]) -> _Resident:
        entry = self._resident.get(id(owner))
        if entry is None:
            device = self._place.device
            tensors = {
                n: torch.from_numpy(np.ascontiguousarray(a)).to(device) for n, a in arrays.items()
            }
            entry = self._resident[id(owner)] = _Resident(owner, next(self._serials), tensors)
            self.used_bytes += entry.nbytes
        self._resident.move_to_end(id(owner))
        return entry

    def _forget(self) -> None:
        """Evict the least recently used over the budget; never inside a batch."""
        while self.used_bytes > self._budget_bytes and self._resident:
            _, entry = self._resident.popitem(last=False)
            self.used_bytes -= entry.nbytes
