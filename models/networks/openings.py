"""Eyes and mouth as openings between two curves, at twice the resolution of the flow.

A lid line or an iris is a cell or two of the flow's grid, so kernel and convolutions cannot
place them. Their landmarks can: each opening lies between an upper and a lower curve, a
kernel regression of landmarks over x. `ApertureMaps` draws the openings for the decoder,
`LidWarp` and `LipWarp` move lids, irises and lips by geometry alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.face import GROUPS

APERTURE_MAPS = 3
#: Width of the kernel regression along x, in crop widths.
CURVE_WIDTH = 0.012
LID_CURVE_WIDTH = 0.008
LIP_CURVE_WIDTH = 0.012
#: Steepness of soft edges, per crop width: about one pixel of 256.
SHARP = 300.0
#: How far above the upper and below the lower lid the skin stretches; lashes and the line
#: above them come along unstretched, or a shut eye would be a dark band.
STRETCH_ABOVE, STRETCH_BELOW = 0.06, 0.035
LASHES = 0.006
#: Landmarks of lids lie inside their edges; a lid that closes shows none of what is that near.
EDGE_ABOVE, EDGE_BELOW = 0.005, 0.003
#: The white of the eye follows the iris up to this many iris radii from its centre.
FOLLOW_RADII = 1.7
#: How far around the lips the skin stretches, and how far beyond the corners.
LIP_STRETCH, CORNER_STRETCH = 0.06, 0.03
#: Eye curves have nine points; repeating the middle one pads them to the mouth's eleven.
_NINE = (0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8)
#: What `kept_by_warp` keeps at the mouth and away from it, and the half axes in crop units of the
#: ellipse around the mouth.
KEPT_AT_MOUTH, KEPT, MOUTH_RADII = 0.6, 0.85, (0.22, 0.20)


def _rows(start: int, count: int, upper: bool, picks: tuple[int, ...]) -> list[int]:
    """Landmark rows of one curve from corner to corner; a ring's upper half runs backwards."""
    return [start + ((-i) % count if upper else i) for i in picks]


def lip_rows(*, upper: bool) -> list[int]:
    """Landmarks of the inner edge of one lip, from corner to corner."""
    return _rows(GROUPS["lips_inner"].start, 20, upper, tuple(range(11)))


def curve(points_BC2: Tensor, axis: Tensor, width: float) -> Tensor:
    """Height of curves (B, C, K, 2) at the columns `axis` (S,) -> (B, C, S)."""
    gap = axis - points_BC2[..., 0:1]
    weights = torch.softmax(-(gap * gap) * (0.5 / width**2), dim=2)
    return (weights * points_BC2[..., 1:2]).sum(2)


def _axis(size: int) -> Tensor:
    return (torch.arange(size) + 0.5) / size


class ApertureMaps(nn.Module):
    """Where mouth and eyes are open, and where the irises are, drawn from the landmarks."""

    upper: Tensor
    lower: Tensor
    axis: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        eyes = [GROUPS["eye_left"].start, GROUPS["eye_right"].start]
        for name, upper in (("upper", True), ("lower", False)):
            rows = [lip_rows(upper=upper)]
            rows += [_rows(e, 16, upper, _NINE) for e in eyes]
            self.register_buffer(name, torch.tensor(rows))
        self.register_buffer("axis", _axis(size))

    def forward(self, driving_BK2: Tensor) -> Tensor:
        """Control points (B, K, 2) -> (B, 3, S, S) in [0, 1]: mouth, eyes, irises."""
        upper, lower = driving_BK2[:, self.upper], driving_BK2[:, self.lower]
        x, y = self.axis[None, None, None, :], self.axis[None, None, :, None]
        a, b = lower[:, :, 0, 0, None, None], lower[:, :, -1, 0, None, None]
        first, last = torch.minimum(a, b), torch.maximum(a, b)
        top = curve(upper, self.axis, CURVE_WIDTH)[:, :, None]
        bottom = curve(lower, self.axis, CURVE_WIDTH)[:, :, None]
        inside = torch.sigmoid((y - top) * SHARP) * torch.sigmoid((bottom - y) * SHARP)
        inside = inside * torch.sigmoid((x - first) * SHARP) * torch.sigmoid((last - x) * SHARP)
        irises = []
        for name in ("iris_left", "iris_right"):
            centre, radius = iris(driving_BK2, name)
            dx, dy = x[:, 0] - centre[:, 0, None, None], y[:, 0] - centre[:, 1, None, None]
            distance = (dx * dx + dy * dy + 1e-8).sqrt()
            irises.append(torch.sigmoid((radius[:, None, None] - distance) * SHARP))
        eyes = inside[:, 1] + inside[:, 2]
        drawn = inside[:, 1] * irises[0] + inside[:, 2] * irises[1]
        return torch.stack([inside[:, 0], eyes, drawn], 1)


def lid_gap(shape_BK3: Tensor) -> Tensor:
    """(B, 2) how far the lids of both eyes are apart in their middle, y of the head frame."""
    starts = (GROUPS["eye_left"].start, GROUPS["eye_right"].start)
    return torch.stack([shape_BK3[:, s + 12, 1] - shape_BK3[:, s + 4, 1] for s in starts], 1)


def iris(points_BK2: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Centre (B, 2) and radius (B,) of the iris group `name`."""
    points = points_BK2[:, GROUPS[name]]
    centre = points[:, 0]
    return centre, ((points[:, 1:] - centre[:, None]) ** 2).sum(2).mean(1).sqrt()


class LidWarp(nn.Module):
    """Where every pixel of the driving frame lies in the same frame with the source's eyes, and
    where lids meet that are apart in the source.

    There the flow must jump over the whole eye, and a sampled flow cannot: it would show the
    eye once more, squeezed into a pixel or two. So the seam is the decoder's to draw; the rest
    of the eye belongs to the warp, which keeps it sharp.

    Above the upper and below the lower lid the skin stretches to follow the lid; inside the
    opening the iris, and the white around it, shift with the gaze but never leave the
    source's own opening. Everything else stays.
    """

    upper: Tensor
    lower: Tensor
    axis: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        eyes = [GROUPS["eye_left"].start, GROUPS["eye_right"].start]
        for name, upper in (("upper", True), ("lower", False)):
            rows = [_rows(e, 16, upper, tuple(range(9))) for e in eyes]
            self.register_buffer(name, torch.tensor(rows))
        self.register_buffer("axis", _axis(size))

    def _curves(self, points_BK2: Tensor) -> tuple[Tensor, Tensor]:
        """Upper and lower lid (B, 2, 1, S) of both eyes; shut lids touch and do not cross."""
        upper = curve(points_BK2[:, self.upper], self.axis, LID_CURVE_WIDTH)[:, :, None]
        lower = curve(points_BK2[:, self.lower], self.axis, LID_CURVE_WIDTH)[:, :, None]
        return torch.minimum(upper, lower), lower

    def forward(self, driving_BK2: Tensor, rest_BK2: Tensor) -> tuple[Tensor, Tensor]:
        """Control points with the driving and with the source's eyes.

        -> positions (B, 2, S, S); the seam and the zone of eyes and lids (B, 2, S, S) in [0, 1].
        """
        x, y = self.axis[None, None, None, :], self.axis[None, None, :, None]
        top, bottom = self._curves(driving_BK2)
        top_rest, bottom_rest = self._curves(rest_BK2)
        above = torch.sigmoid((top - y) * 2 * SHARP)
        below = torch.sigmoid((y - bottom) * 2 * SHARP) * (1 - above)
        inside = (1 - above) * (1 - below)
        far = torch.relu(top - y - LASHES)
        closing = (1 - (bottom - top) / (bottom_rest - top_rest).clamp_min(1e-3)).clamp(0, 1)
        lift = top_rest - top - EDGE_ABOVE * closing
        skin_above = lift * torch.relu(1 - far / STRETCH_ABOVE)
        drop = bottom_rest - bottom + EDGE_BELOW * closing
        skin_below = drop * torch.relu(1 - torch.relu(y - bottom) / STRETCH_BELOW)
        gaze_x, gaze_y = self._gaze(driving_BK2, rest_BK2)
        within = torch.minimum(torch.maximum(y + gaze_y, top_rest), bottom_rest) - y
        corners = driving_BK2[:, self.lower]
        a, b = corners[:, :, 0, 0, None, None], corners[:, :, -1, 0, None, None]
        first, last = torch.minimum(a, b), torch.maximum(a, b)
        span = torch.sigmoid((x - first) * SHARP) * torch.sigmoid((last - x) * SHARP)
        shift_x = inside * gaze_x * span
        shift_y = (above * skin_above + below * skin_below + inside * within) * span
        ones = torch.ones_like(shift_x.sum(1))
        positions = [shift_x.sum(1) + x[:, 0] * ones, shift_y.sum(1) + y[:, 0] * ones]
        # Two cells of the flow: as far as its interpolation reaches.
        reach = 2.0 / len(self.axis)
        narrow = (1.25 - 2 * (bottom - top) / reach).clamp(0, 1)
        had = (1.5 * (bottom_rest - top_rest) / reach - 0.75).clamp(0, 1)
        near = (2 - 2 * (y - (top + bottom) / 2).abs() / reach).clamp(0, 1)
        seam = (narrow * had * near * span).sum(1, keepdim=True).clamp(0, 1)
        off = torch.relu(top - y) / STRETCH_ABOVE + torch.relu(y - bottom) / STRETCH_BELOW
        zone = ((2 - 2 * off).clamp(0, 1) * span).sum(1, keepdim=True).clamp(0, 1)
        return torch.stack(positions, 1), torch.cat([seam, zone], 1)

    def _gaze(self, driving_BK2: Tensor, rest_BK2: Tensor) -> tuple[Tensor, Tensor]:
        """Shift of the eyeball's picture per pixel, x and y, each (B, 2, S, S)."""
        x, y = self.axis[None, None, :], self.axis[None, :, None]
        shifts: list[list[Tensor]] = [[], []]
        for name in ("iris_left", "iris_right"):
            centre, radius = iris(driving_BK2, name)
            moved = iris(rest_BK2, name)[0] - centre
            dx, dy = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
            distance = (dx * dx + dy * dy + 1e-8).sqrt()
            follow = torch.sigmoid((radius[:, None, None] * FOLLOW_RADII - distance) * SHARP * 0.6)
            for axis in (0, 1):
                shifts[axis].append(moved[:, axis, None, None] * follow)
        return torch.stack(shifts[0], 1), torch.stack(shifts[1], 1)


def kept_by_warp(driving_BK2: Tensor, axis_S: Tensor) -> Tensor:
    """(B, 1, S, S): how much of a pixel the warp keeps at least, less around the mouth.

    What a turning head uncovers a decoder of this size paints blurred and in the colours of its
    training pictures, as a green rim of hair; the stretched warp is sharp and of this picture.
    """
    mouth = driving_BK2[:, GROUPS["lips_inner"]].mean(1)[:, None, None]
    x = (axis_S[None, None, :] - mouth[..., 0]) / MOUTH_RADII[0]
    y = (axis_S[None, :, None] - mouth[..., 1]) / MOUTH_RADII[1]
    away = (2 * ((x * x + y * y + 1e-8).sqrt() - 1)).clamp(0, 1)
    return KEPT_AT_MOUTH + (KEPT - KEPT_AT_MOUTH) * away[:, None]


class LipWarp(nn.Module):
    """Sends every lip line of the driving frame exactly to its line in the source.

    Kernel and convolutions smear upper and lower lip into each other, because in a closed
    mouth they lie within one cell: half of the opening is lost. What they miss at the
    landmarks of the four lip lines (outer and inner, upper and lower) is measured and added
    back: exactly on the lines, linear between them, fading out in the skin around.
    """

    lines: Tensor
    axis: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        outer, inner = GROUPS["lips_outer"].start, GROUPS["lips_inner"].start
        across = tuple(range(11))
        rows = [
            _rows(outer, 20, True, across), _rows(inner, 20, True, across),
            _rows(inner, 20, False, across), _rows(outer, 20, False, across),
        ]  # fmt: skip
        self.register_buffer("lines", torch.tensor(rows), persistent=False)
        self.register_buffer("axis", _axis(size), persistent=False)

    def forward(self, flow_B2SS: Tensor, driving_BK2: Tensor, source_BK2: Tensor) -> Tensor:
        """Backward flow and control points of both frames -> corrected flow (B, 2, S, S)."""
        points = driving_BK2[:, self.lines]
        there = F.grid_sample(
            flow_B2SS, points * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False
        )
        miss = source_BK2[:, self.lines] - there.permute(0, 2, 3, 1)
        heights = curve(points, self.axis, LIP_CURVE_WIDTH)
        errors = [
            curve(torch.stack([points[..., 0], miss[..., i]], 3), self.axis, LIP_CURVE_WIDTH)
            for i in (0, 1)
        ]
        error = torch.stack(errors, 1)[:, :, :, None]
        y = self.axis[None, :, None]
        added = torch.zeros_like(flow_B2SS)
        above, before = heights[:, 0] - LIP_STRETCH, torch.zeros_like(error[:, :, 0])
        for line in range(4):
            below = torch.maximum(heights[:, line], above + 1e-3)
            share = ((y - above[:, None]) / (below - above)[:, None]).clamp(0, 1)
            added = added + (error[:, :, line] - before) * share[:, None]
            above, before = below, error[:, :, line]
        share = ((y - above[:, None]) / LIP_STRETCH).clamp(0, 1)
        added = added - before * share[:, None]
        first = points[..., 0].amin((1, 2))[:, None]
        last = points[..., 0].amax((1, 2))[:, None]
        beyond = torch.relu(first - self.axis) + torch.relu(self.axis - last)
        span = torch.relu(1 - beyond / CORNER_STRETCH)
        return flow_B2SS + added * span[:, None, None]
