"""Perceptual loss over five layers of a frozen network.

The paper uses VGG19, whose weights nobody may ship here. The interface takes any network
that returns five feature maps; our default is the trunk of the motion encoder that ships
with the project (`models/weights/live`), trained on faces and their labels. It knows lips,
lids and head shape, and leaves texture to feature matching. A user with VGG weights names
their own class in the recipe by its dotted path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.motion import MotionEncoder

LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


class Perceptual(Protocol):
    """A frozen network: pictures (B, 3, H, W) in [-1, 1] -> five feature maps, fine to coarse."""

    def __call__(self, picture_BCHW: Tensor, /) -> Sequence[Tensor]:
        """Features; gradients flow to the picture."""


class FaceFeatures(nn.Module):
    """Five layers of a motion encoder's trunk, at the scale that it was trained at."""

    LAYERS = (0, 1, 3, 6, 8)

    def __init__(self, net: MotionEncoder) -> None:
        super().__init__()
        self.trunk = net.trunk
        self.scale = net.config.face_size / 192
        self.requires_grad_(False).eval()

    def forward(self, picture_BCHW: Tensor) -> list[Tensor]:
        """Any picture or window of one, at the scale of the 256-pixel crop."""
        x = F.interpolate(
            picture_BCHW, scale_factor=self.scale, mode="bilinear", align_corners=False
        )
        found = []
        for index, layer in enumerate(self.trunk):
            x = layer(x)
            if index in self.LAYERS:
                found.append(x)
            if index == self.LAYERS[-1]:
                break
        return found


def perceptual_loss(
    net: Perceptual, drawn_BCHW: Tensor, true_BCHW: Tensor, weight: float = 10.0
) -> Tensor:
    """L_vgg = weight * sum_l w_l |F_l(drawn) - F_l(true)|_1, w = 1/32 .. 1 (METHOD.md 4)."""
    with torch.no_grad():
        wanted = net(true_BCHW)
    found = net(drawn_BCHW)
    parts = [w * (a - b).abs().mean() for w, a, b in zip(LAYER_WEIGHTS, found, wanted, strict=True)]
    return weight * torch.stack(parts).sum()
