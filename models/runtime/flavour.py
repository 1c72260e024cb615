"""`tensorrt` and `tensorrt_rtx` behind one surface: build a plan, load a plan, run it.

Both modules have the same interface; what differs is in this file only. `tensorrt_rtx`
compiles for a card it need not see (`set_compute_capability`) and specialises its kernels
when they first run; `tensorrt` measures kernels on the card that is there and its plans
belong to that card.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from models.runtime.engine import DeviceLostError, EngineError

FlavourName = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[FlavourName, ...] = get_args(FlavourName)
#: What installs each of them.
PACKAGES: Mapping[FlavourName, str] = {
    "tensorrt": "pip install -e '.[gpu]'",
    "tensorrt_rtx": "pip install tensorrt_rtx_cu13",
}
#: Targets that `tensorrt_rtx` compiles for ahead of time.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
MAX_BATCH = 16
#: Batch sizes that get a context and a CUDA graph of their own; others are padded up.
BATCH_SIZES = (1, 2, 4, 8, 16)
#: The batch that kernels are chosen for.
_TYPICAL_BATCH = 4
_log = logging.getLogger("visavis.tensorrt")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output; `shape` is without the batch axis."""

    shape: tuple[int, ...]
    dtype: Literal["float32", "float16"]

    @property
    def bytes_per_item(self) -> int:
        """Size of one batch item."""
        count = 1
        for length in self.shape:
            count *= length
        return count * (4 if self.dtype == "float32" else 2)


class BoundProgram(Protocol):
    """One network at one batch size, its tensors at fixed device addresses."""

    def enqueue(self, stream: int) -> None:
        """Put one execution into the CUDA stream of this handle; does not wait."""


class Program(Protocol):
    """One network on the device."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    scratch_bytes: int
    """Device memory an execution needs besides its tensors; may be shared between programs
    that never run at the same time."""

    def bind(self, batch: int, addresses: Mapping[str, int], scratch: int) -> BoundProgram:
        """Fix batch size, addresses of all inputs and outputs, and of the scratch memory."""


def installed_flavours() -> list[FlavourName]:
    """Flavours that can be imported here."""
    return [name for name in FLAVOURS if importlib.util.find_spec(name) is not None]


class TensorRT:
    """One installed flavour. Loading needs a GPU, building needs one only for `tensorrt`.

    Raises EngineError with the command that installs it.
    """

    def __init__(self, name: FlavourName) -> None:
        try:
            self._trt: Any = importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise EngineError(f"{name} cannot be used ({error}): {PACKAGES[name]}") from error
        self.name: FlavourName = name
        self.version: str = self._trt.__version__
        self._logger = _logger(self._trt)

    def build(self, onnx_model: bytes, target: str) -> tuple[bytes, Program]:
        """Compile a graph with a free batch axis for batches of 1 to 16.

        Returns the plan and a description of its tensors (which cannot run).

        Raises:
            EngineError: the target is unknown, or TensorRT refused the graph.
        """
        trt = self._trt
        self._logger.complaints.clear()
        try:
            builder = trt.Builder(self._logger)
        except TypeError as error:
            # What the binding makes of a null pointer.
            raise EngineError(f"{self.name} cannot build here: {self._said()}") from error
        # Where the flag is gone, every network is strongly typed.
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(1 << int(typed) if typed is not None else 0)
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(onnx_model):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise EngineError(f"{self.name} cannot read the graph: {errors}")
        config = builder.create_builder_config()
        if self.name == "tensorrt_rtx":
            if target not in RTX_TARGETS:
                raise EngineError(
                    f"tensorrt_rtx does not build for {target}; it knows {', '.join(RTX_TARGETS)}"
                )
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            shape = tuple(tensor.shape)[1:]
            sizes = ((n, *shape) for n in (1, _TYPICAL_BATCH, MAX_BATCH))
            profile.set_shape(tensor.name, *sizes)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{self.name} could not build for {target}: {self._said()}")
        return bytes(plan), _Described(trt, network)

    def load(self, plan: bytes) -> Program:
        """Put a plan on the current device. Raises EngineError."""
        self._logger.complaints.clear()
        try:
            runtime = self._trt.Runtime(self._logger)
            engine = runtime.deserialize_cuda_engine(plan)
        except TypeError:
            runtime = engine = None
        if engine is None:
            raise EngineError(f"{self.name} {self.version} cannot load the engine: {self._said()}")
        return _Loaded(self._trt, runtime, engine)

    def _said(self) -> str:
        return " ".join(self._logger.complaints[-3:]) or "it gave no reason"


def _logger(trt: Any) -> Any:
    """TensorRT's messages in our log; errors are kept for the exception that follows."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.complaints: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.complaints.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                _log.debug("%s", message)

    return Logger()


def _spec(trt: Any, shape: Any, dtype: Any) -> TensorSpec:
    return TensorSpec(tuple(shape)[1:], "float16" if dtype == trt.float16 else "float32")


class _Described:
    """Tensors of a network definition; `Program` without a device."""

    scratch_bytes = 0

    def __init__(self, trt: Any, network: Any) -> None:
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        self.inputs = {t.name: _spec(trt, t.shape, t.dtype) for t in tensors}
        tensors = [network.get_output(i) for i in range(network.num_outputs)]
        self.outputs = {t.name: _spec(trt, t.shape, t.dtype) for t in tensors}

    def bind(self, batch: int, addresses: Mapping[str, int], scratch: int) -> BoundProgram:
        raise EngineError("a plan that was only built must be loaded before it runs")


class _Loaded:
    """`Program` of an engine on the device."""

    def __init__(self, trt: Any, runtime: Any, engine: Any) -> None:
        self._trt, self._runtime, self._engine = trt, runtime, engine
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            spec = _spec(trt, engine.get_tensor_shape(name), engine.get_tensor_dtype(name))
            reads = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if reads else self.outputs)[name] = spec
        self.scratch_bytes = int(engine.device_memory_size_v2)

    def bind(self, batch: int, addresses: Mapping[str, int], scratch: int) -> BoundProgram:
        context = self._context()
        if context is None:
            raise DeviceLostError("TensorRT could not create a context; is device memory full?")
        if self.scratch_bytes:
            context.set_device_memory(scratch, self.scratch_bytes)
        for name, spec in self.inputs.items():
            if not context.set_input_shape(name, (batch, *spec.shape)):
                raise EngineError(f"the engine does not take {name} in a batch of {batch}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"the engine does not take the address of {name}")
        return _Bound(self._engine, context)

    def _context(self) -> Any:
        """A context whose scratch memory is ours; RTX compiles for its shapes at once."""
        trt = self._trt
        own = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return self._engine.create_execution_context(own)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(own)
        config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        return self._engine.create_execution_context(config)


class _Bound:
    def __init__(self, engine: Any, context: Any) -> None:
        # The engine must live as long as its contexts.
        self._engine, self._context = engine, context

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise DeviceLostError("TensorRT could not run the engine on the device")


__all__ = [
    "BATCH_SIZES", "FLAVOURS", "MAX_BATCH", "RTX_TARGETS", "BoundProgram", "FlavourName", "Program",
    "TensorRT", "TensorSpec", "installed_flavours",
]  # fmt: skip
