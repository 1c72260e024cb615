"""phi, psi and the gaze estimator: what L_mot and L_con ask about a picture.

The paper takes them from 3-D face reconstruction and emotion networks that are for research
only. Here they are interfaces. The open default is one frozen network trained on our labels
(stage `prior`, or the motion encoder that ships); a user plugs in another by naming a
function `factory(device) -> Prior` by its dotted path in the recipe.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.checkpoint import open_checkpoint
from models.config import ModelConfig
from models.networks import load_networks
from models.networks.motion import MotionEncoder

#: What one unit of each code counts in phi: radians and crop widths are small numbers.
PHI_SCALE = {"pose": 10.0, "lip": 0.5, "eye": 1.0}


class Prior(Protocol):
    """Frozen questions about pictures (B, 3, S, S) in [-1, 1]; gradients flow to the picture."""

    def phi(self, picture_BCHW: Tensor, /) -> Tensor:
        """Pose and face geometry without identity, (B, D)."""

    def psi(self, picture_BCHW: Tensor, /) -> Tensor:
        """Emotion, (B, E)."""

    def gaze(self, picture_BCHW: Tensor, /) -> Tensor:
        """Gaze yaw and pitch, (B, 2), units of 20 degrees."""


class LabelPrior(nn.Module):
    """The open default: a motion encoder trained on labelled faces, frozen.

    phi is its pose, lip and lid codes in units of similar size, psi the 512-d pre-embedding of
    its expression head (normalised) beside its 30 named shapes, the gaze two dims of its eye
    code. Pictures of any size are resized to what it was trained on. One picture asked several
    questions is read once: the last reading is kept while the same tensor is asked about.
    """

    def __init__(self, net: MotionEncoder) -> None:
        super().__init__()
        self.net = net
        self.requires_grad_(False).eval()
        self._last: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> LabelPrior:
        """Stays in evaluation mode."""
        return super().train(False)

    def _feature(self, picture_BCHW: Tensor) -> Tensor:
        if self._last is not None and self._last[0] is picture_BCHW:
            return self._last[1]
        size = self.net.config.image_size
        x = picture_BCHW
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
        feature = self.net.features(x)
        self._last = (picture_BCHW, feature)
        return feature

    def forget(self) -> None:
        """Let go of the last picture and its graph."""
        self._last = None

    def phi(self, picture_BCHW: Tensor) -> Tensor:
        """(B, 26): pose 6, lip 16, lids 4."""
        feature = self._feature(picture_BCHW)
        eye = self.net.heads["eye"](feature)[:, [0, 1, 4, 5]]
        parts = {"pose": self.net.heads["pose"](feature), "lip": self.net.heads["lip"](feature)}
        return torch.cat([*(v * PHI_SCALE[k] for k, v in parts.items()), eye], 1)

    def psi(self, picture_BCHW: Tensor) -> Tensor:
        """(B, 542)."""
        pre, code = self.net.embed("exp", self._feature(picture_BCHW))
        return torch.cat([F.normalize(pre, dim=1), code], 1)

    def gaze(self, picture_BCHW: Tensor) -> Tensor:
        """(B, 2)."""
        code: Tensor = self.net.heads["eye"](self._feature(picture_BCHW))
        return code[:, 2:4]


def label_encoder(path: Path | None, device: torch.device) -> MotionEncoder:
    """The motion encoder of a file of stage `prior`, or the one that ships."""
    if path is None:
        net = load_networks(open_checkpoint(verify=False)).motion.net
        assert isinstance(net, MotionEncoder)
    else:
        net = MotionEncoder(ModelConfig())
        net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["net"])
    return net.to(device).eval()


def by_path(dotted: str) -> Callable[..., Any]:
    """The function or class that `package.module.name` names.

    Raises:
        ValueError: there is nothing of that name.
    """
    module, _, name = dotted.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{dotted} names nothing that can be imported: {error}") from error
    return found
