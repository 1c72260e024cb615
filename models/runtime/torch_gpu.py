"""Torch on an NVIDIA card: float16, channels last, CUDA graphs; for cards without TensorRT.

Convolutions and linear layers are float16, everything else (face model, flow, positions)
float32, as in the TensorRT engines. Frames (`torch_frames`) and webcams' crops (`torch_yuv`) are
made by torch's own operations. With `device="cpu"` the same code runs eagerly, which is how it is
tested without a card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.checkpoint import Checkpoint
from models.codes import Array
from models.networks import Networks, load_networks
from models.rates import MEL_BANDS
from models.runtime.base import BaseEngine, Network, motion_readings, to_network
from models.runtime.engine import DeviceLostError, EngineError, MotionReading, YuvPicture
from models.runtime.flavour import BATCH_SIZES, MAX_BATCH
from models.runtime.frames import FrameRenderer
from models.runtime.torch_frames import TorchFrameRenderer
from models.runtime.torch_graph import BatchRunner, Place
from models.runtime.torch_yuv import TorchYuvReader

#: Output sizes that are recorded before the engine is ready; others when first asked for.
SIZES = (256, 384, 512)
T = TypeVar("T")


def half_layers(networks: Networks) -> None:
    """Let convolutions and linear layers compute in float16, channels last, in place."""

    def to_half(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (x,) = inputs
        if x.ndim == 4:
            return (x.to(torch.float16, memory_format=torch.channels_last),)
        return (x.half(),)

    for module in networks.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.half()
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Linear):
            module.half()
        else:
            continue
        module.register_forward_pre_hook(to_half)


class TorchGpuEngine(BaseEngine):
    """See the module's docstring. One thread, the one that made it.

    Raises:
        EngineError: the card cannot be used or has too little memory.
    """

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, device: str = "cuda") -> None:
        super().__init__(checkpoint)
        self.device = torch.device(device)
        try:
            networks = load_networks(checkpoint).to(self.device)
        except RuntimeError as error:
            raise EngineError(f"torch cannot use {device}: {error}") from error
        half_layers(networks)
        self.networks = networks
        place = Place.on(self.device)
        self._runners = {n: BatchRunner(net, place) for n, net in networks.named()}
        self._renderer = TorchFrameRenderer(
            networks.generator, place, lambda: self.generator_shapes, guarded
        )
        self._yuv_reader = TorchYuvReader(self._runners["motion"], self.config.image_size, place)
        card = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else device
        self.reason = (
            f"torch {torch.__version__} on {card}, float16, channels last, CUDA graphs; "
            "TensorRT would be faster"
        )

    @torch.inference_mode()
    def run(self, network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
        """See `BaseEngine.run`."""
        return guarded(lambda: self._runners[network].run(inputs))

    @cached_property
    def generator_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each of the generator's inputs, without the batch axis."""
        size = self.config.image_size
        feed = self.resting(np.zeros((size, size, 3), np.uint8))
        return {name: array.shape[1:] for name, array in feed.items()}

    def warm_up(self) -> None:
        """Run everything once; on a card record every graph, so that no frame waits for it."""
        super().warm_up()
        if self.device.type != "cuda":
            return
        face = np.zeros((self.config.image_size, self.config.image_size, 3), np.uint8)
        mel = np.zeros((MAX_BATCH, self.config.mel_window, MEL_BANDS), np.float32)
        for batch in BATCH_SIZES:
            self.audio_batch(mel[:batch])
            self.motion_batch([face] * batch)
            for size in SIZES:
                guarded(partial(self._renderer.plan, batch, size))

    def audio_batch(self, mel_BTM: Array) -> Array:
        """See `Engine.audio_batch`."""
        expected = (self.config.mel_window, MEL_BANDS)
        if mel_BTM.ndim != 3 or not len(mel_BTM) or mel_BTM.shape[1:] != expected:
            raise ValueError(f"mel windows must be (B, {expected}), got {mel_BTM.shape}")
        parts = [
            self.run("audio", {"mel": mel_BTM[i : i + MAX_BATCH]})["lip"]
            for i in range(0, len(mel_BTM), MAX_BATCH)
        ]
        return np.concatenate(parts)

    def motion_batch(self, faces: Sequence[NDArray[np.uint8]]) -> list[MotionReading]:
        """See `Engine.motion_batch`."""
        found: list[MotionReading] = []
        for i in range(0, len(faces), MAX_BATCH):
            crops_BCHW = np.concatenate([to_network(f) for f in faces[i : i + MAX_BATCH]])
            found += motion_readings(self.run("motion", {"face": crops_BCHW}))
        return found

    def motion_yuv(self, picture: YuvPicture, transform: Array) -> MotionReading:
        """See `ReadsYuv.motion_yuv`; the crop is cut on the card."""
        return self.motion_yuv_batch([(picture, transform)])[0]

    @torch.inference_mode()
    def motion_yuv_batch(self, crops: Sequence[tuple[YuvPicture, Array]]) -> list[MotionReading]:
        """See `ReadsYuv.motion_yuv_batch`; up to 16 at once."""
        found: list[MotionReading] = []
        for i in range(0, len(crops), MAX_BATCH):
            part = crops[i : i + MAX_BATCH]
            found += motion_readings(guarded(partial(self._yuv_reader.read, part)))
        return found

    def frame_renderer(self) -> FrameRenderer:
        """See `models.runtime.frames.DrawsFrames`."""
        return self._renderer


def guarded(work: Callable[[], T]) -> T:
    """Run `work`; torch's CUDA errors become ours.

    CUDA errors other than full memory stay with the process's context, so the engine is lost.
    """
    try:
        return work()
    except torch.OutOfMemoryError as error:
        raise EngineError(f"The GPU has too little memory: {error}") from error
    except RuntimeError as error:
        if "CUDA error" in str(error) or isinstance(error, torch.AcceleratorError):
            raise DeviceLostError(f"The GPU was lost: {error}") from error
        raise
