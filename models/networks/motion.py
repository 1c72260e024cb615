"""E_mot: one trunk and four heads read lip, pose, eye and expression codes from a face.

METHOD.md section 2. The `live` trunk sees the whole face at 128 pixels and, at full
resolution, each eye and the mouth, because gaze and lids move by one or two pixels that a
small face does not show. The right eye is mirrored, so both eyes share one network and
teach it twice as much. All of it meets in one 512-d feature,
from which the paper's four heads read their codes. A fifth, auxiliary head reads the 152
landmarks: they steer the webcam's crop between detections and give a portrait its shape,
so serving needs no other landmark model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.codes import DIMS, FACTORS, Factor
from models.config import ModelConfig
from models.networks.blocks import ConvBlock, ResBlock, head, read_head

#: Parts of the 256-pixel canonical crop: top, left, height, width.
FACE = (46, 32, 192, 192)
LEFT_EYE = (80, 68, 64, 64)
RIGHT_EYE = (80, 124, 64, 64)
MOUTH = (140, 72, 80, 112)


def _part(channels: int) -> nn.Sequential:
    """A small branch for one part of the face at full resolution."""
    return nn.Sequential(
        ConvBlock(3, 16, 2), ConvBlock(16, 32, 2), ResBlock(32), ConvBlock(32, 48, 2),
        ResBlock(48), ConvBlock(48, channels), nn.Flatten(),
    )  # fmt: skip


class EyeReader(nn.Module):
    """One eye, (B, 3, 64, 64) RGB in [-1, 1], image-left or mirrored -> feature (B, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(3, 24, 2), ConvBlock(24, 32, 2), ResBlock(32), ConvBlock(32, 64, 2),
            ResBlock(64), ConvBlock(64, 24), nn.Flatten(), nn.Linear(24 * 64, 128),
        )  # fmt: skip

    def forward(self, eye_BCHW: Tensor) -> Tensor:
        """Read a batch of eyes."""
        return F.leaky_relu(self.body(eye_BCHW), 0.1)


def _cut(crop_BCHW: Tensor, part: tuple[int, int, int, int]) -> Tensor:
    top, left, height, width = part
    return crop_BCHW[:, :, top : top + height, left : left + width]


class MotionEncoder(nn.Module):
    """(B, 3, 256, 256) RGB canonical crop in [-1, 1] -> codes (B, dim), `landmarks` (B, 152, 2)."""

    mean_landmarks: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.image_size != 256:
            raise ValueError("the live motion encoder is laid out for 256-pixel crops")
        self.config = config
        self.trunk = nn.Sequential(
            ConvBlock(3, 24, 2), ConvBlock(24, 48, 2), ResBlock(48), ResBlock(48),
            ConvBlock(48, 96, 2), ResBlock(96), ResBlock(96), ConvBlock(96, 160, 2),
            ResBlock(160), ConvBlock(160, 24), nn.Flatten(),
        )  # fmt: skip
        self.eye = EyeReader()
        self.mouth = _part(12)
        self.mouth_feature = nn.Linear(12 * (MOUTH[2] // 8) * (MOUTH[3] // 8), 128)
        side = config.face_size // 16
        self.feature = nn.Linear(24 * side * side + 128 + 2 * 128, 512)
        self.heads = nn.ModuleDict({f: head(DIMS[f]) for f in FACTORS})
        self.landmarks = nn.Linear(512, config.landmarks * 2)
        self.register_buffer("mean_landmarks", torch.zeros(config.landmarks, 2))

    def features(self, crop_BCHW: Tensor) -> Tensor:
        """Everything before the heads, the paper's trunk: (B, 512)."""
        size = self.config.face_size
        face = F.interpolate(
            _cut(crop_BCHW, FACE), (size, size), mode="bilinear", align_corners=False
        )
        parts = [
            self.trunk(face),
            F.leaky_relu(self.mouth_feature(self.mouth(_cut(crop_BCHW, MOUTH))), 0.1),
            self.eye(_cut(crop_BCHW, LEFT_EYE)),
            self.eye(_cut(crop_BCHW, RIGHT_EYE).flip(3)),
        ]
        return F.leaky_relu(self.feature(torch.cat(parts, 1)), 0.1)

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
