"""Torch: the reference on the CPU, and the runtime of a card without TensorRT.

On the CPU it is eager float32, what every other runtime is compared with. On a card
(`models.runtime.torch_gpu`) it is float16, channels last, one CUDA graph per batch size.
Which of the two runs stands in `reason` and in the log.
"""

from __future__ import annotations

import logging

import torch

from models.checkpoint import Checkpoint
from models.codes import Array
from models.networks import load_networks
from models.runtime.base import BaseEngine, Network
from models.runtime.engine import EngineError

_log = logging.getLogger("visavis.torch")


class TorchEngine(BaseEngine):
    """Eager float32 networks on the CPU."""

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, threads: int = 0) -> None:
        super().__init__(checkpoint)
        if threads:
            torch.set_num_threads(threads)
        self._networks = load_networks(checkpoint)
        self.reason = f"torch {torch.__version__} on the CPU, float32 reference"

    @torch.inference_mode()
    def run(self, network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
        """See `BaseEngine.run`."""
        wrapped = self._networks[network]
        tensors = [torch.from_numpy(inputs[name]) for name in wrapped.inputs]
        outputs = wrapped(*tensors)
        return {n: t.numpy() for n, t in zip(wrapped.outputs, outputs, strict=True)}


def make_torch_engine(
    checkpoint: Checkpoint, threads: int = 0, *, require_gpu: bool = False
) -> BaseEngine:
    """The card where torch sees one, else the CPU, unless `require_gpu`.

    Raises:
        EngineError: `require_gpu`, and torch sees no card.
    """
    if torch.cuda.is_available():
        from models.runtime.torch_gpu import TorchGpuEngine

        engine: BaseEngine = TorchGpuEngine(checkpoint)
    elif require_gpu:
        built = torch.version.cuda
        why = f"it was built for CUDA {built}" if built else "this build of torch has no CUDA"
        raise EngineError(f"torch sees no NVIDIA card ({why}).")
    else:
        engine = TorchEngine(checkpoint, threads)
    _log.warning("engine: %s", engine.reason)
    return engine
