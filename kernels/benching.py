"""What the operations' `bench.py` files are made of: cases on torch tensors, with their bytes.

Torch makes the inputs and is what we compare with; it is imported by `Maker` and nowhere else.
On a machine without a GPU the same cases run on the host's kernels, in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels.operation import Launch
from kernels.view import View

Tensor: TypeAlias = Any


@dataclass(frozen=True)
class Sizes:
    """How large the cases are; the defaults are what the issue's targets speak of."""

    batch: int = 16
    picture: int = 512
    maps: int = 256
    flow: int = 128
    channels: int = 64


@dataclass(frozen=True)
class Case:
    """One kernel against the same in torch.

    `moved` counts the bytes that must be read and written once; `output` is where the kernel
    writes and what `torch` returns an equal of, within `tolerance` (of the type's own rounding
    when None).
    """

    kernel: str
    shape: str
    launch: Launch
    moved: int
    torch: Callable[..., Tensor]
    inputs: tuple[Any, ...]
    output: Tensor
    keep: tuple[Any, ...] = ()
    tolerance: float | None = None


class Maker:
    """Random tensors of one type on one device."""

    def __init__(self, dtype: str, device: str, sizes: Sizes | None = None) -> None:
        import torch

        self.dtype, self.device = getattr(torch, dtype), device
        self.sizes = sizes or Sizes()
        self._torch = torch
        self._generator = torch.Generator(device).manual_seed(0)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform between `low` and `high`."""
        fresh = self._torch.rand(shape, generator=self._generator, device=self.device)
        return (fresh * (high - low) + low).to(self.dtype)

    def smooth(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Planes without hard edges, as pictures and flows mostly are."""
        coarse = self.uniform(*shape[:-2], 6, 6).float()
        flat = coarse.reshape(1, -1, 6, 6)
        fine = self._torch.nn.functional.interpolate(
            flat, tuple(shape[-2:]), mode="bicubic", align_corners=True
        )
        return (fine.reshape(shape).clamp(0, 1) * (high - low) + low).to(self.dtype)

    def grid(self, size: int, jitter: float = 0.05) -> Tensor:
        """Flow (batch, 2, size, size) around the identity."""
        axis = (self._torch.arange(size, device=self.device) + 0.5) / size
        y, x = self._torch.meshgrid(axis, axis, indexing="ij")
        shape = (self.sizes.batch, 2, size, size)
        shift = self.smooth(*shape, low=-jitter, high=jitter)
        return (self._torch.stack([x, y])[None] + shift.float()).to(self.dtype)

    def bytes(self, *shape: int) -> Tensor:
        """Smooth planes of 0..255, uint8."""
        return (self.smooth(*shape).float() * 255).round().to(self._torch.uint8)

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised, of the maker's type."""
        return self._torch.empty(shape, dtype=self.dtype, device=self.device)

    def empty_bytes(self, *shape: int) -> Tensor:
        """Uninitialised, uint8."""
        return self._torch.empty(shape, dtype=self._torch.uint8, device=self.device)

    def constant(self, array: NDArray[Any]) -> Tensor:
        """A copy of `array` in its own type."""
        return self._torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def table(self, rows: list[tuple[Any, ...]], dtype: np.dtype[Any]) -> tuple[View, Tensor]:
        """A table of structures: its view, and the tensor that keeps it alive."""
        packed = np.array(rows, dtype)
        raw = self.constant(packed.view(np.uint8).reshape(-1))
        return View(raw.data_ptr(), packed.shape, (1,), packed.dtype), raw


def look(tensor: Tensor) -> View:
    """View of a torch tensor on any device."""
    names = {"torch.float32": "f4", "torch.float16": "f2", "torch.uint8": "u1",
             "torch.int32": "i4", "torch.uint32": "u4"}  # fmt: skip
    dtype = np.dtype(names[str(tensor.dtype)])
    return View(tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), dtype)


def size_of(*tensors: Tensor) -> int:
    """Bytes of some tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


__all__ = ["Case", "Maker", "Sizes", "look", "size_of"]
