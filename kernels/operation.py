"""Operations, their launches, and the library that runs them on a context.

An operation's launcher is a pure function: it looks at arrays and returns a `Launch`. The same
launch runs on a GPU (`Library`) and, compiled for the host, in the tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernels.driver import Context, Dims, Kernel, Stream

ROOT = Path(__file__).resolve().parent
#: Bounds of a grid's second and third axis (CUDA C++ Programming Guide, compute capabilities).
GRID_LIMIT = 65_535


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one entry. `params` holds addresses: keep the arrays alive until it ran."""

    entry: str
    grid: Dims
    block: Dims
    params: ctypes.Structure

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or max(self.grid[1:]) > GRID_LIMIT:
            raise ValueError(f"{self.entry}: the batch is empty or too large, grid {self.grid}")


@dataclass(frozen=True, slots=True)
class Operation:
    """A folder of `kernels/` with a `kernel.cu`."""

    name: str
    entries: tuple[str, ...]
    """Entry points, without `_f32` and `_f16`."""
    types: tuple[str, ...] = ("f32", "f16")

    @property
    def source(self) -> Path:
        """The CUDA source."""
        return ROOT / self.name / "kernel.cu"

    @property
    def symbols(self) -> tuple[str, ...]:
        """Entry points as the compiled module names them."""
        if not self.types:
            return self.entries
        return tuple(f"{entry}_{kind}" for entry in self.entries for kind in self.types)


OPERATIONS: tuple[Operation, ...] = (
    Operation("template", ("axpy",)),
    Operation("yuv_to_tensor", ("yuv_to_tensor",)),
    Operation("warp_composite", ("warp_composite", "warp_features")),
    Operation("modulate_activate", ("modulate_activate", "fir_activate", "demodulate")),
    Operation("rgb_to_i420", ("rgb_to_i420",), ()),
    Operation("window_mean", ("window_mean",)),
    Operation("log_mel", ("log_mel",)),
)

Build = Callable[[Operation, str], bytes]


def operation_of(entry: str) -> Operation:
    """Return the operation that has an entry point. Raises KeyError."""
    for operation in OPERATIONS:
        if entry in operation.symbols:
            return operation
    raise KeyError(f"no operation has an entry {entry!r}")


class Library:
    """All kernels of one context, compiled at first use; belongs to the context's thread.

    `build(operation, sm)` returns the module's image; by default `kernels.compiler.build`.
    """

    def __init__(self, context: Context, build: Build | None = None) -> None:
        if build is None:
            from kernels.compiler import build as build_with_cache

            build = build_with_cache
        self._context = context
        self._build = build
        self._kernels: dict[str, Kernel] = {}

    def load(self, *names: str) -> None:
        """Compile and load these operations (all but the template without arguments).

        To be called before the first frame. Raises CompileError, DriverError.
        """
        for operation in OPERATIONS:
            if operation.name in names or (not names and operation.name != "template"):
                self._load(operation)

    def run(self, launch: Launch, stream: Stream) -> None:
        """Start a launch on a stream. Raises CompileError, DriverError."""
        kernel = self._kernels.get(launch.entry)
        if kernel is None:
            self._load(operation_of(launch.entry))
            kernel = self._kernels[launch.entry]
        kernel.launch(launch.grid, launch.block, launch.params, stream)

    def _load(self, operation: Operation) -> None:
        module = self._context.load(self._build(operation, self._context.device.sm))
        for symbol in operation.symbols:
            self._kernels[symbol] = module.kernel(symbol)


def blocks(size: int, per_block: int) -> int:
    """Blocks that cover `size`."""
    return -(-size // per_block)


__all__ = ["OPERATIONS", "Build", "Launch", "Library", "Operation", "blocks", "operation_of"]
