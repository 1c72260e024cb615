"""The fused frame: generator, composite and I420 on one stream, one CUDA graph per batch.

A frame's way on the device: its motion code goes up from pinned memory; the generator reads
it beside the portrait's resident features and leaves flow, mask and RGB in its output
buffers; `warp_composite` draws at output size from the resident source pixels; `rgb_to_i420`
writes into pinned memory. All of that is one graph launch, then one wait, on the render
worker's thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kernels import driver
from models.runtime.base import generator_inputs
from models.runtime.device_network import DeviceNetwork, padded
from models.runtime.engine import Appearance
from models.runtime.flavour import BATCH_SIZES, MAX_BATCH
from models.runtime.frames import Clock, FrameRequest, FrameResult, Pixels, check_requests
from models.runtime.portrait_bank import DEFAULT_BUDGET_BYTES, DeviceCache, Resident, Slots

#: Largest output sizes that graphs are recorded for; any even size up to the last is drawn.
SIZES = (256, 384, 512)
DRIVING = "driving_code"


class Compositor(Protocol):
    """From the generator's outputs to I420 in host memory: what our kernels do.

    It owns a table with one row per batch slot, which the recorded work reads anew each time.
    """

    def aim(self, slot: int, source: driver.DeviceArray, size: int) -> None:
        """Let `slot` draw from `source` (1, size, size, 4) uint8 RGBx; the stream must be idle."""

    def rest(self, slot: int) -> None:
        """Let `slot` draw nothing; the stream must be idle."""

    def composite(
        self,
        outputs: Mapping[str, driver.DeviceArray],
        batch: int,
        size: int,
        stream: driver.Stream,
    ) -> None:
        """Put compositing of the slots below `batch`, up to `size` pixels, into `stream`."""

    def convert(self, batch: int, size: int, stream: driver.Stream) -> None:
        """Put the conversion to I420 in host memory behind it."""

    def frame(self, slot: int, size: int) -> Pixels:
        """(size * 3 / 2, size) uint8 view of what `slot` drew; valid until the next drawing."""


class GpuFrameRenderer:
    """`FrameRenderer` on the device; see the module's docstring."""

    max_batch = MAX_BATCH

    def __init__(
        self,
        generator: DeviceNetwork,
        compositor: Compositor,
        *,
        sizes: Sequence[int] = SIZES,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._generator, self._compositor, self._clock = generator, compositor, clock
        device = self._device = generator.device
        self.cache = DeviceCache(device, budget_bytes)
        features = {n: a for n, a in generator.inputs.items() if n != DRIVING}
        self.slots = Slots(device, features)
        codes = generator.inputs[DRIVING]
        self._codes = device.context.pinned(codes.shape, codes.dtype)
        self._codes.array[:] = 0
        self._sizes = sorted(sizes)
        self._graphs = {
            (batch, size): device.record(partial(self._work, batch, size))
            for size in self._sizes
            for batch in BATCH_SIZES
        }

    @property
    def recorded(self) -> frozenset[tuple[int, int]]:
        """Batch and output sizes that have a graph."""
        return frozenset(self._graphs)

    def _work(self, batch: int, size: int) -> None:
        """What one graph does."""
        stream = self._device.stream
        self._generator.inputs[DRIVING].upload(self._codes, stream)
        self._generator.enqueue(batch)
        self._compositor.composite(self._generator.outputs, batch, size, stream)
        self._compositor.convert(batch, size, stream)

    def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
        """See `FrameRenderer.render`. Spans: draw, from the first copy to the last pixel."""
        check_requests(requests, self.max_batch)
        start = self._clock()
        sizes = [len(request.source_HWC) for request in requests]
        largest = next((s for s in self._sizes if s >= max(sizes)), None)
        if largest is None:
            raise ValueError(f"a source has {max(sizes)} pixels, at most {self._sizes[-1]}")
        batch = padded(len(requests))
        with self._device.guard():
            slots = self._load(requests, batch)
            self._graphs[batch, largest].launch(self._device.stream)
            self._device.stream.synchronize()
        copies = [
            self._compositor.frame(slot, size).copy()
            for slot, size in zip(slots, sizes, strict=True)
        ]
        spans = {"draw": self._clock() - start}
        return [FrameResult(copy, spans) for copy in copies]

    def profile(self, batch: int, size: int, runs: int) -> dict[str, list[float]]:
        """Milliseconds of device time per stage of a batch, `runs` of each, without the graph.

        Draws what the slots hold, so render a batch of that size first. For benchmarks.
        """
        stream, context = self._device.stream, self._device.context
        marks = [context.event(timing=True) for _ in range(4)]
        found: dict[str, list[float]] = {"generator": [], "compose": [], "convert": []}
        with self._device.guard():
            for _ in range(runs):
                marks[0].record(stream)
                self._generator.inputs[DRIVING].upload(self._codes, stream)
                self._generator.enqueue(batch)
                marks[1].record(stream)
                self._compositor.composite(self._generator.outputs, batch, size, stream)
                marks[2].record(stream)
                self._compositor.convert(batch, size, stream)
                marks[3].record(stream)
                marks[3].synchronize()
                for stage, before, after in zip(found.values(), marks, marks[1:], strict=False):
                    stage.append(after.elapsed_ms(before))
        return found

    def _load(self, requests: Sequence[FrameRequest], batch: int) -> list[int]:
        """Bring portraits, sources and codes to their slots; the slot of every request."""
        keep = [o for r in requests for o in (r.appearance, r.source_HWC)]
        residents: list[tuple[Resident, Resident]] = []
        for request in requests:
            make = partial(self._features, request.appearance)
            features = self.cache.get(request.appearance, make, keep)
            source = self.cache.get(request.source_HWC, partial(_rgbx, request.source_HWC), keep)
            residents.append((features, source))
        slots = self.slots.assign([features.serial for features, _ in residents], batch)
        for slot in set(range(batch)) - set(slots):
            self._compositor.rest(slot)
        for slot, request, (features, source) in zip(slots, requests, residents, strict=True):
            self.slots.place(slot, features.serial, features.arrays)
            self._compositor.aim(slot, source.arrays["source"], len(request.source_HWC))
            self._codes.array[slot] = request.driving.concat()
        return slots

    def _features(self, appearance: Appearance) -> dict[str, NDArray[Any]]:
        """What the generator reads of a portrait, in the types that it reads."""
        named = generator_inputs(appearance, appearance.code)
        specs = self._generator.program.inputs
        return {n: named[n].astype(specs[n].dtype) for n in specs if n != DRIVING}


def _rgbx(source_HWC: Pixels) -> dict[str, Pixels]:
    """A source as it lies on the device: four bytes per pixel are one load."""
    height, width, _ = source_HWC.shape
    pixels = np.zeros((1, height, width, 4), np.uint8)
    pixels[0, ..., :3] = source_HWC
    return {"source": pixels}
