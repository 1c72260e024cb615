"""E_aud: log-mel window of one video frame -> lip code (METHOD.md section 2).

A small squeeze-and-excitation ResNet with attentive pooling over time. The window is the
whole state: computing frame f from its window streamed equals computing it offline.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.codes import DIMS
from models.config import ModelConfig
from models.networks.blocks import ConvBlock
from models.rates import MEL_BANDS


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean, reduction 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // 8), nn.ReLU(), nn.Linear(channels // 8, channels),
            nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape is kept."""
        gate: Tensor = self.gate(x_BCHW.mean((2, 3)))
        return x_BCHW * gate[:, :, None, None]


class SERes(nn.Module):
    """ResBlock with a squeeze-and-excitation gate on its branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConvBlock(channels, channels),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            SqueezeExcite(channels),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Shape is kept."""
        return torch.nn.functional.leaky_relu(x_BCHW + self.branch(x_BCHW), 0.1)


class AudioEncoder(nn.Module):
    """(B, T, 80) log-mel in [0, 1], T = config.mel_window -> lip code (B, 16)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Frequency shrinks four times, time only twice: timing is what lips are about.
        self.body = nn.Sequential(
            ConvBlock(1, 32, (2, 1)), ConvBlock(32, 48, (2, 2)), SERes(48),
            ConvBlock(48, 96, (2, 1)), SERes(96), ConvBlock(96, 128, (2, 2)), SERes(128),
        )  # fmt: skip
        bands = MEL_BANDS // 16
        # Two strides of 2, both rounding up, are one division by 4 rounding up.
        steps = -(-config.mel_window // 4)
        # One weight per time step and band, so that "where in the window" is never pooled away.
        self.pool = nn.Conv2d(128, 32, 1)
        self.feature = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.1), nn.Linear(32 * bands * steps, 512), nn.ReLU()
        )
        self.lip = nn.Linear(512, DIMS["lip"])

    def embed(self, mel_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """The 512-d pre-embedding and the lip code (B, 16)."""
        x = (mel_BTM.transpose(1, 2)[:, None] - 0.4) * 3.0
        pre: Tensor = self.feature(self.pool(self.body(x)))
        return pre, self.lip(pre)

    def forward(self, mel_BTM: Tensor) -> Tensor:
        """Encode a batch of windows."""
        return self.embed(mel_BTM)[1]
