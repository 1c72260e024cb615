"""Small blocks shared by the networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, leaky ReLU; the norm folds away at export."""

    def __init__(self, inputs: int, outputs: int, stride: int | tuple[int, int] = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        return torch.nn.functional.leaky_relu(self.norm(self.conv(x_BCHW)), 0.1)


class ResBlock(nn.Module):
    """Two ConvBlocks around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape is kept."""
        y = self.norm(self.conv(self.first(x_BCHW)))
        return torch.nn.functional.leaky_relu(x_BCHW + y, 0.1)


class ModulatedConv(nn.Module):
    """3x3 convolution whose outputs are scaled and shifted by a style, then leaky ReLU.

    The style acts after the convolution (feature-wise modulation) instead of on its
    weights: the same power for one portrait at a time, and no per-frame weights.
    """

    def __init__(self, inputs: int, outputs: int, style: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.affine = nn.Linear(style, 2 * outputs)
        nn.init.normal_(self.affine.weight, std=0.02)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x_BCHW: Tensor, style_BS: Tensor) -> Tensor:
        """(B, inputs, H, W), (B, style) -> (B, outputs, H, W)."""
        scale, shift = self.affine(style_BS)[:, :, None, None].chunk(2, 1)
        y = self.conv(x_BCHW) * (1 + scale) + shift
        return torch.nn.functional.leaky_relu(y, 0.2)


class ModulatedRes(nn.Module):
    """Two modulated convolutions around a skip connection."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.first = ModulatedConv(channels, channels, style)
        self.second = ModulatedConv(channels, channels, style)

    def forward(self, x_BCHW: Tensor, style_BS: Tensor) -> Tensor:
        """Shape is kept."""
        y: Tensor = self.second(self.first(x_BCHW, style_BS), style_BS)
        return x_BCHW + y


def head(dims: int, features: int = 512) -> nn.Sequential:
    """The paper's motion head: Linear-ReLU-BN-Linear, then ReLU-Linear to `dims`."""
    return nn.Sequential(
        nn.Linear(features, 512), nn.ReLU(), nn.BatchNorm1d(512), nn.Linear(512, 512),
        nn.ReLU(), nn.Linear(512, dims),
    )  # fmt: skip


def read_head(net: nn.Module, feature_BD: Tensor) -> tuple[Tensor, Tensor]:
    """A motion head's 512-d pre-embedding (before its last ReLU) and its code."""
    assert isinstance(net, nn.Sequential)
    pre: Tensor = net[:4](feature_BD)
    code: Tensor = net[4:](pre)
    return pre, code
