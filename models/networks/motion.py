"""E_mot: one trunk and four heads read lip, pose, eye and expression codes from a face.

METHOD.md section 2. `live` runs a residual trunk of 0.2 GMAC on a 128-pixel cut of the
canonical crop. A fifth, auxiliary head reads the 152 landmarks: they steer the webcam's
crop between detections and give a portrait its shape, so serving needs no other landmark
model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.codes import DIMS, FACTORS
from models.config import ModelConfig
from models.networks.blocks import ConvBlock, ResBlock, head

class MotionEncoder(nn.Module):
    """(B, 3, 128, 128) RGB in [-1, 1] -> dict of codes (B, dim) and `landmarks` (B, 152, 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = nn.Sequential(
            ConvBlock(3, 24, 2), ConvBlock(24, 48, 2), ResBlock(48), ResBlock(48),
            ConvBlock(48, 96, 2), ResBlock(96), ResBlock(96), ConvBlock(96, 160, 2),
            ResBlock(160), ConvBlock(160, 24), nn.Flatten(),
        )  # fmt: skip
        side = config.face_size // 16
        self.feature = nn.Linear(24 * side * side, 512)
        self.heads = nn.ModuleDict({f: head(DIMS[f]) for f in FACTORS})
        self.landmarks = nn.Linear(512, config.landmarks * 2)
        self.register_buffer("mean_landmarks", torch.zeros(config.landmarks, 2))

    def forward(self, face_BCHW: Tensor) -> dict[str, Tensor]:
        """Read one batch of faces; landmarks are in canonical crop units."""
        feature = torch.nn.functional.leaky_relu(self.feature(self.trunk(face_BCHW)), 0.1)
        out = {f: self.heads[f](feature) for f in FACTORS}
        offset = self.landmarks(feature).view(-1, self.config.landmarks, 2) * 0.1
        out["landmarks"] = self.mean_landmarks + offset
        return out

