"""A GPU without a GPU: `kernels.host`'s device, watched, with networks that run on it.

Addresses are real: the networks (ONNX Runtime on the rewritten graphs) and the host-compiled
kernels read and write them as they would on a card.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime

from kernels.driver import DeviceInfo, error_of
from kernels.driver.calls import Allocation, PinnedAllocation
from kernels.host import HostCalls
from models.runtime.flavour import BoundProgram, FlavourName, Program, TensorSpec

CARD = DeviceInfo("Fake RTX", (8, 6), 8 << 30, 4 << 20, 28, (13, 0))


def memory(pointer: int, nbytes: int) -> np.ndarray:
    """(nbytes,) uint8 of host memory at an address."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))


def tensor(pointer: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array at an address."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return memory(pointer, count).view(dtype).reshape(shape)


class WatchedCalls(HostCalls):
    """`calls` counts by name, `order` lists what ran on the stream; a failure can be ordered."""

    def __init__(self) -> None:
        super().__init__()
        self.device = CARD
        self.calls: Counter[str] = Counter()
        self.order: list[str] = []
        self.fail_next = 0
        """A result of CUDA (`kernels.driver.STICKY`) that the next synchronisation ends with."""
        self.released = False
        self._name = ""
        self._streams_made: list[Any] = []

    def on_stream(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` now, or when the graph that is being captured is launched."""
        self._name = name
        self._do(self._streams_made[0], work)

    def _do(self, stream: Any, work: Callable[[], None]) -> None:
        name = self._name

        def named() -> None:
            self.order.append(name)
            work()

        super()._do(stream, named)

    def _not_while_capturing(self) -> None:
        capturing = any(s.recorded is not None for s in self._streams_made)
        assert not capturing, "nothing may be allocated while a stream is captured"

    def stream(self) -> Any:
        self._streams_made.append(super().stream())
        return self._streams_made[-1]

    def alloc(self, nbytes: int) -> Allocation:
        self._not_while_capturing()
        self.calls["alloc"] += 1
        return super().alloc(nbytes)

    def pinned(self, nbytes: int) -> PinnedAllocation:
        self._not_while_capturing()
        self.calls["pinned"] += 1
        return super().pinned(nbytes)

    def upload(self, pointer: int, source: np.ndarray, stream: Any) -> None:
        self._name = "upload"
        super().upload(pointer, source, stream)

    def download(self, target: np.ndarray, pointer: int, stream: Any) -> None:
        self._name = "download"
        super().download(target, pointer, stream)

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self._name = "copy"
        super().copy(target, source, nbytes, stream)

    def fill(self, pointer: int, byte: int, nbytes: int, stream: Any) -> None:
        self._name = "fill"
        super().fill(pointer, byte, nbytes, stream)

    def launch(
        self, function: Any, grid: Any, block: Any, params: bytes, stream: Any, shared_bytes: int
    ) -> None:
        self._name = function[0]
        super().launch(function, grid, block, params, stream, shared_bytes)

    def stream_synchronize(self, stream: Any) -> None:
        self.calls["synchronize"] += 1
        super().stream_synchronize(stream)
        if self.fail_next:
            code, self.fail_next = self.fail_next, 0
            raise error_of(code, "FAKE", "cuStreamSynchronize")

    def end_capture(self, stream: Any, keep: bool) -> Any:
        self.calls["graph"] += keep
        return super().end_capture(stream, keep)

    def launch_graph(self, graph: Any, stream: Any) -> None:
        self._alive()
        self.calls["launch_graph"] += 1
        self.order.append("graph")
        for work in graph:
            work()

    def release(self) -> None:
        self.released = True


class GraphProgram:
    """A `Program` that runs its ONNX graph on the CPU, from and to addresses."""

    scratch_bytes = 1024

    def __init__(self, calls: WatchedCalls, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._calls = calls
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {i.name: _spec(i) for i in self._session.get_inputs()}
        self.outputs = {o.name: _spec(o) for o in self._session.get_outputs()}
        self.asleep = False
        """While true, executions are counted but compute nothing."""

    def bind(self, batch: int, addresses: Mapping[str, int], scratch: int) -> BoundProgram:
        assert scratch % 256 == 0
        assert addresses.keys() == self.inputs.keys() | self.outputs.keys()
        views = {
            n: tensor(addresses[n], (batch, *s.shape), s.dtype)
            for n, s in (self.inputs | self.outputs).items()
        }

        def execute() -> None:
            if self.asleep:
                return
            found = self._session.run(list(self.outputs), {n: views[n] for n in self.inputs})
            for name, value in zip(self.outputs, found, strict=True):
                views[name][:] = value

        return _bound(self._calls, f"network x{batch}", execute)


def _spec(value: Any) -> TensorSpec:
    kind = "float16" if value.type == "tensor(float16)" else "float32"
    return TensorSpec(tuple(value.shape[1:]), kind)  # type: ignore[arg-type]


class GraphFlavour:
    """A flavour whose plans are the graphs themselves; `asleep` programs compute nothing."""

    version = "1.0"

    def __init__(
        self, name: FlavourName = "tensorrt_rtx", calls: WatchedCalls | None = None
    ) -> None:
        self.name = name
        self._calls = calls or WatchedCalls()
        self.programs: list[GraphProgram] = []

    def build(self, onnx_model: bytes, target: str) -> tuple[bytes, Program]:
        return onnx_model, GraphProgram(self._calls, onnx_model)

    def load(self, plan: bytes) -> Program:
        self.programs.append(GraphProgram(self._calls, plan))
        self.programs[-1].asleep = True
        return self.programs[-1]

    def wake(self) -> None:
        """From now on executions compute; until then warming up costs nothing."""
        for program in self.programs:
            program.asleep = False


class FunctionProgram:
    """A `Program` that is a numpy function on named batches."""

    scratch_bytes = 0

    def __init__(
        self,
        calls: WatchedCalls,
        inputs: dict[str, tuple[int, ...]],
        outputs: dict[str, tuple[int, ...]],
        function: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    ) -> None:
        self._calls, self._function = calls, function
        self.inputs = {n: TensorSpec(s, "float32") for n, s in inputs.items()}
        self.outputs = {n: TensorSpec(s, "float32") for n, s in outputs.items()}

    def bind(self, batch: int, addresses: Mapping[str, int], scratch: int) -> BoundProgram:
        views = {
            n: tensor(addresses[n], (batch, *s.shape), s.dtype)
            for n, s in (self.inputs | self.outputs).items()
        }

        def execute() -> None:
            for name, value in self._function({n: views[n] for n in self.inputs}).items():
                views[name][:] = value

        return _bound(self._calls, f"network x{batch}", execute)


def _bound(calls: WatchedCalls, name: str, execute: Callable[[], None]) -> BoundProgram:
    class Bound:
        def enqueue(self, stream: int) -> None:
            calls.on_stream(name, execute)

    return Bound()


__all__ = [
    "CARD", "FunctionProgram", "GraphFlavour", "GraphProgram", "WatchedCalls", "tensor",
]  # fmt: skip
