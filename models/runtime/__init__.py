"""Choose and load a runtime. The choice is explicit; nothing falls back silently."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from models.checkpoint import Checkpoint, open_checkpoint
from models.runtime.base import BaseEngine
from models.runtime.engine import EngineError
from models.runtime.openvino_engine import OpenVINOEngine, Precision

EngineName = Literal["auto", "openvino", "tensorrt", "torch"]
_log = logging.getLogger("visavis.engine")


def load_engine(
    name: EngineName = "auto",
    checkpoint: Path | None = None,
    threads: int = 0,
    precision: Precision = "auto",
) -> BaseEngine:
    """Load, compile and warm up the networks, in the thread that will run them.

    `auto` takes TensorRT where there is an NVIDIA card and engines for it, torch on that
    card where there are none, else OpenVINO on the CPU; `reason` and the log say which, why,
    and what was missing. `precision` is OpenVINO's (`models.runtime.openvino_engine`).

    Raises:
        EngineError: unknown name, or the runtime cannot run here.
        models.checkpoint.CheckpointError: the checkpoint cannot be used.
    """
    if precision == "int8" and name not in ("auto", "openvino"):
        raise EngineError(f"the {name} engine has no INT8; use --engine openvino")
    opened = open_checkpoint(checkpoint)
    if name == "openvino" or (name == "auto" and precision != "auto"):
        engine: BaseEngine = OpenVINOEngine(opened, threads, precision)
    elif name == "auto":
        engine = _choose(opened, threads)
    elif name in _MAKERS:
        engine = _MAKERS[name](opened, threads)
    else:
        raise EngineError(f"unknown engine {name!r}; choose auto, {', '.join(_MAKERS)}")
    engine.warm_up()
    return engine


def has_nvidia_driver() -> bool:
    """Whether CUDA's driver library can be loaded; says nothing about a card."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def _choose(checkpoint: Checkpoint, threads: int) -> BaseEngine:
    """The best engine of this machine; what was passed over goes into its reason."""
    if not has_nvidia_driver():
        engine = _openvino(checkpoint, threads)
        engine.reason += " (chosen automatically: no NVIDIA driver)"
        return engine
    said = []
    for make in (_tensorrt, _torch_on_gpu):
        try:
            engine = make(checkpoint, threads)
        except EngineError as error:
            said.append(str(error))
            continue
        if said:
            engine.reason += f" (chosen automatically: {' '.join(said)})"
            _log.warning("TensorRT is not used: %s", " ".join(said))
        return engine
    engine = _openvino(checkpoint, threads)
    engine.reason += f" (chosen automatically: {' '.join(said)})"
    _log.warning("the GPU is not used: %s", " ".join(said))
    return engine


def _openvino(checkpoint: Checkpoint, threads: int) -> BaseEngine:
    return OpenVINOEngine(checkpoint, threads)


def _tensorrt(checkpoint: Checkpoint, threads: int) -> BaseEngine:
    from models.runtime.tensorrt_engine import TensorRTEngine

    return TensorRTEngine(checkpoint)


def _torch(checkpoint: Checkpoint, threads: int) -> BaseEngine:
    try:
        from models.runtime.torch_engine import make_torch_engine
    except ImportError as error:
        raise EngineError("torch is not installed: pip install -e '.[train]'") from error
    return make_torch_engine(checkpoint, threads)


def _torch_on_gpu(checkpoint: Checkpoint, threads: int) -> BaseEngine:
    try:
        from models.runtime.torch_engine import make_torch_engine
    except ImportError as error:
        raise EngineError("torch is not installed: pip install -e '.[gpu]'") from error
    return make_torch_engine(checkpoint, threads, require_gpu=True)


_MAKERS: dict[str, Callable[[Checkpoint, int], BaseEngine]] = {
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "torch": _torch,
}

__all__ = ["EngineName", "Precision", "has_nvidia_driver", "load_engine"]
