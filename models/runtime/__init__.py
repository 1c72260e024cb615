"""Choose and load a runtime. The choice is explicit; nothing falls back silently."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from models.checkpoint import open_checkpoint
from models.runtime.base import BaseEngine
from models.runtime.engine import EngineError

EngineName = Literal["auto", "openvino", "torch"]


def load_engine(
    name: EngineName = "auto", checkpoint: Path | None = None, threads: int = 0
) -> BaseEngine:
    """Load, compile and warm up the networks; `auto` is OpenVINO on the CPU.

    Raises:
        EngineError: unknown name, or the runtime cannot run here.
        models.checkpoint.CheckpointError: the checkpoint cannot be used.
    """
    opened = open_checkpoint(checkpoint)
    engine: BaseEngine
    if name in ("auto", "openvino"):
        from models.runtime.openvino_engine import OpenVINOEngine

        engine = OpenVINOEngine(opened, threads)
    elif name == "torch":
        try:
            from models.runtime.torch_engine import TorchEngine
        except ImportError as error:
            raise EngineError("torch is not installed: pip install 'visavis[train]'") from error
        engine = TorchEngine(opened, threads)
    else:
        raise EngineError(f"unknown engine {name!r}; choose auto, openvino or torch")
    if name == "auto":
        engine.reason += " (chosen automatically: no GPU runtime is built in yet)"
    engine.warm_up()
    return engine
