"""What a binding must supply: CUDA's calls with plain integers, nothing more.

`kernels.driver.objects` builds the objects of `kernels.driver` on these, once for all
bindings. Handles (streams, events, modules, functions, graphs) are whatever the binding likes;
nobody else looks into them. Every method may raise DriverError.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeAlias

from kernels.driver import DeviceInfo, Dims, Host

Handle: TypeAlias = Any


class Allocation(NamedTuple):
    """Device memory: its address and what frees it."""

    pointer: int
    owner: Handle


class PinnedAllocation(NamedTuple):
    """Pinned memory: uint8 (n,) for numpy, its device address and what frees it."""

    array: Host
    pointer: int
    owner: Handle


class Calls(Protocol):
    """One opened device. Host memory is passed as C-ordered numpy arrays."""

    binding: str
    device: DeviceInfo

    def make_current(self) -> None:
        """Make the context current in this thread."""

    def release(self) -> None:
        """Let go of the primary context."""

    def synchronize(self) -> None:
        """Wait for the whole context."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""

    def alloc(self, nbytes: int) -> Allocation:
        """Allocate device memory."""

    def free(self, owner: Handle) -> None:
        """Free device memory."""

    def pinned(self, nbytes: int) -> PinnedAllocation:
        """Allocate pinned, mapped host memory."""

    def free_pinned(self, owner: Handle) -> None:
        """Free pinned memory."""

    def upload(self, pointer: int, source: Host, stream: Handle) -> None:
        """Copy host to device."""

    def download(self, target: Host, pointer: int, stream: Handle) -> None:
        """Copy device to host."""

    def copy(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """Copy device to device."""

    def fill(self, pointer: int, byte: int, nbytes: int, stream: Handle) -> None:
        """Set bytes."""

    def stream(self) -> Handle:
        """Make a non-blocking stream."""

    def stream_handle(self, stream: Handle) -> int:
        """`CUstream` as an integer."""

    def stream_synchronize(self, stream: Handle) -> None:
        """Wait for a stream."""

    def stream_wait(self, stream: Handle, event: Handle) -> None:
        """Let a stream wait for an event."""

    def free_stream(self, stream: Handle) -> None:
        """Destroy a stream."""

    def event(self, timing: bool) -> Handle:
        """Make an event."""

    def record(self, event: Handle, stream: Handle) -> None:
        """Record an event."""

    def event_synchronize(self, event: Handle) -> None:
        """Wait for an event."""

    def event_done(self, event: Handle) -> bool:
        """Whether an event has passed."""

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """Time between two events."""

    def free_event(self, event: Handle) -> None:
        """Destroy an event."""

    def load(self, image: bytes) -> Handle:
        """Load a module."""

    def function(self, module: Handle, name: str) -> Handle:
        """Find an entry of a module."""

    def launch(
        self,
        function: Handle,
        grid: Dims,
        block: Dims,
        params: bytes,
        stream: Handle,
        shared_bytes: int,
    ) -> None:
        """Start a kernel whose only argument is `params` by value."""

    def begin_capture(self, stream: Handle) -> None:
        """Begin to record a stream, thread-local mode."""

    def end_capture(self, stream: Handle, keep: bool) -> Handle:
        """End the recording; return an executable graph, or None when not to `keep` it."""

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """Start a graph."""

    def free_graph(self, graph: Handle) -> None:
        """Destroy a graph."""


__all__ = ["Allocation", "Calls", "Handle", "PinnedAllocation"]
