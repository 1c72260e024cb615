"""OpenVINO on the CPU: the default where there is no NVIDIA card.

Inference runs in float32 (`INFERENCE_PRECISION_HINT`), so that it equals the torch
reference on every machine; OpenVINO would choose bfloat16 by itself on some.
"""

from __future__ import annotations

import numpy as np

from models.checkpoint import NETWORKS, Checkpoint
from models.codes import Array
from models.runtime.base import BaseEngine, Network
from models.runtime.engine import EngineError


class OpenVINOEngine(BaseEngine):
    """All four networks compiled for this CPU; `threads` 0 lets OpenVINO choose."""

    name = "openvino"

    def __init__(self, checkpoint: Checkpoint, threads: int = 0) -> None:
        super().__init__(checkpoint)
        try:
            import openvino
        except ImportError as error:
            raise EngineError("openvino is not installed: pip install openvino") from error
        core = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self._requests = {}
        for name in NETWORKS:
            try:
                compiled = core.compile_model(str(checkpoint.network(name)), "CPU", options)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO could not compile {name}.onnx: {error}") from error
            self._requests[name] = compiled.create_infer_request()
        self.reason = f"OpenVINO {openvino.__version__.split('-')[0]} on the CPU, float32"

    def run(self, network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
        """See `BaseEngine.run`. Outputs are copies: the next run may reuse OpenVINO's memory."""
        results = self._requests[network].infer(inputs, share_inputs=True)
        return {port.get_any_name(): np.array(value) for port, value in results.items()}
