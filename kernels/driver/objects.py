"""The objects of `kernels.driver`, over any binding's `Calls`."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from kernels import driver
from kernels.driver import DeviceInfo, DeviceLostError, Dims, DriverError, Host
from kernels.driver.calls import Calls, Handle


def _bytes_of(array: Host, writable: bool) -> Host:
    """(n,) uint8 view of a C-ordered array."""
    if not array.flags.c_contiguous:
        raise ValueError("host memory must be C-contiguous")
    if writable and not array.flags.writeable:
        raise ValueError("host memory is read-only")
    return array.reshape(-1).view(np.uint8)


class _Owned:
    """Something of a context that is freed once, at the latest when the context closes."""

    def __init__(self, context: DriverContext) -> None:
        self._context = context
        self._freed = False
        context.adopt(self)

    def free(self) -> None:
        """Give it back; idempotent. After the device is lost there is nothing to give back."""
        if self._freed:
            return
        self._freed = True
        self._context.disown(self)
        with suppress(DeviceLostError):
            self._release()

    def _release(self) -> None:
        raise NotImplementedError


class DriverEvent(_Owned):
    """See `kernels.driver.Event`."""

    def __init__(self, context: DriverContext, timing: bool) -> None:
        self._calls = context.calls
        self.raw: Handle = self._calls.event(timing)
        super().__init__(context)

    def record(self, stream: driver.Stream) -> None:
        """See `Event.record`."""
        self._calls.record(self.raw, raw_stream(stream))

    def synchronize(self) -> None:
        """See `Event.synchronize`."""
        self._calls.event_synchronize(self.raw)

    @property
    def done(self) -> bool:
        """See `Event.done`."""
        return self._calls.event_done(self.raw)

    def elapsed_ms(self, since: driver.Event) -> float:
        """See `Event.elapsed_ms`."""
        return self._calls.elapsed_ms(_raw_event(since), self.raw)

    def _release(self) -> None:
        self._calls.free_event(self.raw)


class DriverStream(_Owned):
    """See `kernels.driver.Stream`."""

    def __init__(self, context: DriverContext) -> None:
        self._calls = context.calls
        self.raw: Handle = self._calls.stream()
        super().__init__(context)

    @property
    def handle(self) -> int:
        """See `Stream.handle`."""
        return self._calls.stream_handle(self.raw)

    def synchronize(self) -> None:
        """See `Stream.synchronize`."""
        self._calls.stream_synchronize(self.raw)

    def wait(self, event: driver.Event) -> None:
        """See `Stream.wait`."""
        self._calls.stream_wait(self.raw, _raw_event(event))

    def _release(self) -> None:
        self._calls.free_stream(self.raw)


def raw_stream(stream: driver.Stream) -> Handle:
    """The binding's own stream; a stream of another context is an error."""
    if not isinstance(stream, DriverStream):
        raise TypeError(f"{stream!r} was not made by a kernels.driver context")
    return stream.raw


def _raw_event(event: driver.Event) -> Handle:
    if not isinstance(event, DriverEvent):
        raise TypeError(f"{event!r} was not made by a kernels.driver context")
    return event.raw


class DriverPinned(_Owned):
    """See `kernels.driver.PinnedArray`."""

    def __init__(self, context: DriverContext, shape: Sequence[int], dtype: DTypeLike) -> None:
        self._calls = context.calls
        kind = np.dtype(dtype)
        count = math.prod(shape)
        # A driver refuses to allocate nothing.
        memory, self.pointer, self._owner = self._calls.pinned(max(count * kind.itemsize, 1))
        self.nbytes = count * kind.itemsize
        self.array: Host = memory[: self.nbytes].view(kind).reshape(tuple(shape))
        super().__init__(context)

    def _release(self) -> None:
        self._calls.free_pinned(self._owner)


class DriverArray(_Owned):
    """See `kernels.driver.DeviceArray`."""

    def __init__(self, context: DriverContext, shape: Sequence[int], dtype: DTypeLike) -> None:
        self._calls = context.calls
        self.shape = tuple(int(n) for n in shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.pointer, self._owner = self._calls.alloc(max(self.nbytes, 1))
        super().__init__(context)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """See `DeviceArray.__cuda_array_interface__`."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def upload(self, source: driver.PinnedArray | Host, stream: driver.Stream) -> None:
        """See `DeviceArray.upload`."""
        host = source if isinstance(source, np.ndarray) else source.array
        self._fits(host.nbytes)
        self._calls.upload(self.pointer, _bytes_of(host, writable=False), raw_stream(stream))

    def download(self, target: driver.PinnedArray | Host, stream: driver.Stream) -> None:
        """See `DeviceArray.download`."""
        host = target if isinstance(target, np.ndarray) else target.array
        self._fits(host.nbytes)
        self._calls.download(_bytes_of(host, writable=True), self.pointer, raw_stream(stream))

    def copy_from(self, source: driver.DeviceArray, stream: driver.Stream) -> None:
        """See `DeviceArray.copy_from`."""
        self._fits(source.nbytes)
        self._calls.copy(self.pointer, source.pointer, source.nbytes, raw_stream(stream))

    def part(self, first: int, count: int = 1) -> driver.DeviceArray:
        """See `DeviceArray.part`."""
        return _Part(self, first, count)

    def fill(self, byte: int, stream: driver.Stream) -> None:
        """See `DeviceArray.fill`."""
        self._fits(self.nbytes)
        self._calls.fill(self.pointer, byte, self.nbytes, raw_stream(stream))

    def _fits(self, nbytes: int) -> None:
        if self._freed:
            raise ValueError("the array was freed")
        if nbytes > self.nbytes:
            raise ValueError(f"{nbytes} bytes do not fit into an array of {self.nbytes}")

    def _release(self) -> None:
        self._calls.free(self._owner)


class _Part(DriverArray):
    """Some items of an array; keeps it alive, frees nothing."""

    def __init__(self, whole: DriverArray, first: int, count: int) -> None:
        if not whole.shape or first < 0 or count < 0 or first + count > whole.shape[0]:
            raise IndexError(f"items {first}..{first + count} of an array {whole.shape}")
        self._whole = whole
        self._calls = whole._calls
        self._freed = False
        self.shape = (count, *whole.shape[1:])
        self.dtype = whole.dtype
        item = math.prod(self.shape[1:]) * self.dtype.itemsize
        self.nbytes = count * item
        self.pointer = whole.pointer + first * item

    def free(self) -> None:
        """Do nothing: the memory is the whole array's."""

    def _fits(self, nbytes: int) -> None:
        self._freed = self._whole._freed
        super()._fits(nbytes)


class DriverKernel:
    """See `kernels.driver.Kernel`."""

    def __init__(self, calls: Calls, module: Handle, name: str) -> None:
        self._calls = calls
        self.name = name
        # The module stays loaded as long as one of its entries is known.
        self._module = module
        self._function = calls.function(module, name)

    def launch(
        self,
        grid: Dims,
        block: Dims,
        params: ctypes.Structure,
        stream: driver.Stream,
        shared_bytes: int = 0,
    ) -> None:
        """See `Kernel.launch`."""
        if min(*grid, *block) < 1:
            raise ValueError(f"{self.name}: empty launch, grid {grid}, block {block}")
        packed = bytes(params)
        self._calls.launch(self._function, grid, block, packed, raw_stream(stream), shared_bytes)


class DriverModule:
    """See `kernels.driver.Module`."""

    def __init__(self, calls: Calls, image: bytes) -> None:
        self._calls = calls
        self._module = calls.load(image)

    def kernel(self, name: str) -> driver.Kernel:
        """See `Module.kernel`."""
        return DriverKernel(self._calls, self._module, name)


class DriverGraph(_Owned):
    """See `kernels.driver.Graph`."""

    def __init__(self, context: DriverContext) -> None:
        self._calls = context.calls
        self.raw: Handle | None = None
        super().__init__(context)

    def launch(self, stream: driver.Stream) -> None:
        """See `Graph.launch`."""
        if self.raw is None or self._freed:
            raise DriverError("this graph was not captured, or it was freed")
        self._calls.launch_graph(self.raw, raw_stream(stream))

    def _release(self) -> None:
        if self.raw is not None:
            self._calls.free_graph(self.raw)


class DriverContext:
    """See `kernels.driver.Context`."""

    def __init__(self, calls: Calls, reason: str) -> None:
        self.calls = calls
        self.reason = reason
        self._owned: set[_Owned] = set()
        self._closed = False
        self._finalizer = weakref.finalize(self, calls.release)
        # At interpreter exit the driver may be gone already; the process gives all back.
        self._finalizer.atexit = False

    @property
    def binding(self) -> str:
        """See `Context.binding`."""
        return self.calls.binding

    @property
    def device(self) -> DeviceInfo:
        """See `Context.device`."""
        return self.calls.device

    def adopt(self, owned: _Owned) -> None:
        """Remember what is to be freed with the context, at the latest."""
        self._owned.add(owned)

    def disown(self, owned: _Owned) -> None:
        """Forget what was freed."""
        self._owned.discard(owned)

    def make_current(self) -> None:
        """See `Context.make_current`."""
        self.calls.make_current()

    def memory(self) -> tuple[int, int]:
        """See `Context.memory`."""
        return self.calls.memory()

    def stream(self) -> driver.Stream:
        """See `Context.stream`."""
        return DriverStream(self)

    def event(self, timing: bool = False) -> driver.Event:
        """See `Context.event`."""
        return DriverEvent(self, timing)

    def alloc(self, shape: Sequence[int], dtype: DTypeLike) -> driver.DeviceArray:
        """See `Context.alloc`."""
        return DriverArray(self, shape, dtype)

    def pinned(self, shape: Sequence[int], dtype: DTypeLike) -> driver.PinnedArray:
        """See `Context.pinned`."""
        return DriverPinned(self, shape, dtype)

    def load(self, image: bytes) -> driver.Module:
        """See `Context.load`."""
        return DriverModule(self.calls, image)

    @contextmanager
    def capture(self, stream: driver.Stream) -> Iterator[driver.Graph]:
        """See `Context.capture`."""
        graph = DriverGraph(self)
        raw = raw_stream(stream)
        self.calls.begin_capture(raw)
        try:
            yield graph
        except BaseException:
            # An invalid capture fails to end, too; the first error is the one to tell.
            with suppress(DriverError):
                self.calls.end_capture(raw, keep=False)
            raise
        graph.raw = self.calls.end_capture(raw, keep=True)

    def synchronize(self) -> None:
        """See `Context.synchronize`."""
        self.calls.synchronize()

    def close(self) -> None:
        """See `Context.close`."""
        if self._closed:
            return
        self._closed = True
        for owned in list(self._owned):
            owned.free()
        self._owned.clear()
        self._finalizer()

    def __enter__(self) -> driver.Context:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


__all__ = ["DriverContext", "raw_stream"]
