"""Lips that should touch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Inner-lip gap over face height, against the resting code 0, below which lips are closed.
CLOSED_GAP = 0.002


def contact(
    lip_ND: Tensor, wanted_ND: Tensor, opening_D: Tensor, closed: float = CLOSED_GAP
) -> Tensor:
    """How far lips stay apart where they should touch; mean over all frames, in code units.

    The gap of a code is `code @ opening`. Where the wanted gap is at most `closed`:
    max(0, gap - wanted gap) / |opening|, elsewhere 0. An L1 loss alone answers with the median
    of what could be said, and a p between two vowels is never the median (ours, in no paper).
    """
    gap, wanted = lip_ND @ opening_D, wanted_ND @ opening_D
    apart = F.relu(gap - wanted) * (wanted <= closed)
    return torch.div(apart.mean(), opening_D.norm())
