"""Hinge GAN and feature matching over all scales of the discriminator.

A discriminator returns one list of features per scale; feature 0 is the picture itself and
the last one the verdict map (METHOD.md section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Scales = Sequence[Sequence[Tensor]]


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def judge_loss(real: Scales, drawn: Scales) -> Tensor:
    """Of D: E[max(0, 1 - D(real))] + E[max(0, 1 + D(drawn))], mean over scales."""
    return _mean(
        [
            F.relu(1 - r[-1]).mean() + F.relu(1 + d[-1]).mean()
            for r, d in zip(real, drawn, strict=True)
        ]
    )


def fool_loss(drawn: Scales) -> Tensor:
    """Of G: -E[D(drawn)], mean over scales."""
    return _mean([-scale[-1].mean() for scale in drawn])


def feature_matching(real: Scales, drawn: Scales, weight: float = 10.0) -> Tensor:
    """L_FM: weight / num_D times the L1 distance of every feature but the verdict.

    Feature 0 is the picture, so this contains a pixel L1 (METHOD.md section 4).
    """
    total = torch.stack(
        [
            (a.detach() - b).abs().mean()
            for r, d in zip(real, drawn, strict=True)
            for a, b in zip(r[:-1], d[:-1], strict=True)
        ]
    ).sum()
    return total * (weight / len(real))
