"""Networks on a CUDA device: fixed buffers, one stream, one CUDA graph per batch size.

All memory is allocated when the engine is loaded; running a network allocates nothing on the
device. Belongs to the thread that opened the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np

from kernels import driver
from models.codes import Array
from models.runtime.engine import DeviceLostError, EngineError
from models.runtime.flavour import BATCH_SIZES, MAX_BATCH, Program


def padded(count: int) -> int:
    """The smallest batch size that has a graph and holds `count` items."""
    return next(size for size in BATCH_SIZES if size >= count)


class Device:
    """A context, its one stream, and the point where its errors become ours."""

    def __init__(self, context: driver.Context) -> None:
        self.context = context
        self.stream = context.stream()
        self.lost = False

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Turn CUDA's errors into `EngineError`, and fatal ones into `DeviceLostError`.

        Once lost, a device stays lost: its context is given back at once, so that the next
        engine gets a fresh one, and everything guarded fails without touching freed memory.
        """
        if self.lost:
            raise DeviceLostError("The GPU was lost; its engine must be loaded again.")
        try:
            yield
        except (driver.DeviceLostError, DeviceLostError) as error:
            self.lost = True
            with suppress(driver.DriverError):
                self.context.close()
            raise DeviceLostError(f"The GPU was lost: {error}") from error
        except driver.OutOfMemoryError as error:
            raise EngineError(f"The GPU has too little memory: {error}") from error
        except driver.DriverError as error:
            raise EngineError(f"The GPU refused: {error}") from error

    def record(self, work: Callable[[], None]) -> driver.Graph:
        """Run `work` once, so that everything lazy happens now, then record it as a graph."""
        work()
        self.stream.synchronize()
        with self.context.capture(self.stream) as graph:
            work()
        return graph

    def zeros(self, shape: Sequence[int], dtype: Any) -> driver.DeviceArray:
        """Device memory that is defined: slots nobody has used yet are drawn too."""
        array = self.context.alloc(shape, dtype)
        array.fill(0, self.stream)
        return array


class DeviceNetwork:
    """One network with batch buffers for 1 to 16 items; several share one scratch memory."""

    def __init__(
        self, device: Device, program: Program, scratch: driver.DeviceArray | None
    ) -> None:
        self.device, self.program = device, program
        self.inputs = {
            n: device.zeros((MAX_BATCH, *s.shape), s.dtype) for n, s in program.inputs.items()
        }
        self.outputs = {
            n: device.zeros((MAX_BATCH, *s.shape), s.dtype) for n, s in program.outputs.items()
        }
        addresses = {n: a.pointer for n, a in (self.inputs | self.outputs).items()}
        at = scratch.pointer if scratch is not None else 0
        self._bound = {b: program.bind(b, addresses, at) for b in BATCH_SIZES}

    def enqueue(self, batch: int) -> None:
        """Put one execution on the first `batch` items into the stream."""
        self._bound[batch].enqueue(self.device.stream.handle)


class HostRunner:
    """Runs a network on host arrays: upload, execute and download are one graph per batch size.

    `batches` are the sizes that are recorded; a network that serves one picture at a time
    needs only (1,).
    """

    def __init__(self, network: DeviceNetwork, batches: Sequence[int] = BATCH_SIZES) -> None:
        self._network = network
        context = network.device.context
        self._staged = {
            b: {
                n: context.pinned((b, *s.shape), s.dtype)
                for n, s in (network.program.inputs | network.program.outputs).items()
            }
            for b in batches
        }
        self._graphs = {b: network.device.record(partial(self._work, b)) for b in batches}

    def _work(self, batch: int) -> None:
        staged, stream = self._staged[batch], self._network.device.stream
        for name, array in self._network.inputs.items():
            array.upload(staged[name], stream)
        self._network.enqueue(batch)
        for name, array in self._network.outputs.items():
            array.download(staged[name], stream)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Float32 arrays with a batch axis of 1 to the largest recorded size -> outputs, float32.

        Raises:
            ValueError: an input is missing or has another shape.
        """
        counts = {len(a) for a in inputs.values()}
        largest = max(self._graphs)
        if inputs.keys() != self._network.inputs.keys() or len(counts) != 1:
            raise ValueError(
                f"inputs must be {sorted(self._network.inputs)} with one batch size, "
                f"got { ({n: a.shape for n, a in inputs.items()}) }"
            )
        count = counts.pop()
        if not 1 <= count <= largest:
            raise ValueError(f"a batch has 1 to {largest} items, got {count}")
        batch = padded(count)
        staged = self._staged[batch]
        device = self._network.device
        with device.guard():
            for name, array in inputs.items():
                target = staged[name].array
                if array.shape[1:] != target.shape[1:]:
                    raise ValueError(f"{name} must be (B, {target.shape[1:]}), got {array.shape}")
                target[:count] = array
            self._graphs[batch].launch(device.stream)
            device.stream.synchronize()
            return {n: staged[n].array[:count].astype(np.float32) for n in self._network.outputs}
