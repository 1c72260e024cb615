"""What only a warping generator has: its flow, and a picture compared on a window of it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from models.face import GROUPS


def landmark_flow(flow_B2HW: Tensor, driving_BK2: Tensor, source_BK2: Tensor) -> Tensor:
    """Mean over landmarks k of w_k |flow(d_k) - s_k|: what lies at a driving landmark must come
    from the same landmark of the source.

    All in crop units; landmarks at the picture's rim are left out, eyes weigh 2, lips 2.5.
    Source: DESIGN.md, "flow is supervised wherever the prior gives correspondences".
    """
    at = F.grid_sample(
        flow_B2HW, (driving_BK2 * 2 - 1)[:, :, None], align_corners=False, padding_mode="border"
    )[..., 0].transpose(1, 2)
    inside = ((driving_BK2 > 0.01) & (driving_BK2 < 0.99)).all(-1, keepdim=True).float()
    weight = flow_B2HW.new_ones(1, driving_BK2.shape[1], 1)
    weight[:, GROUPS["eye_left"].start : GROUPS["iris_right"].stop] = 2
    weight[:, GROUPS["lips_outer"].start :] = 2.5
    return ((at - source_BK2).abs() * inside * weight).mean()


def dense_flow(flow_B2HW: Tensor, wanted_B2HW: Tensor, valid_B1HW: Tensor) -> Tensor:
    """Mean of |flow - wanted| where the renderer knows where a pixel came from (`valid` 1)."""
    error = (flow_B2HW - wanted_B2HW).abs().sum(1, keepdim=True) * valid_B1HW
    return error.sum() / valid_B1HW.sum().clamp_min(1)


def smooth_residual(residual_B2HW: Tensor) -> Tensor:
    """Mean |r| + 2 sum over x and y of mean |second difference of r|: correct little, bend less."""
    bend = residual_B2HW.new_zeros(())
    for axis in (2, 3):
        near = residual_B2HW.roll(1, axis) + residual_B2HW.roll(-1, axis)
        bend = bend + (near - 2 * residual_B2HW)[:, :, 1:-1, 1:-1].abs().mean()
    return residual_B2HW.abs().mean() + 2 * bend


def picture_difference(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 of values and of their horizontal and vertical differences, at two scales."""
    total = ((a - b).abs() * weight).mean()
    for _ in range(2):
        dx = (a[..., 1:] - a[..., :-1]) - (b[..., 1:] - b[..., :-1])
        dy = (a[..., 1:, :] - a[..., :-1, :]) - (b[..., 1:, :] - b[..., :-1, :])
        total = total + (dx.abs() * weight[..., 1:]).mean() + (dy.abs() * weight[..., 1:, :]).mean()
        a, b, weight = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2), F.avg_pool2d(weight, 2)
        total = total + 0.5 * ((a - b).abs() * weight).mean()
    return total
