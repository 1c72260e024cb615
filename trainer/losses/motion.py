"""Losses about motion: features of priors, pose labels, and the content of a drawn frame."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def feature_distance(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Mean over the batch of ||a - b||_2, differentiable where they are equal."""
    return ((a_ND - b_ND).square().sum(1) + 1e-12).sqrt().mean()


def motion_loss(phi_drawn: Tensor, phi_true: Tensor, psi_drawn: Tensor, psi_true: Tensor) -> Tensor:
    """L_mot = ||phi(I0) - phi(Ig)||_2 + ||psi(I0) - psi(Ig)||_2 (METHOD.md section 4).

    phi: 3-D face features without identity, psi: emotion features, both (N, D) of the true
    and the drawn picture (`trainer.losses.priors`).
    """
    return feature_distance(phi_drawn, phi_true) + feature_distance(psi_drawn, psi_true)


def pose_loss(predicted_N6: Tensor, wanted_N6: Tensor) -> Tensor:
    """L_pose = ||P_pred - P_gt||_1: sum over the six dimensions, mean over the batch."""
    return (predicted_N6 - wanted_N6).abs().sum(1).mean()


def lip_consistency(
    lip_ND: Tensor, audio_ND: Tensor, heard_N: Tensor | None = None, count: Tensor | None = None
) -> Tensor:
    """exp(-S(V_lip(I_f), E_aud(a_g))), mean over the frames that have sound.

    First term of L_con (METHOD.md section 4); `heard_N` in {0, 1}, all frames without it. `count`
    replaces the number of heard frames where several processes share a batch (then: their mean).
    """
    value = (-F.cosine_similarity(lip_ND, audio_ND, dim=1)).exp()
    if heard_N is None:
        return value.mean()
    total = heard_N.sum() if count is None else count
    return (value * heard_N).sum() / total.clamp_min(1e-6)


def gaze_consistency(drawn_N2: Tensor, true_N2: Tensor) -> Tensor:
    """||G(I_f) - G(I_g)||_1: second term of L_con; the third one is `motion_loss`."""
    return (drawn_N2 - true_N2).abs().sum(1).mean()
