"""E_mot: a face-alignment trunk with one hourglass, and the four heads.

9.0 M parameters, 6.33 GMAC at 224 pixels. The landmark head is ours and not counted: an
engine needs 152 landmarks to follow a face and to check a portrait, whatever the codes mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.codes import DIMS, FACTORS, Factor
from models.config import ModelConfig
from models.networks.blocks import head, read_head

WIDTH = 256
MAPS = 68
DEPTH = 4


class PyramidBlock(nn.Module):
    """Three 3x3 convolutions whose outputs (1/2, 1/4, 1/4) are joined, norm and ReLU first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half, quarter = outputs // 2, outputs // 4
        sizes = [(inputs, half), (half, quarter), (quarter, quarter)]
        self.norms = nn.ModuleList([nn.BatchNorm2d(a) for a, _ in sizes])
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, 1, 1, bias=False) for a, b in sizes])
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(
                nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        y, parts = x_BCHW, []
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.relu(norm(y)))
            parts.append(y)
        out: Tensor = torch.cat(parts, 1) + self.skip(x_BCHW)
        return out


class Hourglass(nn.Module):
    """Halve `depth` times and come back, with a block beside every level."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.beside = PyramidBlock(width, width)
        self.down = PyramidBlock(width, width)
        inner = Hourglass(depth - 1, width) if depth > 1 else PyramidBlock(width, width)
        self.inner: nn.Module = inner
        self.up = PyramidBlock(width, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape is kept."""
        y = self.up(self.inner(self.down(F.avg_pool2d(x_BCHW, 2))))
        out: Tensor = self.beside(x_BCHW) + F.interpolate(y, x_BCHW.shape[2:], mode="nearest")
        return out


class MotionEncoder(nn.Module):
    """(B, 3, 224, 224) RGB in [-1, 1] -> codes (B, dim) and `landmarks` (B, 152, 2)."""

    mean_landmarks: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU())
        self.blocks = nn.Sequential(
            PyramidBlock(64, 128), nn.AvgPool2d(2), PyramidBlock(128, 128), PyramidBlock(128, WIDTH)
        )
        self.hourglass = Hourglass(DEPTH, WIDTH)
        self.maps = nn.Sequential(
            PyramidBlock(WIDTH, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH),
            nn.ReLU(), nn.Conv2d(WIDTH, MAPS, 1),
        )  # fmt: skip
        side = config.image_size // 8
        self.feature = nn.Sequential(
            nn.BatchNorm2d(MAPS), nn.ReLU(), nn.Conv2d(MAPS, 1, 3, 2, 1), nn.Flatten(),
            nn.Linear(side * side, 512),
        )  # fmt: skip
        dims = {**DIMS, "lip": config.lip_dim}
        self.heads = nn.ModuleDict({f: head(dims[f]) for f in FACTORS})
        self.landmarks = nn.Linear(512, config.landmarks * 2)
        self.register_buffer("mean_landmarks", torch.zeros(config.landmarks, 2))

    def features(self, crop_BCHW: Tensor) -> Tensor:
        """The trunk: (B, 512)."""
        x = self.hourglass(self.blocks(self.stem(crop_BCHW)))
        out: Tensor = self.feature(self.maps(x))
        return out

    def embed(self, factor: Factor, feature_BD: Tensor) -> tuple[Tensor, Tensor]:
        """One head on the trunk's feature: its 512-d pre-embedding and its code."""
        return read_head(self.heads[factor], feature_BD)

    def forward(self, crop_BCHW: Tensor) -> dict[str, Tensor]:
        """Read one batch of crops; landmarks are in canonical crop units."""
        feature = self.features(crop_BCHW)
        out: dict[str, Tensor] = {f: self.heads[f](feature) for f in FACTORS}
        offset = self.landmarks(feature).view(-1, self.config.landmarks, 2) * 0.1
        out["landmarks"] = self.mean_landmarks + offset
        return out
