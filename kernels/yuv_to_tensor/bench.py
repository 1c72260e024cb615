"""Cases of `python -m kernels.bench`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.benching import Case, Maker, look, size_of
from kernels.yuv_to_tensor import PICTURE, colour_terms, picture, yuv_to_tensor
from kernels.yuv_to_tensor.reference import torch_reference


def cases(make: Maker) -> Iterator[Case]:
    """A turned crop of a picture twice its size: pixels are read at about their own scale."""
    import torch

    batch, size = make.sizes.batch, make.sizes.picture
    frame = 2 * size
    y = make.bytes(batch, 1, frame, frame)
    u, v = make.bytes(batch, 1, size, size), make.bytes(batch, 1, size, size)
    out = make.empty(batch, 3, size, size)
    angle = 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.full((2, 1), size / 2)
    transform = np.concatenate([turn, centre - turn @ np.full((2, 1), frame / 2)], 1)
    rows = [picture(look(y[b, 0]), look(u[b, 0]), look(v[b, 0]), transform) for b in range(batch)]
    table, raw = make.table(rows, PICTURE)
    # The same positions for torch: crop pixel -> [-1, 1] of the picture.
    back = np.asarray(rows[0][9], np.float64).reshape(2, 3)
    axis = np.arange(size) + 0.5
    cx, cy = np.meshgrid(axis, axis)
    px = back[0, 0] * cx + back[0, 1] * cy + back[0, 2]
    py = back[1, 0] * cx + back[1, 1] * cy + back[1, 2]
    grid = make.constant(np.stack([px, py], -1).astype(np.float32) / frame * 2 - 1)
    planes = [plane.float() for plane in (y, u, v)]
    inputs = (*planes, grid.expand(batch, size, size, 2), colour_terms())

    def reference(*given: object) -> object:
        return torch_reference(*given).to(out.dtype)  # type: ignore[arg-type]

    # What the crop covers: as many luma samples as pixels, and a quarter of each chroma.
    moved = batch * size * size * 3 // 2 + size_of(out)
    launch = yuv_to_tensor(table, look(out))
    shape = f"{batch}x{frame}x{frame} to {size}"
    keep = (raw, y, u, v, torch)
    yield Case("yuv_to_tensor", shape, launch, moved, reference, inputs, out, keep, 5e-3)


__all__ = ["cases"]
