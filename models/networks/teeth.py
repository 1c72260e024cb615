"""What lies behind the lips: two learned pictures that are fixed to the bones.

A network that paints a mouth's inside from the lips alone must guess where teeth are and
answers with their mean, a grey smear. But upper teeth never move in the head and lower ones
move with the jaw. So two small learned pictures, the same for everybody, lie in the head
frame behind the lips, turn with the head, and are seen through the mouth's opening; the
decoder only tints them, shades them and blends them in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.codes import FACTOR_SLICES
from models.face import GROUPS

CHANNELS = 6
#: Both pictures, and where a pixel lies across the mouth, and above either row's edge.
TEETH_MAPS = 2 * CHANNELS + 3
ROWS, COLUMNS = 24, 48
#: The pictures are stored this much weaker than they are seen, so that one rate of learning
#: fits them and the convolutions that read them.
GAIN = 8.0
#: Height of a picture against its width, which is the mouth's own when at rest.
ASPECT = 0.6
#: Teeth stand behind the lips by so many crop widths.
DEPTH = 0.02
_INNER = GROUPS["lips_inner"].start
#: Corners of the inner lips, and the landmarks around the middle of either lip.
_CORNERS = (_INNER, _INNER + 10)
_MIDDLE = [136, 137, 138, 146, 147, 148]
#: Lowest landmark of the face oval.
CHIN = 18


class Teeth(nn.Module):
    """Upper and lower row as seen through the lips, (B, 15, S, S)."""

    grid: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.rows = nn.Parameter(_bands())
        axis = (torch.arange(size) + 0.5) / size
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], -1).view(1, -1, 2), persistent=False)

    def forward(
        self, shape_BK3: Tensor, jaw_B3: Tensor, camera_B23: Tensor, shift_B2: Tensor,
        opening_B1SS: Tensor,
    ) -> Tensor:  # fmt: skip
        """Neutral shape, displacement of the chin in the head frame, and the driving camera.

        `camera` maps head-frame points to the picture up to `shift`, both in crop units;
        `opening` is the mouth's aperture map, in [0, 1].
        """
        batch, size = len(shape_BK3), self.size
        middle = shape_BK3[:, _MIDDLE].mean(1) - shape_BK3.new_tensor([0.0, 0.0, DEPTH])
        left, right = (shape_BK3[:, k, :2] for k in _CORNERS)
        half = ((right - left) ** 2).sum(1).sqrt()[:, None, None] * 0.5
        plane = camera_B23[:, :, :2]
        determinant = plane[:, 0, 0] * plane[:, 1, 1] - plane[:, 0, 1] * plane[:, 1, 0]
        inverse = torch.stack([plane[:, 1, 1], -plane[:, 0, 1], -plane[:, 1, 0], plane[:, 0, 0]], 1)
        inverse = (inverse / determinant[:, None]).view(-1, 2, 2)
        places, seen = [], []
        for row, anchor in enumerate((middle, middle + jaw_B3)):
            centre = torch.matmul(camera_B23, anchor[:, :, None])[:, :, 0] + shift_B2
            at = torch.matmul(self.grid - centre[:, None], inverse.transpose(1, 2)) / half
            # Rows of a picture run downwards, the head frame's y up.
            grid = torch.stack([at[..., 0], -at[..., 1] / ASPECT], -1).view(batch, size, size, 2)
            texture = GAIN * self.rows[row : row + 1].expand(batch, -1, -1, -1)
            seen.append(F.grid_sample(texture, grid, mode="bilinear", padding_mode="zeros",
                                      align_corners=False))  # fmt: skip
            places.append(at.transpose(1, 2).reshape(batch, 2, size, size).clamp(-1.5, 1.5))
        maps = torch.cat([*seen, places[0], places[1][:, 1:]], 1)
        return maps * opening_B1SS


def _bands() -> Tensor:
    """Where learning begins: a band for each row in channel 0, noise in the others."""
    rows = torch.randn(2, CHANNELS, ROWS, COLUMNS) * 0.2
    down = torch.linspace(-1, 1, ROWS)[:, None] * ASPECT
    across = torch.linspace(-1, 1, COLUMNS).abs()[None]
    for row, (top, bottom) in enumerate(((-0.4, 0.06), (-0.04, 0.36))):
        inside = (down > top) & (down < bottom) & (across < 0.85)
        rows[row, 0] = inside.float()
    return rows / GAIN


def chin_shift(code_BD: Tensor, basis_RK3: Tensor) -> Tensor:
    """(B, 3) displacement of the chin in the head frame by the lip code."""
    lip = FACTOR_SLICES["lip"]
    return torch.matmul(code_BD[:, lip], basis_RK3[lip, CHIN])
