"""D: a PatchGAN at two scales with spectral and instance norm (METHOD.md section 2).

Used in training only; never exported.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


def _conv(inputs: int, outputs: int, stride: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, 2))


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> the picture, the features of all layers, the verdict map."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        channels = [min(width * 2**i, width * 8) for i in range(layers)]
        self.layers = nn.ModuleList([nn.Sequential(_conv(3, width, 2), nn.LeakyReLU(0.2))])
        for i, (a, b) in enumerate(pairwise(channels)):
            stride = 1 if i == layers - 2 else 2
            self.layers.append(
                nn.Sequential(_conv(a, b, stride), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2))
            )
        self.verdict = _conv(channels[-1], 1, 1)

    def forward(self, picture_BCHW: Tensor) -> list[Tensor]:
        """Feature 0 is the picture itself, the last one the verdict."""
        found = [picture_BCHW]
        for layer in self.layers:
            found.append(layer(found[-1]))
        found.append(self.verdict(found[-1]))
        return found


class Discriminator(nn.Module):
    """`PatchDiscriminator` on the picture and on its half; verdicts 31 x 31 and 17 x 17 at 224."""

    def __init__(self, width: int = 64, layers: int = 4, scales: int = 2) -> None:
        super().__init__()
        self.scales = nn.ModuleList([PatchDiscriminator(width, layers) for _ in range(scales)])

    def forward(self, picture_BCHW: Tensor) -> list[list[Tensor]]:
        """One list of features per scale, fine to coarse."""
        found = []
        for scale in self.scales:
            found.append(scale(picture_BCHW))
            picture_BCHW = F.avg_pool2d(picture_BCHW, 3, 2, 1, count_include_pad=False)
        return found


def judge(net: Discriminator, true: Tensor, drawn: Tensor) -> tuple[list[list[Tensor]], ...]:
    """Features of both in one pass, so that both meet the same spectral norm."""
    both = net(torch.cat([true, drawn]))
    half = len(true)
    return [[f[:half] for f in scale] for scale in both], [
        [f[half:] for f in scale] for scale in both
    ]
