"""What the product needs of CUDA's driver, as one small interface over several bindings.

`open_context` picks a binding: PyCUDA, or cuda-python where PyCUDA is not installed, and says
which (`Context.binding`, `Context.reason`). Everything above this line of the program sees
only the protocols below, so buffers, launches and graphs are written once. Importing this
module imports no binding.

Rules that hold for every binding:

* The context is the device's *primary* one, which torch and TensorRT use too, so pointers and
  streams can be passed between them as plain integers.
* A context and all that it made belong to one thread, the one that opened it (in the product
  the render worker's). `Context.close` ends everything that it made.
* Nothing here synchronises unless its name says so. Nothing allocates but `alloc` and `pinned`.
* Arrays are dense, C-ordered, without a stream of their own: the caller orders work.

A frame's life on one stream, and the same as a graph:

    with open_context() as context:
        stream = context.stream()
        staged, x = context.pinned((16, 58), "f4"), context.alloc((16, 58), "f4")
        kernel = context.load(image).kernel("name")
        with context.capture(stream) as graph:  # records, does not run
            x.upload(staged, stream)
            kernel.launch(grid, block, params, stream)
        staged.array[:] = codes
        graph.launch(stream)
        stream.synchronize()
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Dims: TypeAlias = tuple[int, int, int]
Host: TypeAlias = NDArray[Any]


class DriverError(RuntimeError):
    """A CUDA call failed; the message has the call and CUDA's own words.

    `DriverMissingError`: no binding or no device, nothing can run here.
    `OutOfMemoryError`: an allocation was refused; everything else goes on working.
    `DeviceLostError`: the context is dead, every further call fails; make a new process
    or context.
    """


class DriverMissingError(DriverError):
    """No usable binding, driver library or device; the message names each cause."""


class OutOfMemoryError(DriverError):
    """The device or the system has too little memory."""


class DeviceLostError(DriverError):
    """The device or its context is gone (an illegal access, a reset, an ECC error, a fall-off)."""


#: Results of the driver after which nothing in this context works any more (CUresult in cuda.h).
STICKY: dict[int, str] = {
    4: "CUDA_ERROR_DEINITIALIZED",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    214: "CUDA_ERROR_ECC_UNCORRECTABLE",
    220: "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    226: "CUDA_ERROR_CONTAINED",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    702: "CUDA_ERROR_LAUNCH_TIMEOUT",
    709: "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    710: "CUDA_ERROR_ASSERT",
    714: "CUDA_ERROR_HARDWARE_STACK_ERROR",
    715: "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    716: "CUDA_ERROR_MISALIGNED_ADDRESS",
    717: "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    718: "CUDA_ERROR_INVALID_PC",
    719: "CUDA_ERROR_LAUNCH_FAILED",
    721: "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    999: "CUDA_ERROR_UNKNOWN",
}
OUT_OF_MEMORY = 2


def error_of(code: int, name: str, call: str) -> DriverError:
    """Return the exception for result `code` (called `name`) of driver function `call`."""
    if code == OUT_OF_MEMORY:
        return OutOfMemoryError(f"{call}: {name}: not enough memory on the device")
    if code in STICKY:
        return DeviceLostError(f"{call}: {name} ({code}): the device's context is lost")
    return DriverError(f"{call}: {name} ({code})")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The card, as far as choices depend on it."""

    name: str
    arch: tuple[int, int]
    """Compute capability, e.g. (8, 9)."""
    memory_bytes: int
    l2_bytes: int
    multiprocessors: int
    driver_version: tuple[int, int]
    """Newest CUDA version that the driver runs, e.g. (13, 0)."""

    @property
    def sm(self) -> str:
        """Architecture as compilers name it, e.g. `sm_89`."""
        return f"sm_{self.arch[0]}{self.arch[1]}"


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Stream) -> None:
        """Put the point behind all work that `stream` has now."""

    def synchronize(self) -> None:
        """Block the thread until the point is passed. Raises DriverError for failed work."""

    @property
    def done(self) -> bool:
        """Whether the point is passed; never blocks."""

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds of device time from `since` to here; both must be passed."""


class Stream(Protocol):
    """Work in order."""

    @property
    def handle(self) -> int:
        """`CUstream` as an integer: TensorRT and torch (`ExternalStream`) run their work on it."""

    def synchronize(self) -> None:
        """Block the thread until all work is done. Raises DriverError for failed work."""

    def wait(self, event: Event) -> None:
        """Let later work wait for `event` (of any stream), on the device."""


class PinnedArray(Protocol):
    """Page-locked host memory, mapped: the device reads and writes it in place."""

    @property
    def array(self) -> Host:
        """The memory as numpy sees it; valid until `free`."""

    @property
    def pointer(self) -> int:
        """Address for kernels."""

    @property
    def nbytes(self) -> int:
        """Size."""

    def free(self) -> None:
        """Give the memory back; idempotent. No work that uses it may be under way."""


class DeviceArray(Protocol):
    """Memory on the device."""

    @property
    def pointer(self) -> int:
        """Address, aligned to 256 bytes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, C order."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    @property
    def nbytes(self) -> int:
        """Size."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, so that torch and CuPy take it without a copy."""

    def upload(self, source: PinnedArray | Host, stream: Stream) -> None:
        """Copy all of `source` (C-ordered, at most `nbytes`) to the start of this array.

        Asynchronous from a PinnedArray, which must not change until the copy is done; from
        other memory the driver stages it first. Raises ValueError when it does not fit.
        """

    def download(self, target: PinnedArray | Host, stream: Stream) -> None:
        """Copy the first bytes of this array to all of `target`; see `upload`."""

    def copy_from(self, source: DeviceArray, stream: Stream) -> None:
        """Copy all of `source`, at most `nbytes`, on the device."""

    def part(self, first: int, count: int = 1) -> DeviceArray:
        """Items [first, first + count) of the first axis: the same memory, which it keeps alive.

        Freeing a part does nothing. Raises IndexError outside the array.
        """

    def fill(self, byte: int, stream: Stream) -> None:
        """Set every byte."""

    def free(self) -> None:
        """Give the memory back; idempotent. No work that uses it may be under way."""


class Kernel(Protocol):
    """One entry point of a module."""

    @property
    def name(self) -> str:
        """The entry's name."""

    def launch(
        self,
        grid: Dims,
        block: Dims,
        params: ctypes.Structure,
        stream: Stream,
        shared_bytes: int = 0,
    ) -> None:
        """Start it. `params` is its only argument, passed by value and copied at once.

        Raises ValueError for a grid or block with a zero, DriverError when CUDA refuses.
        """


class Module(Protocol):
    """A loaded cubin or PTX."""

    def kernel(self, name: str) -> Kernel:
        """Return the entry `name`. Raises DriverError when there is none."""


class Graph(Protocol):
    """Recorded work, started with one call."""

    def launch(self, stream: Stream) -> None:
        """Start all of it. Raises DriverError before the capture has ended well."""

    def free(self) -> None:
        """Forget the recording; idempotent."""


class Context(Protocol):
    """A device, opened by one binding. Also a context manager that closes itself."""

    @property
    def binding(self) -> str:
        """`pycuda` or `cuda-python`."""

    @property
    def reason(self) -> str:
        """Why this binding, in words for `doctor`."""

    @property
    def device(self) -> DeviceInfo:
        """The card."""

    def make_current(self) -> None:
        """Make it the calling thread's current context again, if another took its place."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes on the device."""

    def stream(self) -> Stream:
        """Make a stream that does not wait for the default stream."""

    def event(self, timing: bool = False) -> Event:
        """Make an event; `timing` only for `elapsed_ms`."""

    def alloc(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Allocate device memory, uninitialised. Raises OutOfMemoryError."""

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> PinnedArray:
        """Allocate pinned, mapped host memory, uninitialised. Raises OutOfMemoryError."""

    def load(self, image: bytes) -> Module:
        """Load a cubin, fatbin or PTX. Raises DriverError with the driver's words."""

    def capture(self, stream: Stream) -> AbstractContextManager[Graph]:
        """Record what is put into `stream` inside the `with` block instead of running it.

        Only this thread's work is recorded (thread-local mode). Allocations, pinned or not, and
        synchronisation are not allowed inside. An exception inside ends the recording and the
        graph is void.
        """

    def synchronize(self) -> None:
        """Block until the device has done everything of this context."""

    def close(self) -> None:
        """Free everything that this context made; idempotent."""

    def __enter__(self) -> Context: ...

    def __exit__(self, *error: object) -> None: ...


Opener = Callable[[int], Context]
#: Bindings in order of preference: name, module with `open(ordinal) -> Context`.
BINDINGS: tuple[tuple[str, str], ...] = (
    ("pycuda", "kernels.driver.pycuda_binding"),
    ("cuda-python", "kernels.driver.cuda_python_binding"),
)


def open_context(ordinal: int = 0, binding: str | None = None) -> Context:
    """Open device `ordinal` in the calling thread, with the first binding that works.

    `binding` asks for one and for no other. A primary context that an earlier loss has left dead
    (TensorRT and torch keep it from being destroyed with ours) is reset first: whatever else
    still lies in it is gone anyway. Raises DriverMissingError, which names what each
    binding said.
    """
    wanted = [b for b in BINDINGS if binding in (None, b[0])]
    if not wanted:
        names = ", ".join(name for name, _ in BINDINGS)
        raise ValueError(f"no binding is called {binding!r}; there are: {names}")
    said: list[str] = []
    for name, module in wanted:
        try:
            context: Context = importlib.import_module(module).open(ordinal, "; ".join(said))
        except (ImportError, DriverMissingError) as error:
            said.append(f"{name} cannot be used ({error})")
        else:
            return context
    raise DriverMissingError("; ".join(said))


__all__ = [
    "BINDINGS",
    "Context",
    "DeviceArray",
    "DeviceInfo",
    "DeviceLostError",
    "Dims",
    "DriverError",
    "DriverMissingError",
    "Event",
    "Graph",
    "Kernel",
    "Module",
    "OutOfMemoryError",
    "PinnedArray",
    "Stream",
    "error_of",
    "open_context",
]
