"""NVIDIA's cuda-python: the fallback where PyCUDA is not installed."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import numpy as np

try:  # cuda-python 12.8 and later; before, the same module was called cuda.cuda
    from cuda.bindings import driver as cu
except ImportError:
    from cuda import cuda as cu

from kernels import driver
from kernels.driver import (
    DeviceInfo,
    DeviceLostError,
    Dims,
    DriverError,
    DriverMissingError,
    Host,
    error_of,
)
from kernels.driver.calls import Allocation, Handle, PinnedAllocation
from kernels.driver.objects import DriverContext

_MAPPED = 0x02  # CU_MEMHOSTALLOC_DEVICEMAP
_NON_BLOCKING = 1
_NO_TIMING = 2
_THREAD_LOCAL = 1
_PARAM_BUFFER, _PARAM_SIZE = 1, 2
_NOT_READY = 600


def _check(call: str, result: tuple[Any, ...]) -> Any:
    """Return a call's values, or raise what its code means."""
    code, *values = result
    if int(code) != 0:
        raise error_of(int(code), code.name, call)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


class CudaPythonCalls:
    """See `kernels.driver.calls.Calls`."""

    binding = "cuda-python"

    def __init__(self, ordinal: int) -> None:
        _check("cuInit", cu.cuInit(0))
        self._device = _check("cuDeviceGet", cu.cuDeviceGet(ordinal))
        self._retain()
        try:
            self.synchronize()
        except DeviceLostError:
            # See `kernels.driver.open_context`.
            self.release()
            reset = cu.cuDevicePrimaryCtxReset(self._device)
            _check("cuDevicePrimaryCtxReset", reset)
            self._retain()
            self.synchronize()
        self.device = self._describe()

    def _retain(self) -> None:
        retained = cu.cuDevicePrimaryCtxRetain(self._device)
        self._context = _check("cuDevicePrimaryCtxRetain", retained)
        with suppress(DeviceLostError):
            self.make_current()

    def _describe(self) -> DeviceInfo:
        names = cu.CUdevice_attribute

        def attribute(name: str) -> int:
            which = getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(_check(name, cu.cuDeviceGetAttribute(which, self._device)))

        name = _check("cuDeviceGetName", cu.cuDeviceGetName(256, self._device))
        version = int(_check("cuDriverGetVersion", cu.cuDriverGetVersion()))
        return DeviceInfo(
            bytes(name).split(b"\0")[0].decode(),
            (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")),
            int(_check("cuDeviceTotalMem", cu.cuDeviceTotalMem(self._device))),
            attribute("L2_CACHE_SIZE"),
            attribute("MULTIPROCESSOR_COUNT"),
            (version // 1000, version % 1000 // 10),
        )

    def make_current(self) -> None:
        """See `Calls`."""
        _check("cuCtxSetCurrent", cu.cuCtxSetCurrent(self._context))

    def release(self) -> None:
        """See `Calls`."""
        cu.cuDevicePrimaryCtxRelease(self._device)

    def synchronize(self) -> None:
        """See `Calls`."""
        _check("cuCtxSynchronize", cu.cuCtxSynchronize())

    def memory(self) -> tuple[int, int]:
        """See `Calls`."""
        free, total = _check("cuMemGetInfo", cu.cuMemGetInfo())
        return int(free), int(total)

    def alloc(self, nbytes: int) -> Allocation:
        """See `Calls`."""
        owner = _check(f"cuMemAlloc of {nbytes} bytes", cu.cuMemAlloc(nbytes))
        return Allocation(int(owner), owner)

    def free(self, owner: Handle) -> None:
        """See `Calls`."""
        _check("cuMemFree", cu.cuMemFree(owner))

    def pinned(self, nbytes: int) -> PinnedAllocation:
        """See `Calls`."""
        host = _check(f"cuMemHostAlloc of {nbytes} bytes", cu.cuMemHostAlloc(nbytes, _MAPPED))
        address = int(host)
        mapped = _check("cuMemHostGetDevicePointer", cu.cuMemHostGetDevicePointer(address, 0))
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        return PinnedAllocation(np.ctypeslib.as_array(memory), int(mapped), address)

    def free_pinned(self, owner: Handle) -> None:
        """See `Calls`."""
        _check("cuMemFreeHost", cu.cuMemFreeHost(owner))

    def upload(self, pointer: int, source: Host, stream: Handle) -> None:
        """See `Calls`."""
        address = source.ctypes.data
        result = cu.cuMemcpyHtoDAsync(pointer, address, source.nbytes, stream)
        _check("cuMemcpyHtoDAsync", result)

    def download(self, target: Host, pointer: int, stream: Handle) -> None:
        """See `Calls`."""
        address = target.ctypes.data
        result = cu.cuMemcpyDtoHAsync(address, pointer, target.nbytes, stream)
        _check("cuMemcpyDtoHAsync", result)

    def copy(self, target: int, source: int, nbytes: int, stream: Handle) -> None:
        """See `Calls`."""
        _check("cuMemcpyDtoDAsync", cu.cuMemcpyDtoDAsync(target, source, nbytes, stream))

    def fill(self, pointer: int, byte: int, nbytes: int, stream: Handle) -> None:
        """See `Calls`."""
        _check("cuMemsetD8Async", cu.cuMemsetD8Async(pointer, byte, nbytes, stream))

    def stream(self) -> Handle:
        """See `Calls`."""
        return _check("cuStreamCreate", cu.cuStreamCreate(_NON_BLOCKING))

    def stream_handle(self, stream: Handle) -> int:
        """See `Calls`."""
        return int(stream)

    def stream_synchronize(self, stream: Handle) -> None:
        """See `Calls`."""
        _check("cuStreamSynchronize", cu.cuStreamSynchronize(stream))

    def stream_wait(self, stream: Handle, event: Handle) -> None:
        """See `Calls`."""
        _check("cuStreamWaitEvent", cu.cuStreamWaitEvent(stream, event, 0))

    def free_stream(self, stream: Handle) -> None:
        """See `Calls`."""
        _check("cuStreamDestroy", cu.cuStreamDestroy(stream))

    def event(self, timing: bool) -> Handle:
        """See `Calls`."""
        return _check("cuEventCreate", cu.cuEventCreate(0 if timing else _NO_TIMING))

    def record(self, event: Handle, stream: Handle) -> None:
        """See `Calls`."""
        _check("cuEventRecord", cu.cuEventRecord(event, stream))

    def event_synchronize(self, event: Handle) -> None:
        """See `Calls`."""
        _check("cuEventSynchronize", cu.cuEventSynchronize(event))

    def event_done(self, event: Handle) -> bool:
        """See `Calls`."""
        result = cu.cuEventQuery(event)
        if int(result[0]) == _NOT_READY:
            return False
        _check("cuEventQuery", result)
        return True

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        """See `Calls`."""
        return float(_check("cuEventElapsedTime", cu.cuEventElapsedTime(start, end)))

    def free_event(self, event: Handle) -> None:
        """See `Calls`."""
        _check("cuEventDestroy", cu.cuEventDestroy(event))

    def load(self, image: bytes) -> Handle:
        """See `Calls`."""
        # PTX must end in a zero byte; a cubin knows its own size.
        return _check("cuModuleLoadData", cu.cuModuleLoadData(image + b"\0"))

    def function(self, module: Handle, name: str) -> Handle:
        """See `Calls`."""
        found = cu.cuModuleGetFunction(module, name.encode())
        return _check(f"cuModuleGetFunction({name})", found)

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
        buffer = ctypes.create_string_buffer(params, len(params))
        size = ctypes.c_size_t(len(params))
        extra = (ctypes.c_void_p * 5)(
            _PARAM_BUFFER, ctypes.addressof(buffer), _PARAM_SIZE, ctypes.addressof(size), 0
        )
        address = ctypes.addressof(extra)
        result = cu.cuLaunchKernel(function, *grid, *block, shared_bytes, stream, 0, address)
        _check("cuLaunchKernel", result)

    def begin_capture(self, stream: Handle) -> None:
        """See `Calls`."""
        mode = cu.CUstreamCaptureMode(_THREAD_LOCAL)
        _check("cuStreamBeginCapture", cu.cuStreamBeginCapture(stream, mode))

    def end_capture(self, stream: Handle, keep: bool) -> Handle:
        """See `Calls`."""
        graph = _check("cuStreamEndCapture", cu.cuStreamEndCapture(stream))
        try:
            if not keep:
                return None
            return _check("cuGraphInstantiate", cu.cuGraphInstantiate(graph, 0))
        finally:
            cu.cuGraphDestroy(graph)

    def launch_graph(self, graph: Handle, stream: Handle) -> None:
        """See `Calls`."""
        _check("cuGraphLaunch", cu.cuGraphLaunch(graph, stream))

    def free_graph(self, graph: Handle) -> None:
        """See `Calls`."""
        _check("cuGraphExecDestroy", cu.cuGraphExecDestroy(graph))


def open(ordinal: int, reason: str) -> driver.Context:
    """Open a device. Raises DriverMissingError where there is no driver or no device."""
    try:
        calls = CudaPythonCalls(ordinal)
    except (RuntimeError, DriverError) as error:
        raise DriverMissingError(f"no CUDA device: {error}") from error
    return DriverContext(calls, reason or "cuda-python was asked for")


__all__ = ["CudaPythonCalls", "open"]
