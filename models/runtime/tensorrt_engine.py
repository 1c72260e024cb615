"""TensorRT on an NVIDIA card: built engines, one CUDA context, one stream, one thread.

The object owns the context and everything in it. Whoever creates it (the render worker's
thread) is the only caller, and `close` or the end of the thread gives all of it back. A lost
device raises `DeviceLostError` from every call; then a new engine must be made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernels import driver
from kernels.compiler import CompileError, NoCompilerError
from kernels.operation import Library
from models.checkpoint import NETWORKS, Checkpoint
from models.codes import Array
from models.rates import MEL_BANDS
from models.runtime.base import BaseEngine, Network, motion_readings, to_network
from models.runtime.device_network import Device, DeviceNetwork, HostRunner
from models.runtime.engine import EngineError, MotionReading, YuvPicture
from models.runtime.engine_cache import open_engines
from models.runtime.flavour import (
    BATCH_SIZES,
    FLAVOURS,
    MAX_BATCH,
    FlavourName,
    Program,
    TensorRT,
)
from models.runtime.frames import FrameRenderer
from models.runtime.gpu_frames import GpuFrameRenderer
from models.runtime.kernel_compositor import KernelCompositor
from models.runtime.yuv_reader import YuvReader

#: Networks that run for many sessions at once through host memory.
_OF_SESSIONS = ("audio", "motion")
_log = logging.getLogger("visavis.tensorrt")


class Loader(Protocol):
    """What the engine needs of a flavour: `TensorRT`."""

    name: FlavourName
    version: str

    def load(self, plan: bytes) -> Program:
        """See `TensorRT.load`."""


class TensorRTEngine(BaseEngine):
    """All networks as engines on the card; `frame_renderer` draws whole frames there.

    `flavour` None takes the first that is installed and has engines for this card.

    Raises:
        EngineError: no driver, no flavour, or no engine that fits; the message says what to run.
    """

    name = "tensorrt"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        flavour: FlavourName | None = None,
        root: Path | None = None,
        open_context: Callable[[], driver.Context] = driver.open_context,
        load_flavour: Callable[[FlavourName], Loader] = TensorRT,
        open_kernels: Callable[[Device], Library] | None = None,
    ) -> None:
        super().__init__(checkpoint)
        try:
            context = open_context()
        except driver.DriverError as error:
            raise EngineError(f"No NVIDIA card can be used: {error}") from error
        try:
            self._device = Device(context)
            with self._device.guard():
                self._load(checkpoint, flavour, root, load_flavour)
                self._start(open_kernels or _compiled)
        except BaseException:
            context.close()
            raise
        self._context = context
        card = context.device
        self.reason = (
            f"{self._flavour.name} {self._flavour.version} on {card.name} ({card.sm}), float16, "
            f"batches up to {MAX_BATCH} as CUDA graphs, CUDA through {context.binding}"
        )

    def _load(
        self,
        checkpoint: Checkpoint,
        wanted: FlavourName | None,
        root: Path | None,
        load_flavour: Callable[[FlavourName], Loader],
    ) -> None:
        """Plans of the first flavour that has them, as networks on the device."""
        card = self._device.context.device
        said: list[str] = []
        for name in (wanted,) if wanted is not None else FLAVOURS:
            try:
                flavour = load_flavour(name)
                target = card.sm.replace("_", "")
                plans = open_engines(checkpoint, name, flavour.version, target, card.name, root)
                programs = {n: flavour.load(plan) for n, plan in plans.items()}
            except EngineError as error:
                said.append(str(error))
                continue
            self._flavour = flavour
            break
        else:
            raise EngineError(" ".join(said))
        # Networks never run at the same time, so they share the largest scratch memory.
        need = max(p.scratch_bytes for p in programs.values())
        self._scratch = self._device.context.alloc((need,), np.uint8) if need else None
        self._networks = {
            n: DeviceNetwork(self._device, programs[n], self._scratch) for n in NETWORKS
        }

    def _start(self, open_kernels: Callable[[Device], Library]) -> None:
        """Record every graph; that runs everything once, so the engine is warm afterwards."""
        self._runners = {
            n: HostRunner(self._networks[n], BATCH_SIZES if n in _OF_SESSIONS else (1,))
            for n in NETWORKS
        }
        library = open_kernels(self._device)
        try:
            compositor = KernelCompositor(self._device, library)
            self._yuv_reader = YuvReader(self._networks["motion"], library)
        except (CompileError, NoCompilerError) as error:
            raise EngineError(str(error)) from error
        self._renderer = GpuFrameRenderer(self._networks["generator"], compositor)

    def run(self, network: Network, inputs: dict[str, Array]) -> dict[str, Array]:
        """See `BaseEngine.run`; blocks until the result is on the host."""
        if network == "generator":
            # `draw` writes the buffers that the renderer's slots live in.
            self._renderer.slots.clear()
        return self._runners[network].run(inputs)

    def audio_batch(self, mel_BTM: Array) -> Array:
        """See `Engine.audio_batch`; windows of up to 16 sessions go through E_aud together."""
        expected = (self.config.mel_window, MEL_BANDS)
        if mel_BTM.ndim != 3 or not len(mel_BTM) or mel_BTM.shape[1:] != expected:
            raise ValueError(f"mel windows must be (B, {expected}), got {mel_BTM.shape}")
        parts = [
            self._runners["audio"].run({"mel": mel_BTM[i : i + MAX_BATCH]})["lip"]
            for i in range(0, len(mel_BTM), MAX_BATCH)
        ]
        return np.concatenate(parts)

    def motion_batch(self, faces: Sequence[NDArray[np.uint8]]) -> list[MotionReading]:
        """See `Engine.motion_batch`; up to 16 crops go through E_mot together."""
        return [
            reading
            for i in range(0, len(faces), MAX_BATCH)
            for reading in self._read(faces[i : i + MAX_BATCH])
        ]

    def _read(self, faces: Sequence[NDArray[np.uint8]]) -> Iterable[MotionReading]:
        crops_BCHW = np.concatenate([to_network(face_HWC) for face_HWC in faces])
        return motion_readings(self._runners["motion"].run({"face": crops_BCHW}))

    def motion_yuv(self, picture: YuvPicture, transform: Array) -> MotionReading:
        """See `ReadsYuv.motion_yuv`; the crop is cut on the card."""
        return self.motion_yuv_batch([(picture, transform)])[0]

    def motion_yuv_batch(self, crops: Sequence[tuple[YuvPicture, Array]]) -> list[MotionReading]:
        """See `ReadsYuv.motion_yuv_batch`; up to 16 at once."""
        return [
            reading
            for i in range(0, len(crops), MAX_BATCH)
            for reading in motion_readings(self._yuv_reader.read(crops[i : i + MAX_BATCH]))
        ]

    def frame_renderer(self) -> FrameRenderer:
        """See `models.runtime.frames.DrawsFrames`."""
        return self._renderer

    def close(self) -> None:
        """Give back the context and all memory; idempotent."""
        self._context.close()


def _compiled(device: Device) -> Library:
    return Library(device.context)
