"""Contrastive losses of stage 2: audio against video, and eyes against eyes.

S is the cosine. Embeddings are (N, D) float32; a loss is a scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    anchor_ND: Tensor, positive_ND: Tensor, pool_PD: Tensor, negative_NK: Tensor, tau: float
) -> Tensor:
    """InfoNCE: mean over i of -log( e_i / (e_i + sum_k e_ik) ).

    e_i = exp(S(a_i, p_i) / tau), e_ik = exp(S(a_i, n_ik) / tau). METHOD.md section 4, L_a2v and
    L_v2a; the paper has tau = 1. `negative_NK` (int64) names the rows of the
    pool that are the negatives of each anchor.
    """
    anchor = F.normalize(anchor_ND, dim=1)
    same = (anchor * F.normalize(positive_ND, dim=1)).sum(1, keepdim=True)
    others = F.normalize(pool_PD, dim=1)[negative_NK]
    against = torch.einsum("nd,nkd->nk", anchor, others)
    logits = torch.cat([same, against], 1) / tau
    return -torch.log_softmax(logits, 1)[:, 0].mean()


def sync_losses(
    audio_ND: Tensor, video_ND: Tensor, negative_NK: Tensor, tau: float
) -> dict[str, Tensor]:
    """L_a2v and L_v2a of synchronous pairs (row i of both is one moment)."""
    return {
        "a2v": info_nce(audio_ND, video_ND, video_ND, negative_NK, tau),
        "v2a": info_nce(video_ND, audio_ND, audio_ND, negative_NK, tau),
    }


def choose_negatives(
    clip_N: Tensor, frame_N: Tensor, count: int, generator: torch.Generator, apart: int = 5
) -> Tensor:
    """Rows (N, count) of negatives: half of the same clip at least `apart` frames away, the rest
    of other clips.

    The same clip forces timing, not identity (METHOD.md section 3, stage 2a). Rows are drawn with
    replacement; where one kind has no candidate the other fills in.

    Raises:
        ValueError: a row has no candidate of either kind.
    """
    same = clip_N[:, None] == clip_N[None]
    far = (frame_N[:, None] - frame_N[None]).abs() >= apart
    near_half, rest = (same & far).float(), (~same).float()
    for own, other in ((near_half, rest), (rest, near_half)):
        empty = own.sum(1) == 0
        own[empty] = other[empty]
    if bool((near_half.sum(1) == 0).any()):
        raise ValueError("a pair has no negative: more clips or longer ones are needed")
    half = count // 2
    parts = [(near_half, half), (rest, count - half)]
    return torch.cat([torch.multinomial(w, k, True, generator=generator) for w, k in parts if k], 1)


def eye_contrast(positive_ND: Tensor, negative_ND: Tensor, anchor_ND: Tensor) -> Tensor:
    """L_eye = -log( e^{S(f1, fa)} / (e^{S(f1, fa)} + e^{S(f2, fa)}) ), mean over anchors.

    The anchor has the eyes of frame 1 in the face of frame 2 (METHOD.md section 4).
    """
    near = F.cosine_similarity(positive_ND, anchor_ND, dim=1)
    far = F.cosine_similarity(negative_ND, anchor_ND, dim=1)
    return F.softplus(far - near).mean()
