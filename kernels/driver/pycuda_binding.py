"""PyCUDA: the binding that Visavis prefers. Graphs, which it lacks, come from `libcuda`."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pycuda.driver as cuda

from kernels import driver
from kernels.driver import (
    DeviceInfo,
    DeviceLostError,
    Dims,
    DriverError,
    DriverMissingError,
    Host,
    OutOfMemoryError,
)
from kernels.driver.calls import Allocation, Handle, PinnedAllocation
from kernels.driver.libcuda import LibCuda
from kernels.driver.objects import DriverContext

_NON_BLOCKING = 1


class PyCudaCalls:
    """See `kernels.driver.calls.Calls`."""

    binding = "pycuda"

    def __init__(self, ordinal: int) -> None:
        cuda.init()
        self._lib = LibCuda()
        device = cuda.Device(ordinal)
        version = int(cuda.get_driver_version())
        self.device = DeviceInfo(
            str(device.name()),
            tuple(device.compute_capability()),
            int(device.total_memory()),
            int(device.get_attribute(cuda.device_attribute.L2_CACHE_SIZE)),
            int(device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT)),
            (version // 1000, version % 1000 // 10),
        )
        self._context = device.retain_primary_context()
        self._context.push()
        try:
            self._lib.context_state()
        except DeviceLostError:
            # See `kernels.driver.open_context`.
            cuda.Context.pop()
            del self._context
            self._lib.reset(ordinal)
            self._context = device.retain_primary_context()
            self._context.push()
            self._lib.context_state()
        self._released = False
        # PyCUDA ends a process with an abort when a context is left on its stack.
        atexit.register(self.release)

    @contextmanager
    def _said(self, call: str) -> Iterator[None]:
        """Turn PyCUDA's exceptions into ours; a dead context says so when it is asked."""
        try:
            yield
        except cuda.MemoryError as error:
            raise OutOfMemoryError(f"{call}: {error}") from error
        except cuda.Error as error:
            self._lib.context_state()
            raise DriverError(f"{call}: {error}") from error

    def make_current(self) -> None:
        """See `Calls`."""
        # PyCUDA keeps a stack of its own: out of it and in again, so that it stays one deep.
        with self._said("make_current"):
            cuda.Context.pop()
            self._context.push()

    def release(self) -> None:
        """See `Calls`; idempotent, and quiet, because it also runs when all is over."""
        if self._released:
            return
        self._released = True
        with suppress(cuda.Error):
            cuda.Context.pop()
        del self._context

    def synchronize(self) -> None:
        """See `Calls`."""
        with self._said("synchronize"):
            cuda.Context.synchronize()

    def memory(self) -> tuple[int, int]:
        """See `Calls`."""
        with self._said("mem_get_info"):
            free, total = cuda.mem_get_info()
        return int(free), int(total)

    def alloc(self, nbytes: int) -> Allocation:
        """See `Calls`."""
        with self._said(f"mem_alloc of {nbytes} bytes"):
            owner = cuda.mem_alloc(nbytes)
        return Allocation(int(owner), owner)

    def free(self, owner: Handle) -> None:
        """See `Calls`."""
        with self._said("free"):
            owner.free()

    def pinned(self, nbytes: int) -> PinnedAllocation:
        """See `Calls`."""
        with self._said(f"pagelocked_empty of {nbytes} bytes"):
            flags = int(cuda.host_alloc_flags.DEVICEMAP)
            memory = cuda.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
            return PinnedAllocation(memory, int(memory.base.get_device_pointer()), memory.base)

    def free_pinned(self, owner: Handle) -> None:
        """See `Calls`."""
        with self._said("free"):
            owner.free()

    def upload(self, pointer: int, source: Host, stream: Handle) -> None:
        """See `Calls`."""
        with self._said("memcpy_htod_async"):
            cuda.memcpy_htod_async(pointer, source, stream)

    def download(self, target: Host, pointer: int, stream: Handle) -> None:
        """See `Calls`."""
        with self._said("memcpy_dtoh_async"):
            cuda.memcpy_dtoh_async(target, pointer, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """See `Calls`."""
        with self._said("memcpy_dtod_async"):
            cuda.memcpy_dtod_async(target, source, nbytes, stream)

    def fill(self, pointer: int, byte: int, nbytes: int, stream: Handle) -> None:
        """See `Calls`."""
        with self._said("memset_d8_async"):
            cuda.memset_d8_async(pointer, byte, nbytes, stream)

    def stream(self) -> Handle:
        """See `Calls`."""
        with self._said("Stream"):
            return cuda.Stream(_NON_BLOCKING)

    def stream_handle(self, stream: Handle) -> int:
        """See `Calls`."""
        return int(stream.handle)

    def stream_synchronize(self, stream: Handle) -> None:
        """See `Calls`."""
        with self._said("Stream.synchronize"):
            stream.synchronize()

    def stream_wait(self, stream: Handle, event: Handle) -> None:
        """See `Calls`."""
        with self._said("Stream.wait_for_event"):
            stream.wait_for_event(event)

    def free_stream(self, stream: Handle) -> None:
        """See `Calls`; PyCUDA destroys it with its last reference."""

    def event(self, timing: bool) -> Handle:
        """See `Calls`."""
        kinds = cuda.event_flags
        with self._said("Event"):
            return cuda.Event(int(kinds.DEFAULT if timing else kinds.DISABLE_TIMING))

    def record(self, event: Handle, stream: Handle) -> None:
        """See `Calls`."""
        with self._said("Event.record"):
            event.record(stream)

    def event_synchronize(self, event: Handle) -> None:
        """See `Calls`."""
        with self._said("Event.synchronize"):
            event.synchronize()

    def event_done(self, event: Handle) -> bool:
        """See `Calls`."""
        with self._said("Event.query"):
            return bool(event.query())

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """See `Calls`."""
        with self._said("Event.time_since"):
            return float(end.time_since(start))

    def free_event(self, event: Handle) -> None:
        """See `Calls`; PyCUDA destroys it with its last reference."""

    def load(self, image: bytes) -> Handle:
        """See `Calls`."""
        with self._said("module_from_buffer"):
            return cuda.module_from_buffer(image)

    def function(self, module: Handle, name: str) -> Handle:
        """See `Calls`."""
        with self._said(f"get_function({name})"):
            return module.get_function(name)

    def launch(
        self,
        function: Handle,
        grid: Dims,
        block: Dims,
        params: bytes,
        stream: Handle,
        shared_bytes: int,
    ) -> None:
        """See `Calls`."""
        # PyCUDA passes a numpy array by value, byte for byte.
        packed = np.frombuffer(params, np.uint8)
        with self._said("launch"):
            function(packed, grid=grid, block=block, stream=stream, shared=shared_bytes)

    def begin_capture(self, stream: Handle) -> None:
        """See `Calls`."""
        self._lib.begin_capture(int(stream.handle))

    def end_capture(self, stream: Handle, keep: bool) -> Handle:
        """See `Calls`."""
        return self._lib.end_capture(int(stream.handle), keep)

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """See `Calls`."""
        self._lib.launch_graph(graph, int(stream.handle))

    def free_graph(self, graph: Handle) -> None:
        """See `Calls`."""
        self._lib.free_graph(graph)


def open(ordinal: int, reason: str) -> driver.Context:
    """Open a device. Raises DriverMissingError where there is no driver or no device."""
    try:
        calls = PyCudaCalls(ordinal)
    except (cuda.Error, DriverError) as error:
        raise DriverMissingError(f"no CUDA device: {error}") from error
    return DriverContext(calls, reason or "PyCUDA is installed")


__all__ = ["PyCudaCalls", "open"]
