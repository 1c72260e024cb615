"""What lies behind the lips: two rows of teeth, a tongue and the dark, fixed to the bones.

A network that paints a mouth's inside from the lips alone must guess where teeth and tongue are
and answers with their mean, a grey or reddish smear. But upper teeth never move in the head and
lower ones and the tongue's bed move with the jaw. So three pictures, the same for everybody, lie
in the head frame behind the lips, turn with the head, and are seen through the mouth's opening,
in the light that the portrait's eyes and cheeks are seen in. The decoder paints only the rim.
A portrait whose mouth is open keeps what it shows itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.codes import FACTOR_SLICES
from models.face import GROUPS
from models.networks.openings import CURVE_WIDTH, curve, iris, lip_rows

#: The pictures, upper teeth, lower teeth and what is behind them: premultiplied RGB under a white
#: light, and alpha; the last one is opaque and goes on beyond its border.
PICTURES = ("upper", "lower", "behind")
ROWS, COLUMNS = 48, 128
#: A picture is as wide as the mouth at rest; its height against that.
ASPECT = 0.7
#: All stands behind the lips by so many crop widths.
DEPTH = 0.02
#: Part of the frame in which a mouth can be: left, top, right, bottom; it fades at the rim.
WINDOW = (0.1875, 0.5, 0.8125, 0.9375)
_RIM = 0.03
#: It grows opaque over so much, in crop widths.
_EDGE = 0.005
#: How far the upper lip's shadow reaches, in crop widths, and how dark it is.
_SHADOW, _SHADE = 0.011, 0.42
#: Mouths open by less than the first gap (crop widths) get an inside, by more than the second none.
_SHUT, _SHOWN = 0.012, 0.02
_INNER = GROUPS["lips_inner"].start
#: Corners of the inner lips, and the landmarks around the middle of either lip.
_CORNERS = (_INNER, _INNER + 10)
_MIDDLE = [136, 137, 138, 146, 147, 148]
#: Lowest landmark of the face oval.
CHIN = 18
#: White against skin and against the whites of the eyes, and the bounds of what is believed.
_OVER_SKIN, _OVER_EYES, _LIGHT_RANGE = 1.04, 1.14, (0.3, 0.93)
#: Darker than this no tint can be told.
_BLACK = 0.02


class MouthInside(nn.Module):
    """All as it is seen, (B, 4, S, S): premultiplied colour under a white light, alpha."""

    picture: Tensor
    grid: Tensor
    fade: Tensor
    upper: Tensor
    lower: Tensor
    columns: Tensor
    lines: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        left, top, right, bottom = (round(size * edge) for edge in WINDOW)
        self.border = (left, size - right, top, size - bottom)
        axis = (torch.arange(size) + 0.5) / size
        columns, lines = axis[left:right], axis[top:bottom]
        y, x = torch.meshgrid(lines, columns, indexing="ij")
        inside = [(x - WINDOW[0]), (WINDOW[2] - x), (y - WINDOW[1]), (WINDOW[3] - y)]
        fade = torch.stack(inside).amin(0) / _RIM
        # Saved with the weights: whoever trained them decides what mouths look like.
        self.register_buffer("picture", torch.zeros(len(PICTURES), 4, ROWS, COLUMNS))
        for name, value in (
            ("grid", torch.stack([x, y], -1).view(1, -1, 2)), ("fade", fade.clamp(0, 1)),
            ("columns", columns), ("lines", lines[:, None]),
            ("upper", torch.tensor(lip_rows(upper=True))),
            ("lower", torch.tensor(lip_rows(upper=False))),
        ):  # fmt: skip
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, shape_BK3: Tensor, jaw_B3: Tensor, camera_B23: Tensor, shift_B2: Tensor,
        driving_BK2: Tensor, source_BK2: Tensor,
    ) -> Tensor:  # fmt: skip
        """Neutral shape, displacement of the chin in the head frame, and the driving camera.

        `camera` maps head-frame points to the picture up to `shift`, both in crop units, as are
        the control points of both frames.
        """
        batch, (height, width) = len(shape_BK3), self.fade.shape
        middle = shape_BK3[:, _MIDDLE].mean(1) - shape_BK3.new_tensor([0.0, 0.0, DEPTH])
        left, right = (shape_BK3[:, k, :2] for k in _CORNERS)
        half = ((right - left) ** 2).sum(1).sqrt()[:, None, None] * 0.5
        plane = camera_B23[:, :, :2]
        determinant = plane[:, 0, 0] * plane[:, 1, 1] - plane[:, 0, 1] * plane[:, 1, 0]
        inverse = torch.stack([plane[:, 1, 1], -plane[:, 0, 1], -plane[:, 1, 0], plane[:, 0, 0]], 1)
        inverse = (inverse / determinant[:, None]).view(-1, 2, 2)
        seen = self.picture.new_zeros(batch, 4, height, width)
        lower = middle + jaw_B3
        for number, anchor in enumerate((middle, lower, lower)):
            centre = torch.matmul(camera_B23, anchor[:, :, None])[:, :, 0] + shift_B2
            at = torch.matmul(self.grid - centre[:, None], inverse.transpose(1, 2)) / half
            # Rows of a picture run downwards, the head frame's y up.
            grid = torch.stack([at[..., 0], -at[..., 1] / ASPECT], -1)
            picture = self.picture[number : number + 1].expand(batch, -1, -1, -1)
            beyond = "border" if PICTURES[number] == "behind" else "zeros"
            layer = F.grid_sample(picture, grid.view(batch, height, width, 2), mode="bilinear",
                                  padding_mode=beyond, align_corners=False)  # fmt: skip
            seen = seen + layer * (1 - seen[:, 3:])
        opening, shade = self._opening(driving_BK2)
        # A slice, because one number would have to be fetched from the card.
        low, high = (source_BK2[:, rows[5:6], 1:] for rows in (self.lower, self.upper))
        gap = low - high
        opening = opening * self.fade * ((_SHOWN - gap) / (_SHOWN - _SHUT)).clamp(0, 1)
        lit = torch.cat([seen[:, :3] * shade[:, None], seen[:, 3:]], 1)
        return F.pad(lit * opening[:, None], self.border)

    def _opening(self, driving_BK2: Tensor) -> tuple[Tensor, Tensor]:
        """How open the mouth is at every place of the window, and how light it is, (B, h, w)."""
        upper, lower = driving_BK2[:, None, self.upper], driving_BK2[:, None, self.lower]
        top = curve(upper, self.columns, CURVE_WIDTH)
        bottom = curve(lower, self.columns, CURVE_WIDTH)
        ends = lower[:, 0, 0, 0], lower[:, 0, -1, 0]
        first, last = torch.minimum(*ends)[:, None, None], torch.maximum(*ends)[:, None, None]
        x, y = self.columns, self.lines
        # Not soft beyond the edges: it would shine through lips that touch.
        inside = torch.minimum(y - top, bottom - y) / _EDGE
        across = torch.minimum(x - first, last - x) / _EDGE
        inside = torch.minimum(inside, across).clamp(0, 1)
        return inside, 1 - _SHADE * (1 - (y - top) / _SHADOW).clamp(0, 1)


def light(rgb_B3SS: Tensor, source_BK2: Tensor) -> Tensor:
    """Colour (B, 3) in [0, 1] of something white: whites of the eyes, at least as light as skin.

    `rgb` is the source in [-1, 1], the control points are the source's in crop units.
    """
    whites, cheeks = [], []
    for eye, name, corner in (("eye_left", "iris_left", 0), ("eye_right", "iris_right", 10)):
        start = GROUPS[eye].start
        centre, radius = iris(source_BK2, name)
        for k in (0, 8):
            reach = source_BK2[:, start + k] - centre
            length = (reach * reach).sum(1, keepdim=True).clamp_min(1e-8).sqrt()
            whites.append(centre + reach * 0.5 * (1 + radius[:, None] / length).clamp(max=1.6))
        below = source_BK2[:, GROUPS[eye]].mean(1)
        for share in (0.4, 0.6):
            cheeks.append(below + share * (source_BK2[:, _INNER + corner] - below))
    spots = torch.stack(whites + cheeks, 1)[:, None] * 2 - 1
    found = F.grid_sample(rgb_B3SS, spots, padding_mode="border", align_corners=False)
    found = found[:, :, 0] * 0.5 + 0.5
    bright = found.mean(1)
    weight = torch.softmax(bright[:, : len(whites)] * 20, 1)
    white = (found[:, :, : len(whites)] * weight[:, None]).sum(2)
    # Half of the eyes' tint: small eyes bring skin along.
    grey = white.mean(1, keepdim=True)
    tinted = 0.5 * (white + grey)
    skin = bright[:, len(whites) :].amax(1, keepdim=True)
    wanted = torch.maximum(_OVER_EYES * grey, _OVER_SKIN * skin).clamp(*_LIGHT_RANGE)
    out: Tensor = (tinted + _BLACK) / (grey + _BLACK) * wanted
    return out


def chin_shift(code_BD: Tensor, basis_RK3: Tensor) -> Tensor:
    """(B, 3) displacement of the chin in the head frame by the lip code."""
    lip = FACTOR_SLICES["lip"]
    return torch.matmul(code_BD[:, lip], basis_RK3[lip, CHIN])
