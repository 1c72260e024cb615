"""E_app and the warping generator of the `live` configuration (DESIGN.md).

Once per portrait, E_app turns the source picture into feature maps. Per frame the
generator

1. moves the portrait's own landmarks with the face model (geometry knows exactly where
   lips, lids, irises and the head go),
2. spreads their displacement to a dense backward flow with a learned soft nearest-landmark
   kernel, first order in the head's rotation,
3. lets a small modulated network correct that flow, and
4. decodes what no warp can show (mouth interior, lids, what comes into view) as RGB with a
   blend mask.

`out = mask * warp(source, flow) + (1 - mask) * rgb`, composited at any output size by
`models.composite`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.codes import CODE_DIM, DIMS, FACTOR_SLICES
from models.config import ModelConfig
from models.face import BASIS_DIM, CANONICAL_ORIGIN, GROUPS, LANDMARKS, FaceModel
from models.networks.blocks import ConvBlock, ModulatedConv, ModulatedRes, ResBlock
from models.networks.mouth import MouthInside, chin_shift, light
from models.networks.openings import (
    APERTURE_MAPS,
    ApertureMaps,
    LidWarp,
    LipWarp,
    kept_by_warp,
    lid_gap,
)

STYLE = 128
C64, C32 = 48, 96
GEOMETRY_MAPS = 12
#: Lids of the widest eyes travel so many times as far as the mean's.
LID_GAIN = 1.4
_RIM = 24
_CROWN = 20


class AppearanceEncoder(nn.Module):
    """(B, 3, 256, 256) RGB in [-1, 1] -> f64 (B, 48, 64, 64), f32 (B, 96, 32, 32), id (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.to64 = nn.Sequential(ConvBlock(3, 16, 2), ConvBlock(16, C64, 2), ResBlock(C64))
        self.to32 = nn.Sequential(ConvBlock(C64, C32, 2), ResBlock(C32), ResBlock(C32))
        self.identity = nn.Linear(C32, 64)

    def forward(self, source_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a batch of portraits."""
        f64 = self.to64(source_BCHW)
        f32 = self.to32(f64)
        return f64, f32, self.identity(f32.mean((2, 3)))


def rotation(pose_B6: Tensor) -> Tensor:
    """(B, 6) pose -> (B, 3, 3); same convention as `models.face.rotation`."""
    yaw, pitch, roll = pose_B6[:, 0], pose_B6[:, 1], pose_B6[:, 2]
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    cr, sr = roll.cos(), roll.sin()
    rows = [
        cy * cr - sy * sp * sr, -cy * sr - sy * sp * cr, sy * cp,
        cp * sr, cp * cr, sp,
        -sy * cr - cy * sp * sr, sy * sr - cy * sp * cr, cy * cp,
    ]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


class Geometry(nn.Module):
    """Face model in torch: where each control point is in source and driving frame.

    Control points are the 152 landmarks, 20 points of hair and skull that move rigidly
    with the head, and 24 points of the frame's rim that never move.
    """

    mean: Tensor
    basis: Tensor
    crown: Tensor
    rim: Tensor
    origin: Tensor
    down: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(LANDMARKS, 3))
        self.register_buffer("basis", torch.zeros(BASIS_DIM, LANDMARKS, 3))
        self.register_buffer("crown", torch.zeros(_CROWN, 3))
        self.register_buffer("rim", _rim_points())
        self.register_buffer("origin", torch.from_numpy(CANONICAL_ORIGIN.copy()))
        self.register_buffer("down", torch.tensor([1.0, -1.0]), persistent=False)

    def load_face_model(self, model: FaceModel) -> None:
        """Copy mean and basis; the crown is the upper face oval, grown and pushed back."""
        self.mean.copy_(torch.from_numpy(model.mean))
        self.basis.copy_(torch.from_numpy(model.basis))
        oval = self.mean[GROUPS["oval"]]
        upper = torch.cat([oval[-10:], oval[:10]])
        centre = oval.mean(0)
        grown = centre + (upper - centre) * centre.new_tensor([1.35, 1.32, 1.0])
        grown[:, 2] -= 0.16
        self.crown.copy_(grown)

    def forward(self, shape_BK3: Tensor, code_BD: Tensor) -> Tensor:
        """Neutral shape (B, 152, 3) moved by codes (B, 58) -> control points (B, 196, 2)."""
        lip, start = code_BD[:, : DIMS["lip"]], FACTOR_SLICES["eye"].start
        lids = code_BD[:, start : start + 2] * self.lid_gain(shape_BK3)
        weights = torch.cat([lip, lids, code_BD[:, start + 2 :]], 1)
        moved = shape_BK3 + torch.einsum("br,rkc->bkc", weights, self.basis)
        size = len(shape_BK3)
        moved = torch.cat([moved, self.crown.expand(size, -1, -1)], 1)
        pose = code_BD[:, FACTOR_SLICES["pose"]]
        points = torch.matmul(moved, self.camera(pose).transpose(1, 2)) + self.shift(pose)[:, None]
        return torch.cat([points, self.rim.expand(size, -1, -1)], 1)

    def camera(self, pose_B6: Tensor) -> Tensor:
        """(B, 2, 3) from the head frame to the picture, up to `shift`, in crop units."""
        return rotation(pose_B6)[:, :2] * pose_B6[:, 5, None, None].exp() * self.down[:, None]

    def shift(self, pose_B6: Tensor) -> Tensor:
        """(B, 2) where the head frame's origin lies in the picture."""
        return self.origin + pose_B6[:, 3:5]

    def lid_gain(self, shape_BK3: Tensor) -> Tensor:
        """(B, 2) how much more than the mean head's lids these must travel: 1 is shut for everyone.

        Wide eyes would else stay open by two pixels of 256, with the iris shining through.
        """
        travel = lid_gap(self.basis[DIMS["lip"] : DIMS["lip"] + 2])
        reach = torch.stack([travel[0, 0], travel[1, 1]]).clamp_max(-1e-3)
        return (lid_gap(shape_BK3) / -reach).clamp(1.0, LID_GAIN)


def _rim_points() -> Tensor:
    side = torch.linspace(0, 1, _RIM // 4 + 1)[:-1]
    zero, one = torch.zeros_like(side), torch.ones_like(side)
    return torch.cat(
        [torch.stack(p, 1) for p in ((side, zero), (one, side), (1 - side, one), (zero, 1 - side))]
    )


def _group_index() -> Tensor:
    """Group of every control point, for the geometry maps."""
    index = torch.full((LANDMARKS + _CROWN + _RIM,), 9)
    order = ["oval", "brow_left", "brow_right", "eye_left", "eye_right", "iris_left",
             "iris_right", "nose", "lips_outer", "lips_inner"]  # fmt: skip
    merged = [0, 1, 1, 2, 3, 2, 3, 4, 5, 6]
    for name, group in zip(order, merged, strict=True):
        index[GROUPS[name]] = group
    index[LANDMARKS : LANDMARKS + _CROWN] = 7
    index[LANDMARKS + _CROWN :] = 8
    return index


class KernelFlow(nn.Module):
    """Dense backward flow from control points: a softmax over squared distances.

    For an output position p, flow(p) = sum_k w_k(p) (s_k + A_k (p - d_k)), with s and d the
    control points in source and driving frame, A the plane part of the head's turn for
    points of the head and the identity for the rim. Widths and strengths are learned.
    """

    grid: Tensor
    one_hot: Tensor
    on_head: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        count = LANDMARKS + _CROWN + _RIM
        width = torch.full((count,), 0.022)
        width[GROUPS["oval"]] = 0.045
        width[LANDMARKS:] = 0.07
        self.log_precision = nn.Parameter(-2 * width.log() - 0.6931)
        self.strength = nn.Parameter(torch.zeros(count))
        axis = (torch.arange(size) + 0.5) / size
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("grid", torch.stack([x, y], -1).view(-1, 2))
        self.register_buffer("one_hot", F.one_hot(_group_index(), 10)[:, :9].float())
        self.register_buffer("on_head", (_group_index() != 8).float())

    def forward(
        self, source_BK2: Tensor, driving_BK2: Tensor, turn_B22: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> flow (B, 2, S, S) in crop units and group maps (B, 9, S, S)."""
        grid = self.grid
        precision = self.log_precision.exp()
        # |p - d|^2 expanded so that it is one matrix product.
        squared = (
            (grid * grid).sum(1)[None, :, None]
            - 2 * torch.matmul(grid, driving_BK2.transpose(1, 2))
            + (driving_BK2 * driving_BK2).sum(2)[:, None, :]
        )
        weights = torch.softmax(self.strength - squared * precision, dim=2)
        head = self.on_head[None, :, None]
        turned = torch.matmul(driving_BK2, turn_B22.transpose(1, 2))
        constant = source_BK2 - head * turned - (1 - head) * driving_BK2
        spread = torch.matmul(weights, constant)
        share = torch.matmul(weights, self.on_head)[:, :, None]
        grid_turned = torch.matmul(grid, turn_B22.transpose(1, 2))
        flow = spread + share * grid_turned + (1 - share) * grid
        maps = torch.matmul(weights, self.one_hot)
        size = self.size
        return (
            flow.transpose(1, 2).reshape(-1, 2, size, size),
            maps.transpose(1, 2).reshape(-1, 9, size, size),
        )


def warp(x_BCHW: Tensor, flow_B2HW: Tensor) -> Tensor:
    """Sample `x` at backward flow positions in [0, 1] (any flow size), border replicated."""
    grid = flow_B2HW.permute(0, 2, 3, 1) * 2 - 1
    return F.grid_sample(x_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=False)


def resize(x_BCHW: Tensor, size: int) -> Tensor:
    """Bilinear resize, half-pixel centres (what OpenCV's INTER_LINEAR does)."""
    return F.interpolate(x_BCHW, (size, size), mode="bilinear", align_corners=False)


@dataclass(frozen=True, slots=True)
class Motion:
    """Between flow and decoder, S = config.flow_size.

    flow (B, 2, 2S, 2S), the learned part of it at its own size, residual (B, 2, S, S),
    features x (B, 32, S, S), hints (B, 12, S, S), apertures (B, 3, 2S, 2S),
    mouth's inside (B, 4, 4S, 4S), seam of the lids and what the warp keeps (B, 2, 2S, 2S),
    style (B, 128), control points of the source (B, 196, 2).
    """

    flow: Tensor
    residual: Tensor
    x: Tensor
    hints: Tensor
    apertures: Tensor
    mouth: Tensor
    lids: Tensor
    style: Tensor
    source: Tensor

    def window(self, left: int, top: int, size: int) -> Motion:
        """The same for a square part of the frame, in cells of S."""
        part = (..., slice(top, top + size), slice(left, left + size))
        fine, finest = (
            (..., slice(k * top, k * (top + size)), slice(k * left, k * (left + size)))
            for k in (2, 4)
        )
        return Motion(
            self.flow[fine], self.residual[part], self.x[part], self.hints[part],
            self.apertures[fine], self.mouth[finest],
            self.lids[fine], self.style, self.source,
        )  # fmt: skip


class Generator(nn.Module):
    """One frame of a portrait: feature maps, its shape and two codes -> flow, mask, RGB."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = Geometry()
        self.kernel = KernelFlow(config.flow_size)
        self.apertures = ApertureMaps(2 * config.flow_size)
        self.lids = LidWarp(2 * config.flow_size)
        self.lips = LipWarp(2 * config.flow_size)
        self.mouth = MouthInside(4 * config.flow_size)
        self.style = nn.Sequential(
            nn.Linear(2 * CODE_DIM + 64, STYLE), nn.LeakyReLU(0.2), nn.Linear(STYLE, STYLE),
            nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.flow_in = ModulatedConv(C32 + GEOMETRY_MAPS, 64, STYLE)
        self.flow_res = ModulatedRes(64, STYLE)
        self.flow_up = ModulatedConv(64 + GEOMETRY_MAPS, 32, STYLE)
        self.flow_out = nn.Conv2d(32, 2, 3, 1, 1)
        for parameter in self.flow_out.parameters():
            nn.init.zeros_(parameter)
        self.decode_in = ModulatedConv(C64 + 32 + GEOMETRY_MAPS + APERTURE_MAPS, 64, STYLE)
        self.decode_res = ModulatedRes(64, STYLE)
        self.to128 = nn.Conv2d(64, 32 * 4, 3, 1, 1)
        self.at128 = ModulatedConv(32 + 3 + APERTURE_MAPS + 1, 32, STYLE)
        self.to256 = nn.Conv2d(32, 4 * 4, 3, 1, 1)

    def forward(
        self,
        rgb128: Tensor,
        f64: Tensor,
        f32: Tensor,
        identity: Tensor,
        shape: Tensor,
        source_code: Tensor,
        driving_code: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-> flow (B, 2, 128, 128), mask (B, 1, 256, 256), rgb (B, 3, 256, 256), all in [0, 1].

        rgb128 (B, 3, 128, 128) is the source in [-1, 1]; f64, f32, identity come from
        `AppearanceEncoder`; shape (B, 152, 3); codes (B, 58).
        """
        motion = self.motion(f32, identity, shape, source_code, driving_code)
        mask, rgb = self.decode(rgb128, f64, motion)
        return motion.flow, mask, rgb

    def motion(
        self,
        f32: Tensor,
        identity: Tensor,
        shape: Tensor,
        source_code: Tensor,
        driving_code: Tensor,
    ) -> Motion:
        """Flow and everything the decoder needs besides the pixels.

        Kernel and convolutions move the head with the source's own eyes; lids and irises
        are then moved inside the driving frame by `LidWarp`, and `LipWarp` puts the lips'
        lines exactly where they belong.
        """
        eye = FACTOR_SLICES["eye"]
        parts = [driving_code[:, : eye.start], source_code[:, eye], driving_code[:, eye.stop :]]
        rest_code = torch.cat(parts, 1)
        source = self.geometry(shape, source_code)
        driving, rest = self.geometry(shape, driving_code), self.geometry(shape, rest_code)
        coarse, maps = self.kernel(source, rest, _plane_turn(source_code, driving_code))
        size = self.config.flow_size
        shift = coarse - self.kernel.grid.t().reshape(1, 2, size, size)
        hints = torch.cat([maps, shift * 8, shift.abs().sum(1, keepdim=True) * 8], 1)
        style = self.style(torch.cat([source_code, driving_code, identity], 1))
        hints32 = F.avg_pool2d(hints, 2)
        x = self.flow_in(torch.cat([warp(f32, F.avg_pool2d(coarse, 2)), hints32], 1), style)
        x = resize(self.flow_res(x, style), size)
        x = self.flow_up(torch.cat([x, hints], 1), style)
        residual = self.flow_out(x) * 0.05
        at_rest, lids = self.lids(driving, rest)
        flow = warp(coarse + residual, at_rest)
        flow = self.lips(flow, driving, source)
        apertures = self.apertures(driving)
        kept = torch.maximum(lids[:, 1:], kept_by_warp(driving, self.apertures.axis))
        lids = torch.cat([lids[:, :1], kept], 1)
        pose = driving_code[:, FACTOR_SLICES["pose"]]
        mouth = self.mouth(
            shape, chin_shift(driving_code, self.geometry.basis), self.geometry.camera(pose),
            self.geometry.shift(pose), driving, source,
        )  # fmt: skip
        return Motion(flow, residual, x, hints, apertures, mouth, lids, style, source)

    def decode(self, rgb128: Tensor, f64: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
        """Mask and RGB at twice the size of `motion.flow`, which may be a window of it."""
        flow, style = motion.flow, motion.style
        places = F.avg_pool2d(motion.apertures, 2)
        moved = warp(f64, F.avg_pool2d(flow, 2))
        y = self.decode_in(torch.cat([moved, motion.x, motion.hints, places], 1), style)
        y = F.leaky_relu(F.pixel_shuffle(self.to128(self.decode_res(y, style)), 2), 0.2)
        seen = [warp(rgb128, flow), motion.apertures, motion.lids[:, :1]]
        y = F.pixel_shuffle(self.to256(self.at128(torch.cat([y, *seen], 1), style)), 2)
        seam, kept = resize(motion.lids, y.shape[-1]).chunk(2, 1)
        mask = torch.maximum(torch.sigmoid(y[:, 3:4] + 1.5), kept) * (1 - seam)
        # It lies before all that the decoder and the warp show of the mouth's inside.
        behind = 1 - motion.mouth[:, 3:]
        white = light(rgb128, motion.source)[:, :, None, None]
        return mask * behind, torch.sigmoid(y[:, :3]) * behind + motion.mouth[:, :3] * white


def _plane_turn(source_code: Tensor, driving_code: Tensor) -> Tensor:
    """(B, 2, 2) that maps image-plane offsets of the driving head to those of the source head."""
    slot = FACTOR_SLICES["pose"]
    source, driving = source_code[:, slot], driving_code[:, slot]
    # Made on the device: nothing may be copied to it while a CUDA graph is captured.
    flip = 2 * torch.eye(2, device=source.device) - 1
    a = rotation(source)[:, :2, :2] * flip
    b = rotation(driving)[:, :2, :2] * flip
    determinant = b[:, 0, 0] * b[:, 1, 1] - b[:, 0, 1] * b[:, 1, 0]
    inverse = torch.stack([b[:, 1, 1], -b[:, 0, 1], -b[:, 1, 0], b[:, 0, 0]], 1).view(-1, 2, 2)
    scale = (source[:, 5] - driving[:, 5]).exp() / determinant
    return torch.matmul(a, inverse) * scale[:, None, None]


def compose(source_BCHW: Tensor, flow: Tensor, mask: Tensor, rgb: Tensor) -> Tensor:
    """Composite in torch for training, at the size of `mask`; source in [0, 1]."""
    warped = warp(source_BCHW, resize(flow, mask.shape[-1]))
    return mask * warped + (1 - mask) * rgb
