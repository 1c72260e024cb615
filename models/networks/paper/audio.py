"""E_aud: ResNet-SE34 over the log-mel window, self-attentive pooling over time.

7.6 M parameters, 0.47 GMAC per frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.networks.audio import SqueezeExcite
from models.rates import MEL_BANDS

BLOCKS = (3, 4, 6, 3)
WIDTHS = (32, 64, 128, 256)
ATTENTION = 128


class SEBlock(nn.Module):
    """Two 3x3 convolutions and a squeeze-and-excitation gate around a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.gate = SqueezeExcite(outputs)
        self.skip = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.norm1(F.relu(self.conv1(x_BCHW)))
        y = self.gate(self.norm2(self.conv2(y)))
        return F.relu(y + self.skip(x_BCHW))


class AudioEncoder(nn.Module):
    """(B, T, 80) log-mel in [0, 1], T = config.mel_window -> lip code (B, config.lip_dim)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.InstanceNorm1d(MEL_BANDS)
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(32))
        blocks: list[nn.Module] = []
        inputs = WIDTHS[0]
        for level, (count, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            for i in range(count):
                blocks.append(SEBlock(inputs, width, 2 if level and i == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        channels = inputs * MEL_BANDS // 8
        self.attention = nn.Sequential(
            nn.Conv1d(channels, ATTENTION, 1), nn.ReLU(), nn.BatchNorm1d(ATTENTION),
            nn.Conv1d(ATTENTION, channels, 1),
        )  # fmt: skip
        self.feature = nn.Linear(channels, 512)
        self.lip = nn.Linear(512, config.lip_dim)

    def embed(self, mel_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """The 512-d pre-embedding and the lip code."""
        x = self.norm(mel_BTM.transpose(1, 2))[:, None]
        x = self.blocks(self.stem(x)).flatten(1, 2)
        weight = torch.softmax(self.attention(x), 2)
        pre: Tensor = self.feature((x * weight).sum(2))
        code: Tensor = self.lip(F.relu(pre))
        return pre, code

    def forward(self, mel_BTM: Tensor) -> Tensor:
        """Encode a batch of windows."""
        return self.embed(mel_BTM)[1]
