"""E_app: ResNeXt-50 32x4d; its last map narrowed to 512 channels, its mean as identity.

24.0 M parameters, 4.29 GMAC at 224 pixels, once per portrait.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = (3, 4, 6, 3)
GROUPS, GROUP_WIDTH, EXPANSION = 32, 4, 4
IDENTITY = 2048
MAP = 512


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 around a skip connection (Xie et al., CVPR 2017, 32 groups)."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        width, outputs = planes * GROUP_WIDTH * GROUPS // 64, planes * EXPANSION
        self.reduce = nn.Conv2d(inputs, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.group = nn.Conv2d(width, width, 3, stride, 1, groups=GROUPS, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, 4 planes, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.reduce(x_BCHW)))
        y = F.relu(self.norm2(self.group(y)))
        return F.relu(self.norm3(self.expand(y)) + self.skip(x_BCHW))


class AppearanceEncoder(nn.Module):
    """(B, 3, 224, 224) RGB in [-1, 1] -> map (B, 512, 7, 7) and identity (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        blocks: list[nn.Module] = []
        inputs = 64
        for level, count in enumerate(BLOCKS):
            planes = 64 * 2**level
            for i in range(count):
                blocks.append(Bottleneck(inputs, planes, 2 if level and i == 0 else 1))
                inputs = planes * EXPANSION
        self.blocks = nn.Sequential(*blocks)
        self.narrow = nn.Conv2d(inputs, MAP, 1)

    def forward(self, source_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch of portraits; several frames of one person may be averaged after it."""
        deep = self.blocks(self.stem(source_BCHW))
        return self.narrow(deep), torch.mean(deep, (2, 3))
