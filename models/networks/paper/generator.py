"""G: StyleGAN2's synthesis network without a mapping network, from a 7 x 7 map to 224 pixels.

37.3 M parameters, 34.7 GMAC per frame. The style (identity 2048 and the driving code) is the
same in all layers; noise is drawn once and fixed, so that a frame depends on its code only.

Weights are modulated and demodulated as published (Karras et al., CVPR 2020), but written so
that no weight depends on the frame: conv(x, w * s) * d equals conv(x * s, w) * d, with
d = 1 / sqrt(sum (w s)^2). That is what any ONNX runtime can read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.networks.paper.appearance import IDENTITY, MAP

#: Channels at 7, 14, 28, 56, 112 and 224 pixels.
CHANNELS = (512, 512, 512, 512, 256, 128)
BLUR = (1.0, 3.0, 3.0, 1.0)


def blur_kernel(gain: float = 1.0) -> Tensor:
    """(1, 1, 4, 4) low-pass of StyleGAN2, summing up to `gain`."""
    k = torch.tensor(BLUR)
    k2 = k[:, None] * k[None]
    return (k2 / k2.sum() * gain)[None, None]


class Affine(nn.Module):
    """Style -> one scale per channel, beginning at 1.

    Weights are scaled at run time like the convolutions': a style has 2590 numbers, most of one
    sign, and one step of Adam on unscaled weights would throw all scales far away at once.
    """

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(style)
        self.weight = nn.Parameter(torch.randn(channels, style))
        self.bias = nn.Parameter(torch.ones(channels))

    def forward(self, style_BS: Tensor) -> Tensor:
        """(B, S) -> (B, channels, 1, 1)."""
        return F.linear(style_BS, self.weight * self.scale, self.bias)[:, :, None, None]


class StyledConv(nn.Module):
    """Modulated and demodulated 3x3 convolution, noise, bias, leaky ReLU; may double the size."""

    noise: Tensor
    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, style: int, size: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.scale = 1 / math.sqrt(inputs * 9)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.affine = Affine(style, inputs)
        self.strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("noise", torch.randn(1, 1, size, size))
        self.register_buffer("kernel", blur_kernel(4.0), persistent=False)

    def forward(self, x_BCHW: Tensor, style_BS: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, size, size)."""
        style = self.affine(style_BS)
        weight = self.weight * self.scale
        energy = weight.square().sum((2, 3))
        demodulate = torch.rsqrt(torch.matmul(style[:, :, 0, 0].square(), energy.t()) + 1e-8)[
            :, :, None, None
        ]
        x = x_BCHW * style
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = blur(x, self.kernel, 1)
        else:
            x = F.conv2d(x, weight, padding=1)
        x = x * demodulate + self.noise * self.strength + self.bias[:, None, None]
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


def blur(x_BCHW: Tensor, kernel: Tensor, pad: int) -> Tensor:
    """Depthwise low-pass."""
    channels = x_BCHW.shape[1]
    return F.conv2d(x_BCHW, kernel.expand(channels, 1, 4, 4), padding=pad, groups=channels)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to a picture, added to the doubled one of the layer before."""

    kernel: Tensor

    def __init__(self, inputs: int, style: int) -> None:
        super().__init__()
        self.scale = 1 / math.sqrt(inputs)
        # Small, because six layers add up and tanh must not begin saturated.
        self.weight = nn.Parameter(torch.randn(3, inputs, 1, 1) * 0.1)
        self.bias = nn.Parameter(torch.zeros(3))
        self.affine = Affine(style, inputs)
        self.register_buffer("kernel", blur_kernel(4.0), persistent=False)

    def forward(self, x_BCHW: Tensor, style_BS: Tensor, below: Tensor | None) -> Tensor:
        """-> (B, 3, H, W)."""
        y = F.conv2d(x_BCHW * self.affine(style_BS), self.weight * self.scale, self.bias)
        if below is None:
            return y
        double = F.conv_transpose2d(
            below, self.kernel.expand(3, 1, 4, 4), stride=2, padding=1, groups=3
        )
        return y + double


class Generator(nn.Module):
    """Map (B, 512, 7, 7), identity (B, 2048) and a driving code -> flow, mask, RGB.

    Nothing of the source's pixels is reused, so for `models.composite` the flow is the identity
    and the mask 0 everywhere: what is seen is RGB alone. `driving` is the length of the code; 512
    in stage 1, where the trunk's whole feature drives.
    """

    still: Tensor
    nothing: Tensor

    def __init__(self, config: ModelConfig, driving: int | None = None) -> None:
        super().__init__()
        style = IDENTITY + (driving or config.code_dim)
        size = config.image_size // 2 ** (len(CHANNELS) - 1)
        self.first = StyledConv(MAP, CHANNELS[0], style, size, up=False)
        self.first_rgb = ToRGB(CHANNELS[0], style)
        self.ups, self.convs, self.rgbs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, outputs in enumerate(CHANNELS[1:], 1):
            side = size * 2**level
            self.ups.append(StyledConv(CHANNELS[level - 1], outputs, style, side, up=True))
            self.convs.append(StyledConv(outputs, outputs, style, side, up=False))
            self.rgbs.append(ToRGB(outputs, style))
        cells = config.flow_size
        axis = (torch.arange(cells) + 0.5) / cells
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.register_buffer("still", torch.stack([x, y])[None], persistent=False)
        self.register_buffer(
            "nothing", torch.zeros(1, 1, config.image_size, config.image_size), persistent=False
        )

    def picture(self, map_BCHW: Tensor, identity_BI: Tensor, driving_BD: Tensor) -> Tensor:
        """The frame (B, 3, 224, 224) in [-1, 1]."""
        style = torch.cat([identity_BI, driving_BD], 1)
        x = self.first(map_BCHW, style)
        rgb = self.first_rgb(x, style, None)
        for up, conv, to_rgb in zip(self.ups, self.convs, self.rgbs, strict=True):
            x = conv(up(x, style), style)
            rgb = to_rgb(x, style, rgb)
        return torch.tanh(rgb)

    def forward(
        self, map_BCHW: Tensor, identity_BI: Tensor, driving_BD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As exported: flow (B, 2, 64, 64), mask (B, 1, S, S) of zeros, RGB in [0, 1]."""
        rgb = (self.picture(map_BCHW, identity_BI, driving_BD) + 1) / 2
        count = len(map_BCHW)
        return self.still.expand(count, -1, -1, -1), self.nothing.expand(count, -1, -1, -1), rgb
