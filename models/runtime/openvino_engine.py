"""OpenVINO on the CPU: the default where there is no NVIDIA card.

Inference runs in float32 (`INFERENCE_PRECISION_HINT`), so that it equals the torch
reference on every machine; OpenVINO would choose bfloat16 by itself on some. The one
exception is the generator's INT8 form, where the checkpoint carries it (`models.quantize`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from models.checkpoint import NETWORKS, Checkpoint
from models.codes import Array
from models.runtime.base import BaseEngine, Network
from models.runtime.engine import EngineError

#: `auto` is INT8 where the checkpoint has it and the processor multiplies bytes quickly.
Precision = Literal["auto", "float32", "int8"]


class OpenVINOEngine(BaseEngine):
    """All four networks compiled for this CPU; `threads` 0 lets OpenVINO choose."""

    name = "openvino"

    def __init__(
        self, checkpoint: Checkpoint, threads: int = 0, precision: Precision = "auto"
    ) -> None:
        super().__init__(checkpoint)
        try:
            import openvino
        except ImportError as error:
            raise EngineError("openvino is not installed: pip install openvino") from error
        core = openvino.Core()
        # Not pinned: a thread whose core another one uses may go on on a free one.
        options = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": "NO",
        }  # fmt: skip
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        able = "INT8" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        small = _int8_generator(checkpoint, precision, able)
        self._requests = {}
        for name in NETWORKS:
            path = small if small and name == "generator" else checkpoint.network(name)
            try:
                compiled = core.compile_model(str(path), "CPU", options)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO could not compile {path.name}: {error}") from error
            self._requests[name] = compiled.create_infer_request()
        numbers = "float32, generator INT8" if small else "float32"
        self.reason = f"OpenVINO {openvino.__version__.split('-')[0]} on the CPU, {numbers}"

    def run(self, network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
        """See `BaseEngine.run`. Outputs are copies: the next run may reuse OpenVINO's memory."""
        results = self._requests[network].infer(inputs, share_inputs=True)
        return {port.get_any_name(): np.array(value) for port, value in results.items()}


def _int8_generator(checkpoint: Checkpoint, precision: Precision, able: bool) -> Path | None:
    """The INT8 generator to use, None for float32. Raises EngineError when asked in vain."""
    path = checkpoint.path / "generator.int8.xml"
    if precision == "float32":
        return None
    if path.name in checkpoint.manifest["files"] and (able or precision == "int8"):
        return path
    if precision == "int8":
        raise EngineError(
            f"checkpoint {checkpoint.path.name} has no INT8 generator; "
            "make one with python -m trainer.calibrate, or use --precision float32"
        )
    return None
