"""Graphs and resets through the driver library itself, for a binding without them (PyCUDA)."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from kernels.driver import DriverMissingError, error_of

_THREAD_LOCAL = 1
_Pointer = ctypes.c_void_p


class LibCuda:
    """The few calls that are needed; a current context is the caller's business.

    `library` is the loaded driver library; tests pass one of their own.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = library if library is not None else _load()

    def _call(self, name: str, *args: Any) -> None:
        code = int(getattr(self._library, name)(*args))
        if code != 0:
            raise error_of(code, self._name_of(code), name)

    def _name_of(self, code: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(text))
        return (text.value or b"unknown error").decode()

    def context_state(self) -> None:
        """Raise DeviceLostError when the current context is dead; waits for its work."""
        self._call("cuCtxSynchronize")

    def reset(self, ordinal: int) -> None:
        """Throw away the primary context of a device, whoever holds it."""
        self._call("cuDevicePrimaryCtxReset_v2", ordinal)

    def begin_capture(self, stream: int) -> None:
        """Begin to record stream `stream` (a CUstream), thread-local mode."""
        self._call("cuStreamBeginCapture_v2", _Pointer(stream), _THREAD_LOCAL)

    def end_capture(self, stream: int, keep: bool) -> int | None:
        """End the recording; return a CUgraphExec, None unless `keep`."""
        graph, executable = _Pointer(), _Pointer()
        self._call("cuStreamEndCapture", _Pointer(stream), ctypes.byref(graph))
        try:
            if not keep:
                return None
            flags = ctypes.c_ulonglong(0)
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
        finally:
            self._library.cuGraphDestroy(graph)
        return executable.value

    def launch_graph(self, graph: int, stream: int) -> None:
        """Start a CUgraphExec."""
        self._call("cuGraphLaunch", _Pointer(graph), _Pointer(stream))

    def free_graph(self, graph: int) -> None:
        """Destroy a CUgraphExec."""
        self._call("cuGraphExecDestroy", _Pointer(graph))


def _load() -> Any:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DriverMissingError(f"the CUDA driver is not installed ({error})") from error


__all__ = ["LibCuda"]
