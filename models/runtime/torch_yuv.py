"""Webcam pictures in torch: planes up, crops cut on the device, E_mot; then one wait.

The arithmetic of the kernel `yuv_to_tensor`, with torch's own sampling: every picture has a size
of its own, so cropping is eager; E_mot behind it is the engine's recorded graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kernels.yuv_to_tensor import backward, colour_terms
from models.codes import Array
from models.runtime.engine import YuvPicture
from models.runtime.torch_graph import BatchRunner, Place

Crop = tuple[YuvPicture, Array]


def cut(
    y_HW: Tensor, u_HW: Tensor, v_HW: Tensor, back: NDArray[np.float32], taps: int, size: int,
    terms: tuple[float, ...],
) -> Tensor:  # fmt: skip
    """Planes of one picture, uint8 -> (3, size, size) float32 in [-1, 1].

    `back` and `taps` as `kernels.yuv_to_tensor.backward` gives them, `terms` are `colour_terms`.
    """
    axis = (torch.arange(size * taps, device=y_HW.device) + 0.5) / taps
    cy, cx = axis[:, None], axis[None, :]
    px, py = (float(r[0]) * cx + float(r[1]) * cy + float(r[2]) for r in back)

    def at(plane: Tensor, step: int) -> Tensor:
        rows, columns = plane.shape
        grid = torch.stack([px * (2 / step / columns) - 1, py * (2 / step / rows) - 1], -1)
        found = F.grid_sample(
            plane[None, None].float(), grid[None], padding_mode="border", align_corners=False
        )
        return F.avg_pool2d(found, taps)[0, 0] if taps > 1 else found[0, 0]

    y_offset, y_scale, r_v, g_u, g_v, b_u = terms
    luma, blue, red = (at(y_HW, 1) - y_offset) * y_scale, at(u_HW, 2) - 128, at(v_HW, 2) - 128
    rgb = torch.stack([luma + r_v * red, luma + g_u * blue + g_v * red, luma + b_u * blue])
    return rgb.clamp(0, 255) / 127.5 - 1


class TorchYuvReader:
    """E_mot on crops of decoded pictures; see the module's docstring. The engine's thread."""

    def __init__(self, motion: BatchRunner, size: int, place: Place) -> None:
        self._motion, self._size, self._place = motion, size, place
        self._staged = place.staged((0,), torch.uint8)

    def read(self, crops: Sequence[Crop]) -> dict[str, Array]:
        """E_mot's outputs, float32 with a batch axis, of crops as `ReadsYuv` describes them.

        Raises ValueError for a transform that maps everything to a line.
        """
        cuts = [backward(transform) for _, transform in crops]
        planes = self._upload([p for picture, _ in crops for p in _planes(picture)])
        faces = []
        for i, (picture, _) in enumerate(crops):
            terms = colour_terms(picture.matrix, picture.full_range)
            y, u, v = planes[3 * i : 3 * i + 3]
            faces.append(cut(y, u, v, *cuts[i], self._size, terms))
        return self._motion.run({"face": torch.stack(faces)})

    def _upload(self, planes: list[NDArray[np.uint8]]) -> list[Tensor]:
        """All planes in one copy. Pinned memory is kept, and grows with the largest pictures."""
        nbytes = sum(plane.size for plane in planes)
        if nbytes > len(self._staged):
            self._staged = self._place.staged((nbytes,), torch.uint8)
        host, start = self._staged.numpy(), 0
        for plane in planes:
            np.copyto(host[start : start + plane.size].reshape(plane.shape), plane)
            start += plane.size
        device = self._staged[:nbytes].to(self._place.device, non_blocking=True)
        parts = device.split([plane.size for plane in planes])  # type: ignore[no-untyped-call]
        return [part.view(plane.shape) for part, plane in zip(parts, planes, strict=True)]


def _planes(picture: YuvPicture) -> tuple[NDArray[np.uint8], ...]:
    return picture.y, picture.u, picture.v
