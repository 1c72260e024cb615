"""Where kernel tests put their arrays: any driver context, host or GPU, any stride and offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from kernels.driver import Context, DeviceArray
from kernels.operation import Launch, Library
from kernels.view import View

#: Bytes around and between the rows of every array: they must stay what they are.
EDGE = 0x5A


@dataclass(frozen=True, slots=True)
class Placed:
    """An array on the device."""

    view: View
    owner: DeviceArray
    shift: int


class Bed:
    """Puts arrays onto a device with odd offsets and row gaps, runs launches, reads back."""

    def __init__(self, context: Context, library: Library) -> None:
        self.context, self.library = context, library
        self.stream = context.stream()
        #: What must live as long as the bed, because a device only knows its address.
        self.kept: list[Any] = []

    def empty(self, shape: tuple[int, ...], dtype: Any, shift: int = 0, gap: int = 0) -> Placed:
        """Uninitialised; `shift` elements before the first, `gap` after every row."""
        kind = np.dtype(dtype)
        strides = [1]
        for axis, size in reversed(list(enumerate(shape))[1:]):
            strides.append(strides[-1] * size + (gap if axis == len(shape) - 1 else 0))
        strides.reverse()
        count = shift + strides[0] * shape[0]
        owner = self.context.alloc((count,), kind)
        owner.fill(EDGE, self.stream)
        view = View(owner.pointer + shift * kind.itemsize, shape, tuple(strides), kind)
        return Placed(view, owner, shift)

    def put(self, array: NDArray[Any], shift: int = 0, gap: int = 0) -> Placed:
        """A copy of `array`."""
        placed = self.empty(array.shape, array.dtype, shift, gap)
        whole = self._whole(placed)
        self._window(whole, placed)[...] = array
        placed.owner.upload(whole, self.stream)
        # The copy from ordinary memory must not outlive `whole`.
        self.stream.synchronize()
        return placed

    def table(self, rows: list[tuple[Any, ...]], dtype: np.dtype[Any]) -> View:
        """A table of structures, kept alive with the bed."""
        placed = self.put(np.array(rows, dtype))
        self.kept.append(placed)
        return placed.view

    def run(self, launch: Launch) -> None:
        """Run and wait."""
        self.library.run(launch, self.stream)
        self.stream.synchronize()

    def get(self, placed: Placed) -> NDArray[Any]:
        """Read an array back; what lies around and between its rows must be untouched."""
        whole = self._whole(placed)
        edges = np.ones(whole.shape, bool)
        self._window(edges, placed)[...] = False
        gaps = whole[edges].view(np.uint8)
        assert (gaps == EDGE).all(), "a kernel wrote between or before the rows of its output"
        return np.array(self._window(whole, placed))

    def _whole(self, placed: Placed) -> NDArray[Any]:
        whole = np.empty(placed.owner.shape, placed.owner.dtype)
        placed.owner.download(whole, self.stream)
        self.stream.synchronize()
        return whole

    @staticmethod
    def _window(whole: NDArray[Any], placed: Placed) -> NDArray[Any]:
        steps = tuple(step * whole.itemsize for step in placed.view.strides)
        return as_strided(whole[placed.shift :], placed.view.shape, steps)


#: Largest error relative to max(1, |expected|).
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-3}


def assert_close(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Compare a kernel's output with its reference within its type's tolerance."""
    error = np.abs(actual.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    assert not np.isnan(actual.astype(np.float64)).any(), "not a number"
    worst = np.unravel_index(error.argmax(), error.shape)
    limit = TOLERANCE[actual.dtype]
    assert error[worst] <= limit, f"{error[worst]:.3g} > {limit} at {worst}"


def smooth(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Any:
    """Random planes without hard edges, between `low` and `high`.

    Positions carry float32 rounding of some 1e-5 pixels, which a hard edge would magnify.
    """
    height, width = shape[-2:]
    y, x = np.mgrid[:height, :width]
    out = np.zeros(shape)
    for _ in range(3):
        fy, fx, phase = rng.uniform(-0.15, 0.15, (3, *shape[:-2], 1, 1))
        out += np.sin(fy * y + fx * x + phase * 20)
    return low + (high - low) * (out / 6 + 0.5)
