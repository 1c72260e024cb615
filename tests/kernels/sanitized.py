"""Run in a process that has libasan loaded: every kernel on the edges of exact allocations.

The sanitizer ends the process at the first access outside an array, reads included. Usage:
`python -m tests.kernels.sanitized FOLDER [probe]`, where `probe` reads outside on purpose.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kernels import host, template
from kernels.driver.calls import Allocation
from kernels.host.binding import _Memory
from kernels.operation import Library, Operation
from tests.kernels import checks
from tests.kernels.bed import Bed


class ExactCalls(host.HostCalls):
    """Every allocation its own block of memory, without guards: the sanitizer has its own."""

    def _allocate(self, nbytes: int) -> _Memory:
        block = np.full(nbytes, 0xFF, np.uint8)
        memory = _Memory(block, 0, nbytes)
        self._live[block.ctypes.data] = memory
        return memory

    def alloc(self, nbytes: int) -> Allocation:
        pointer = self._allocate(nbytes).array.ctypes.data
        return Allocation(pointer, pointer)


def run(folder: Path) -> None:
    """All checks at small odd sizes, aligned and not."""

    def image(operation: Operation, sm: str) -> bytes:
        return bytes(host.build_library(operation, host.SANITIZE, folder))

    def fresh() -> Bed:
        context = host.open_context(ExactCalls())
        return Bed(context, Library(context, image))

    everything = {"gain", "shift", "bias", "noise", "strength", "residual", "conv", "limit"}
    for dtype in (np.float32, np.float16):
        for gap, shift in ((0, 0), (1, 3)):
            rng = np.random.default_rng(gap)
            kind: Any = dtype
            checks.axpy(fresh(), rng, kind, 3, 1021, shift, gap)
            checks.yuv(fresh(), rng, kind, (13, 17), (9, 7), 0.4, bool(gap), gap)
            for maps in (5, 16, 31):
                steps = (3, 3) if gap else (4, 4)
                checks.composite(fresh(), rng, kind, [(16, 16), (9, 141)], 7, maps, steps, gap)
            checks.features(fresh(), rng, kind, 2, 9, (5, 7), (11, 3), True, gap)
            for shape in ((2, 3, 5, 7), (1, 2, 16, 64)):
                checks.modulate(fresh(), rng, kind, shape, everything, shift, gap)
                for up in (1, 2):
                    size = (shape[2] * up + 1, shape[3] * up - 1)
                    checks.fir(fresh(), rng, kind, shape, up, 2, size, everything, gap)
            checks.demodulate(fresh(), rng, kind, 2, 3, 130)
            checks.i420(fresh(), rng, [(9, 17), (8, 32)], 3 + (gap == 0), True, (6, 5), gap)
            checks.paste(fresh(), rng, 12, (21, 19), 2.0)
            checks.window(fresh(), rng, kind, 3, 7, 7)
            checks.mel(fresh(), rng, kind, [1, 799, 161])
    print("clean")


def probe(folder: Path) -> None:
    """Read one element too many, to prove that the sanitizer is awake."""
    context = host.open_context(ExactCalls())
    bed = Bed(context, Library(context, lambda op, sm: bytes(
        host.build_library(op, host.SANITIZE, folder))))  # fmt: skip
    small, large = bed.put(np.ones((1, 33), np.float32)), bed.empty((1, 34), np.float32)
    launch = template.axpy(small.view, small.view, bed.empty((1, 33), np.float32).view, 1.0)
    params = template.Params.from_buffer_copy(launch.params)
    params.columns, params.out = 34, ctypes.c_void_p(large.view.pointer)
    bed.run(type(launch)(launch.entry, launch.grid, launch.block, params))
    print("clean")


if __name__ == "__main__":
    (probe if sys.argv[2:] == ["probe"] else run)(Path(sys.argv[1]))
