"""Torch on an NVIDIA card: float16, channels last, CUDA graphs; for cards without TensorRT.

Convolutions and linear layers are float16, everything else (face model, flow, positions)
float32, as in the TensorRT engines. A frame is drawn, composited and converted by torch's own
operations, recorded as one graph per batch size and output size. With `device="cpu"` the same
code runs eagerly, which is how it is tested without a card.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import Checkpoint
from models.codes import Array
from models.networks import Exported, Networks, load_networks
from models.rates import MEL_BANDS
from models.runtime.base import BaseEngine, Network, generator_inputs
from models.runtime.device_network import padded
from models.runtime.engine import DeviceLostError, EngineError
from models.runtime.flavour import BATCH_SIZES, MAX_BATCH
from models.runtime.frames import Clock, FrameRenderer, FrameRequest, FrameResult, check_requests
from models.runtime.portrait_bank import DEFAULT_BUDGET_BYTES

DRIVING = "driving_code"
#: Output sizes that are recorded before the engine is ready; others when first asked for.
SIZES = (256, 384, 512)
T = TypeVar("T")
#: RGB -> Y, U, V of BT.601 in limited range, for values 0 to 255 (ITU-R BT.601-7).
_BT601 = (
    (0.256788, 0.504129, 0.097906),
    (-0.148223, -0.290993, 0.439216),
    (0.439216, -0.367788, -0.071427),
)


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


def composite(
    source_BHWC: Tensor, flow_B2HW: Tensor, mask_B1HW: Tensor, rgb_BCHW: Tensor
) -> Tensor:
    """uint8 source (B, N, N, 3) and the generator's drawing -> RGB (B, 3, N, N), 0 to 255.

    The arithmetic of `models.composite.compose`, float32.
    """
    size = source_BHWC.shape[1]

    def grow(x: Tensor, mode: str) -> Tensor:
        return F.interpolate(x.float(), (size, size), mode=mode, align_corners=False)

    grid = grow(flow_B2HW, "bilinear").permute(0, 2, 3, 1) * 2 - 1
    source = source_BHWC.permute(0, 3, 1, 2).float()
    warped = F.grid_sample(source, grid, padding_mode="border", align_corners=False)
    mask = grow(mask_B1HW, "bilinear")
    drawn = grow(rgb_BCHW, "bicubic").clamp(0, 1) * 255
    return mask * warped + (1 - mask) * drawn


def i420(rgb_BCHW: Tensor) -> Tensor:
    """RGB (B, 3, N, N), 0 to 255 -> (B, N * 3 / 2, N) uint8, BT.601 limited range."""
    b, _, n, _ = rgb_BCHW.shape
    red, green, blue = rgb_BCHW.clamp(0, 255).unbind(1)
    y, u, v = (r * red + g * green + b_ * blue for r, g, b_ in _BT601)
    small = [F.avg_pool2d(c[:, None], 2).reshape(b, n // 4, n) + 128 for c in (u, v)]
    planes = torch.cat([y + 16, *small], 1)
    return (planes + 0.5).clamp(0, 255).to(torch.uint8)


class Recorded:
    """A function of fixed tensors: a CUDA graph on a card, called again and again elsewhere."""

    def __init__(self, work: Callable[[], tuple[Tensor, ...]], device: torch.device) -> None:
        self._work, self._graph = work, None
        if device.type == "cuda":
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(3):
                    work()
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = work()

    def run(self) -> tuple[Tensor, ...]:
        """Outputs; on a card always the same tensors, overwritten by the next run."""
        if self._graph is None:
            return self._work()
        self._graph.replay()
        return self._outputs


class BatchRunner:
    """One network on host arrays, recorded per batch size when first needed."""

    def __init__(self, net: Exported, device: torch.device) -> None:
        self._net, self._device = net, device
        self._recorded: dict[tuple[Any, ...], tuple[dict[str, Tensor], Recorded]] = {}

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Float32 arrays with a batch axis -> named outputs, float32."""
        count = len(inputs[self._net.inputs[0]])
        batch = padded(count)
        shapes = tuple(inputs[n].shape[1:] for n in self._net.inputs)
        if (batch, shapes) not in self._recorded:
            fixed = {
                n: torch.zeros(batch, *s, device=self._device)
                for n, s in zip(self._net.inputs, shapes, strict=True)
            }
            recorded = Recorded(lambda: self._net(*fixed.values()), self._device)
            self._recorded[batch, shapes] = (fixed, recorded)
        fixed, recorded = self._recorded[batch, shapes]
        for name, tensor in fixed.items():
            tensor[:count].copy_(torch.from_numpy(inputs[name]))
        outputs = recorded.run()
        return {
            n: t[:count].float().cpu().numpy().copy()
            for n, t in zip(self._net.outputs, outputs, strict=True)
        }


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
        self._runners = {n: BatchRunner(net, self.device) for n, net in networks.named()}
        self._renderer = TorchFrameRenderer(self)
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
        for size in SIZES:
            for batch in BATCH_SIZES:
                guarded(partial(self._renderer.recorded, batch, size))

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


class TorchFrameRenderer:
    """`FrameRenderer` in torch: whole frames, batched by output size."""

    max_batch = MAX_BATCH

    def __init__(
        self,
        engine: TorchGpuEngine,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._engine, self._clock = engine, clock
        self._net = engine.networks.generator
        self._budget_bytes, self.used_bytes = budget_bytes, 0
        self._resident: OrderedDict[int, tuple[object, dict[str, Tensor]]] = OrderedDict()
        self._recorded: dict[tuple[int, int], tuple[dict[str, Tensor], Recorded]] = {}

    @torch.inference_mode()
    def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
        """See `FrameRenderer.render`. Spans: draw, from the first copy to the last pixel."""
        check_requests(requests, self.max_batch)
        by_size: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_size.setdefault(len(request.source_HWC), []).append(index)
        results: dict[int, FrameResult] = {}
        for size, indices in by_size.items():
            batch = [requests[i] for i in indices]
            drawn = guarded(partial(self._draw, batch, size))
            results.update(zip(indices, drawn, strict=True))
        return [results[i] for i in range(len(requests))]

    def _draw(self, requests: list[FrameRequest], size: int) -> list[FrameResult]:
        start = self._clock()
        fixed, recorded = self.recorded(padded(len(requests)), size)
        for slot, request in enumerate(requests):
            for name, tensor in self._inputs(request).items():
                fixed[name][slot].copy_(tensor[0], non_blocking=True)
            code = torch.from_numpy(request.driving.concat())
            fixed[DRIVING][slot].copy_(code)
        frames = recorded.run()[0].cpu().numpy()
        self._forget()
        spans = {"draw": self._clock() - start}
        return [FrameResult(frames[i].copy(), spans) for i in range(len(requests))]

    @torch.inference_mode()
    def recorded(self, batch: int, size: int) -> tuple[dict[str, Tensor], Recorded]:
        """Fixed inputs and recording of one batch and output size, made when first asked for."""
        if (batch, size) not in self._recorded:
            device = self._engine.device
            fixed = {
                n: torch.zeros(batch, *shape, device=device)
                for n, shape in self._engine.generator_shapes.items()
            }
            fixed["source"] = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device=device)

            def work() -> tuple[Tensor, ...]:
                flow, mask, rgb = self._net(*(fixed[n] for n in self._net.inputs))
                return (i420(composite(fixed["source"], flow, mask, rgb)),)

            self._recorded[batch, size] = (fixed, Recorded(work, device))
        return self._recorded[batch, size]

    def _inputs(self, request: FrameRequest) -> dict[str, Tensor]:
        """The portrait and its source on the device, uploaded the first time."""
        features = generator_inputs(request.appearance, request.driving)
        named = {n: features[n] for n in self._net.inputs if n != DRIVING}
        found = self._upload(request.appearance, named)
        return found | self._upload(request.source_HWC, {"source": request.source_HWC[None]})

    def _upload(self, owner: object, arrays: dict[str, Any]) -> dict[str, Tensor]:
        entry = self._resident.get(id(owner))
        if entry is None:
            tensors = {n: torch.from_numpy(a).to(self._engine.device) for n, a in arrays.items()}
            entry = self._resident[id(owner)] = (owner, tensors)
            self.used_bytes += _nbytes(tensors)
        self._resident.move_to_end(id(owner))
        return entry[1]

    def _forget(self) -> None:
        """Evict the least recently used over the budget; never inside a batch."""
        while self.used_bytes > self._budget_bytes and self._resident:
            _, (_, tensors) = self._resident.popitem(last=False)
            self.used_bytes -= _nbytes(tensors)


def _nbytes(tensors: dict[str, Tensor]) -> int:
    return sum(t.nbytes for t in tensors.values())
