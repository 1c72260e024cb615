"""A driver over host memory; see the package's docstring."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.driver import DeviceInfo, DeviceLostError, Dims, DriverError, Host, OutOfMemoryError
from kernels.driver.calls import Allocation, Handle, PinnedAllocation
from kernels.driver.objects import DriverContext

#: Guard bytes on both sides of every allocation, and what they hold: a NaN in every type.
GUARD, GUARD_BYTE = 256, 0xFF
#: What fresh memory holds, so that nobody takes it for zeros.
FRESH_BYTE = 0xFF
ALIGNMENT = 256

Work = Callable[[], None]


@dataclass(slots=True)
class _Stream:
    """Runs at once; while it is captured, it records."""

    number: int
    recorded: list[Work] | None = None


@dataclass(slots=True)
class _Event:
    recorded: bool = False


@dataclass(slots=True)
class _Memory:
    """An allocation and its guards, all of one block."""

    block: Host
    start: int
    nbytes: int

    @property
    def array(self) -> Host:
        return self.block[self.start : self.start + self.nbytes]

    def intact(self) -> bool:
        before = self.block[: self.start]
        after = self.block[self.start + self.nbytes :]
        return bool((before == GUARD_BYTE).all() and (after == GUARD_BYTE).all())


@dataclass
class HostCalls:
    """See `kernels.driver.calls.Calls`. `memory_bytes` bounds all allocations together.

    `lose_device` makes every later call fail as after an illegal access, `backwards` runs
    blocks and threads in the opposite order, `launched` lists the entries that ran.
    """

    memory_bytes: int = 1 << 30
    backwards: bool = False
    binding: str = "host"
    launched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.device = DeviceInfo("host", (0, 0), self.memory_bytes, 1 << 20, 1, (0, 0))
        self._live: dict[int, _Memory] = {}
        self._lost = False
        self._streams = 0

    # --- for tests --------------------------------------------------------------------

    def lose_device(self) -> None:
        """From now on everything fails with DeviceLostError."""
        self._lost = True

    def check_guards(self) -> None:
        """Raise AssertionError when something was written outside an allocation."""
        for pointer, memory in self._live.items():
            assert memory.intact(), f"written outside the {memory.nbytes} bytes at {pointer:#x}"

    @property
    def live_bytes(self) -> int:
        """Bytes that are allocated now."""
        return sum(memory.nbytes for memory in self._live.values())

    # --- Calls ------------------------------------------------------------------------

    def _alive(self) -> None:
        if self._lost:
            raise DeviceLostError("host: the device's context is lost")

    def make_current(self) -> None:
        """See `Calls`."""
        self._alive()

    def release(self) -> None:
        """See `Calls`."""

    def synchronize(self) -> None:
        """See `Calls`."""
        self._alive()

    def memory(self) -> tuple[int, int]:
        """See `Calls`."""
        self._alive()
        return self.memory_bytes - self.live_bytes, self.memory_bytes

    def _allocate(self, nbytes: int) -> _Memory:
        self._alive()
        if nbytes + self.live_bytes > self.memory_bytes:
            raise OutOfMemoryError(
                f"host: {nbytes} bytes are more than the {self.memory()[0]} left"
            )
        block = np.full(nbytes + 2 * GUARD + ALIGNMENT, GUARD_BYTE, np.uint8)
        start = GUARD + (-(block.ctypes.data + GUARD)) % ALIGNMENT
        memory = _Memory(block, start, nbytes)
        memory.array[:] = FRESH_BYTE
        self._live[memory.array.ctypes.data] = memory
        return memory

    def alloc(self, nbytes: int) -> Allocation:
        """See `Calls`."""
        pointer = self._allocate(nbytes).array.ctypes.data
        return Allocation(pointer, pointer)

    def free(self, owner: Handle) -> None:
        """See `Calls`; also checks the guards."""
        memory = self._live.pop(owner)
        if not memory.intact():
            raise DriverError(f"host: written outside an allocation of {memory.nbytes} bytes")

    def pinned(self, nbytes: int) -> PinnedAllocation:
        """See `Calls`."""
        array = self._allocate(nbytes).array
        return PinnedAllocation(array, array.ctypes.data, array.ctypes.data)

    def free_pinned(self, owner: Handle) -> None:
        """See `Calls`."""
        self.free(owner)

    def _do(self, stream: _Stream, work: Work) -> None:
        self._alive()
        if stream.recorded is not None:
            stream.recorded.append(work)
        else:
            work()

    def upload(self, pointer: int, source: Host, stream: Handle) -> None:
        """See `Calls`."""
        self._do(stream, lambda: _move(pointer, source.ctypes.data, source.nbytes))

    def download(self, target: Host, pointer: int, stream: Handle) -> None:
        """See `Calls`."""
        self._do(stream, lambda: _move(target.ctypes.data, pointer, target.nbytes))

    def copy(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """See `Calls`."""
        self._do(stream, lambda: _move(target, source, nbytes))

    def fill(self, pointer: int, byte: int, nbytes: int, stream: Handle) -> None:
        """See `Calls`."""
        self._do(stream, lambda: _set(pointer, byte, nbytes))

    def stream(self) -> Handle:
        """See `Calls`."""
        self._alive()
        self._streams += 1
        return _Stream(self._streams)

    def stream_handle(self, stream: Handle) -> int:
        """See `Calls`."""
        return int(stream.number)

    def stream_synchronize(self, stream: Handle) -> None:
        """See `Calls`."""
        self._alive()
        if stream.recorded is not None:
            raise DriverError("host: a stream cannot be synchronised while it is captured")

    def stream_wait(self, stream: Handle, event: Handle) -> None:
        """See `Calls`."""
        self._alive()

    def free_stream(self, stream: Handle) -> None:
        """See `Calls`."""

    def event(self, timing: bool) -> Handle:
        """See `Calls`."""
        return _Event()

    def record(self, event: Handle, stream: Handle) -> None:
        """See `Calls`."""
        self._alive()
        event.recorded = True

    def event_synchronize(self, event: Handle) -> None:
        """See `Calls`."""
        self._alive()

    def event_done(self, event: Handle) -> bool:
        """See `Calls`."""
        self._alive()
        return bool(event.recorded)

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """See `Calls`; nothing takes time here."""
        return 0.0

    def free_event(self, event: Handle) -> None:
        """See `Calls`."""

    def load(self, image: bytes) -> Handle:
        """See `Calls`; the image is a library's path."""
        self._alive()
        return ctypes.CDLL(os.fsdecode(image))

    def function(self, module: Handle, name: str) -> Handle:
        """See `Calls`."""
        try:
            entry = module[name]
        except AttributeError as error:
            raise DriverError(f"host: no entry {name}") from error
        entry.restype = ctypes.c_int
        return name, entry, ctypes.c_uint.in_dll(module, f"{name}_params").value

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
        name, entry, expected = function
        if len(params) != expected:
            raise DriverError(f"host: {name} takes {expected} bytes, got {len(params)}")
        packed = ctypes.create_string_buffer(params, len(params))
        sizes: Any = ctypes.c_uint * 3

        def work() -> None:
            if entry(packed, sizes(*grid), sizes(*block), int(self.backwards)):
                raise DriverError(f"host: {name} has a barrier missing or in the wrong place")
            self.launched.append(name)

        self._do(stream, work)

    def begin_capture(self, stream: Handle) -> None:
        """See `Calls`."""
        self._alive()
        stream.recorded = []

    def end_capture(self, stream: Handle, keep: bool) -> Handle:
        """See `Calls`."""
        recorded, stream.recorded = stream.recorded, None
        self._alive()
        return recorded if keep else None

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """See `Calls`."""
        for work in graph:
            self._do(stream, work)

    def free_graph(self, graph: Handle) -> None:
        """See `Calls`."""


def _move(target: int, source: int, nbytes: int) -> None:
    ctypes.memmove(target, source, nbytes)


def _set(pointer: int, byte: int, nbytes: int) -> None:
    ctypes.memset(pointer, byte, nbytes)


def open_context(calls: HostCalls | None = None) -> DriverContext:
    """Open the processor as a device."""
    return DriverContext(calls or HostCalls(), "host memory, for tests")


__all__ = ["HostCalls", "open_context"]
