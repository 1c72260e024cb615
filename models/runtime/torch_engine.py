"""Torch: the reference every other runtime is compared with."""

from __future__ import annotations

import torch

from models.checkpoint import Checkpoint
from models.codes import Array
from models.networks import load_networks
from models.runtime.base import BaseEngine, Network


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
