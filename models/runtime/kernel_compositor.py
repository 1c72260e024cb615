"""`Compositor` with our kernels: `warp_composite` into RGBx, `rgb_to_i420` into pinned memory.

Both read a table with one row per batch slot. The tables lie in pinned memory and go up as
part of the recorded work, so a graph recorded once serves any portraits and sizes; a row whose
size is zero draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kernels import driver, rgb_to_i420, warp_composite
from kernels.operation import Library
from kernels.view import View
from models.runtime.device_network import Device
from models.runtime.flavour import MAX_BATCH
from models.runtime.frames import Pixels

#: Bytes of a pixel, read and drawn: four are one load, four pixels one store.
_STEP = 4


class KernelCompositor:
    """See the module's docstring. `largest` is the largest output size it has memory for."""

    def __init__(self, device: Device, library: Library, largest: int = 512) -> None:
        self._library, self._largest = library, largest
        library.load("warp_composite", "rgb_to_i420")
        context = device.context
        self._drawn = device.zeros((MAX_BATCH, largest, largest, _STEP), np.uint8)
        self._i420 = context.pinned((MAX_BATCH, largest * largest * 3 // 2), np.uint8)
        self._rows = [
            (context.pinned((MAX_BATCH,), kind), device.zeros((MAX_BATCH,), kind))
            for kind in (warp_composite.SESSION, rgb_to_i420.SESSION)
        ]
        for staged, _ in self._rows:
            staged.array[:] = np.zeros((), staged.array.dtype)
        self._aimed: list[tuple[int, int] | None] = [None] * MAX_BATCH

    def aim(self, slot: int, source: driver.DeviceArray, size: int) -> None:
        """See `Compositor.aim`; a row that says so already is left alone."""
        if self._aimed[slot] == (source.pointer, size):
            return
        shape, strides = (size, size, _STEP), (_STEP * size, _STEP, 1)
        pixels = View(source.pointer, shape, strides, source.dtype)
        drawn = self._picture(slot, size)
        start = self._i420.pointer + slot * self._i420.array.shape[1]
        i420 = View(start, (size * 3 // 2, size), (size, 1), np.dtype(np.uint8))
        tables = (
            warp_composite.session(pixels, drawn),
            rgb_to_i420.session(drawn, rgb_to_i420.i420_planes(i420)),
        )
        for (staged, _), row in zip(self._rows, tables, strict=True):
            staged.array[slot] = row
        self._aimed[slot] = (source.pointer, size)

    def rest(self, slot: int) -> None:
        """See `Compositor.rest`."""
        self._aimed[slot] = None
        for staged, _ in self._rows:
            staged.array[slot] = np.zeros((), staged.array.dtype)

    def composite(
        self,
        outputs: Mapping[str, driver.DeviceArray],
        batch: int,
        size: int,
        stream: driver.Stream,
    ) -> None:
        """See `Compositor.composite`."""
        for staged, table in self._rows:
            table.upload(staged, stream)
        rows = self._rows[0][1].part(0, batch)
        flow, mask, rgb = (outputs[n].part(0, batch) for n in ("flow", "mask", "rgb"))
        launch = warp_composite.composite(
            rows, (size, size), flow, mask, rgb, source_step=_STEP, out_step=_STEP
        )
        self._library.run(launch, stream)

    def convert(self, batch: int, size: int, stream: driver.Stream) -> None:
        """See `Compositor.convert`."""
        rows = self._rows[1][1].part(0, batch)
        self._library.run(rgb_to_i420.rgb_to_i420(rows, (size, size)), stream)

    def frame(self, slot: int, size: int) -> Pixels:
        """See `Compositor.frame`."""
        pixels: Pixels = self._i420.array[slot, : size * size * 3 // 2]
        return pixels.reshape(size * 3 // 2, size)

    def _picture(self, slot: int, size: int) -> View:
        """Where `slot` draws: the start of its memory, dense at its own size."""
        start = self._drawn.pointer + slot * self._largest * self._largest * _STEP
        return View(start, (size, size, _STEP), (_STEP * size, _STEP, 1), self._drawn.dtype)
