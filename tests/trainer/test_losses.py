"""Every loss against numbers worked out by hand, and its gradient against finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.checkpoint import open_checkpoint
from models.face import LANDMARKS
from models.networks import load_networks
from models.networks.discriminator import Discriminator, judge
from trainer.losses.adversarial import feature_matching, fool_loss, judge_loss
from trainer.losses.contrastive import choose_negatives, eye_contrast, info_nce, sync_losses
from trainer.losses.decorrelation import (
    MemoryBank,
    cross_correlation,
    decorrelation,
    same_dimension,
)
from trainer.losses.flow import dense_flow, landmark_flow, picture_difference, smooth_residual
from trainer.losses.lips import contact
from trainer.losses.motion import gaze_consistency, lip_consistency, motion_loss, pose_loss
from trainer.losses.perceptual import FaceFeatures, perceptual_loss
from trainer.losses.priors import LabelPrior, by_path

pytestmark = pytest.mark.unit


def noise(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


# --- contrastive ------------------------------------------------------------------------


def test_info_nce_by_hand() -> None:
    anchor = torch.tensor([[1.0, 0.0]])
    pool = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    found = info_nce(anchor, pool[:1], pool, torch.tensor([[1, 2]]), tau=0.5)
    e = math.exp
    assert found.item() == pytest.approx(-math.log(e(2) / (e(2) + e(0) + e(-2))), rel=1e-6)


def test_info_nce_at_tau_one_cannot_fall_below_the_papers_floor() -> None:
    anchor, k = torch.tensor([[1.0, 0.0]]), 7
    pool = torch.cat([anchor, -anchor.expand(k, -1)])
    best = info_nce(anchor, anchor, pool, torch.arange(1, k + 1)[None], tau=1.0)
    assert best.item() == pytest.approx(math.log(1 + k * math.exp(-2)), rel=1e-5)


def test_sync_losses_look_both_ways_and_have_right_gradients() -> None:
    a, v = noise(5, 3), noise(5, 3, seed=1)
    negatives = torch.tensor([[1, 2], [0, 4], [3, 1], [2, 0], [1, 3]])
    found = sync_losses(a, v, negatives, 0.1)
    swapped = sync_losses(v, a, negatives, 0.1)
    torch.testing.assert_close(found["a2v"], swapped["v2a"])
    assert found["a2v"].item() != pytest.approx(found["v2a"].item(), rel=1e-3)
    assert torch.autograd.gradcheck(
        lambda x, y: torch.stack(list(sync_losses(x, y, negatives, 0.3).values())), (a, v)
    )


def test_half_of_the_negatives_are_far_moments_of_the_same_clip() -> None:
    clip = torch.tensor([0] * 6 + [1] * 6)
    frame = torch.tensor([0, 2, 4, 6, 20, 40] * 2)
    rng = torch.Generator().manual_seed(0)
    rows = choose_negatives(clip, frame, 8, rng)
    assert rows.shape == (12, 8)
    same = clip[rows] == clip[:, None]
    assert (same.sum(1) == 4).all()
    gap = (frame[rows] - frame[:, None]).abs()
    assert (gap[same] >= 5).all()


def test_a_lonely_clip_uses_the_other_kind_of_negative_and_nobody_is_told() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = choose_negatives(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 4, rng)
    assert (rows[:2] == 2).all()
    with pytest.raises(ValueError, match="no negative"):
        choose_negatives(torch.tensor([0, 0]), torch.tensor([0, 1]), 4, rng)


def test_eye_contrast_by_hand_and_gradient() -> None:
    one, two, anchor = (torch.tensor([r]) for r in ([1.0, 0.0], [0.0, 1.0], [2.0, 0.0]))
    e = math.e
    assert eye_contrast(one, two, anchor).item() == pytest.approx(-math.log(e / (e + 1)), rel=1e-5)
    assert torch.autograd.gradcheck(
        eye_contrast, (noise(3, 4), noise(3, 4, seed=1), noise(3, 4, seed=2))
    )


# --- motion -------------------------------------------------------------------------------


def test_lips_that_should_touch_cost_what_they_are_apart() -> None:
    opening = torch.tensor([0.03, -0.04])  # a gap of .05 per unit along its direction
    wanted = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.05], [0.0, 0.0]])
    found = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    # Frame 1 is .03 apart; 2 may be open; 3 wanted -.002 and has 0; 4 is shut more than asked.
    assert contact(found, wanted, opening).item() == pytest.approx((0.03 + 0.002) / 4 / 0.05)
    assert contact(wanted, wanted, opening).item() == 0


def test_contact_pulls_only_along_the_gap() -> None:
    lip = (noise(6, 3) + 2).detach().requires_grad_()
    opening = torch.tensor([0.03, 0.01, 0.0], dtype=torch.float64)
    contact(lip, torch.zeros(6, 3, dtype=torch.float64), opening).backward()
    grad = lip.grad
    assert grad is not None
    torch.testing.assert_close(grad[:, 0] / grad[:, 1], torch.full((6,), 3.0, dtype=torch.float64))
    assert (grad[:, 2] == 0).all()
    assert torch.autograd.gradcheck(lambda x: contact(x, torch.zeros_like(x), opening), (lip,))


def test_motion_and_pose_losses_by_hand() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    zero = torch.zeros(2, 2)
    assert motion_loss(a, zero, zero, zero).item() == pytest.approx(2.5, rel=1e-5)
    assert motion_loss(a, zero, a, zero).item() == pytest.approx(5.0, rel=1e-5)
    pose = torch.tensor([[1.0, -2.0, 0, 0, 0, 0.5], [0, 0, 0, 0, 0, 0]])
    assert pose_loss(pose, torch.zeros(2, 6)).item() == pytest.approx(1.75)
    assert torch.autograd.gradcheck(motion_loss, tuple(noise(3, 4, seed=s) for s in range(4)))


def test_equal_features_have_a_finite_gradient() -> None:
    a = torch.ones(2, 3, requires_grad=True)
    motion_loss(a, torch.ones(2, 3), a, torch.ones(2, 3)).backward()
    assert torch.isfinite(a.grad).all()


def test_consistency_terms_by_hand() -> None:
    lip, audio = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    e = math.e
    assert lip_consistency(lip, audio).item() == pytest.approx((1 / e + e) / 2, rel=1e-5)
    heard = torch.tensor([1.0, 0.0])
    assert lip_consistency(lip, audio, heard).item() == pytest.approx(1 / e, rel=1e-5)
    assert lip_consistency(lip, audio, torch.zeros(2)).item() == 0
    gaze = gaze_consistency(torch.tensor([[0.5, -0.25]]), torch.zeros(1, 2))
    assert gaze.item() == pytest.approx(0.75)


# --- decorrelation --------------------------------------------------------------------------


def test_correlated_dimensions_cost_and_others_do_not() -> None:
    x = torch.tensor([[1.0, 1.0], [2.0, -1.0], [3.0, -1.0], [4.0, 1.0]])
    y = torch.stack([x[:, 0] * -5 + 2, x[:, 0]], 1)
    # cor(x0, y0) = -1; cor(x1, y1) = cor(x1, x0) = 0.
    assert same_dimension(x, y).item() == pytest.approx(0.5, abs=1e-5)
    # Whole matrix: x0 with both +-1, x1 with none.
    assert cross_correlation(x, y).item() == pytest.approx(0.5, abs=1e-5)
    assert cross_correlation(x, y[:, :1]).item() == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(ValueError, match="shapes differ"):
        same_dimension(x, y[:, :1])


def test_cross_correlation_equals_numpy() -> None:
    a, b = noise(40, 3), noise(40, 5, seed=1)
    wanted = np.corrcoef(a.detach().T, b.detach().T)[:3, 3:]
    assert cross_correlation(a, b).item() == pytest.approx((wanted**2).mean(), rel=1e-5)
    assert torch.autograd.gradcheck(cross_correlation, (noise(6, 2), noise(6, 3, seed=1)))


def test_the_bank_has_no_gradient_and_keeps_the_last_rows() -> None:
    banks = MemoryBank(4, 2), MemoryBank(4, 2)
    first = torch.randn(3, 2, requires_grad=True)
    decorrelation(first, torch.randn(3, 2), *banks, variant="a")
    second = torch.randn(3, 2, requires_grad=True)
    loss = decorrelation(second, torch.randn(3, 2), *banks, variant="b")
    loss.backward()
    assert first.grad is None, "the bank's rows are past"
    assert second.grad is not None
    assert second.grad.abs().sum() > 0
    assert not banks[0].rows.requires_grad
    assert banks[0].count == 4
    torch.testing.assert_close(banks[0].rows[[3, 0, 1]], second.detach())
    again = MemoryBank(4, 2)
    again.load_state_dict(banks[0].state_dict())
    assert again.count == 4


def test_a_single_frame_without_a_bank_has_no_correlation() -> None:
    x = torch.randn(1, 2, requires_grad=True)
    loss = decorrelation(x, torch.randn(1, 2), MemoryBank(4, 2), MemoryBank(4, 2), variant="a")
    assert loss.item() == 0


# --- adversarial ------------------------------------------------------------------------------


def scales(*verdicts: float) -> list[list[Tensor]]:
    return [[torch.full((1, 3, 2, 2), v), torch.full((1, 1, 2, 2), v)] for v in verdicts]


def test_hinge_by_hand() -> None:
    real, drawn = scales(0.5, 2.0), scales(-2.0, 0.25)
    # Scale 1: 0.5 + 0, scale 2: 0 + 1.25.
    assert judge_loss(real, drawn).item() == pytest.approx((0.5 + 1.25) / 2)
    assert fool_loss(drawn).item() == pytest.approx((2.0 - 0.25) / 2)


def test_feature_matching_leaves_out_the_verdict_and_holds_the_picture() -> None:
    real, drawn = scales(0.0, 1.0), scales(0.5, 3.0)
    assert feature_matching(real, drawn).item() == pytest.approx(10 / 2 * (0.5 + 2.0))


def test_no_gradient_reaches_the_true_features() -> None:
    real, drawn = scales(0.0), scales(1.0)
    for f in (real[0][0], drawn[0][0]):
        f.requires_grad_()
    feature_matching(real, drawn).backward()
    assert real[0][0].grad is None
    assert drawn[0][0].grad is not None


def test_the_discriminator_has_the_published_verdict_sizes() -> None:
    net = Discriminator()
    with torch.no_grad():
        real, drawn = judge(net, torch.rand(1, 3, 224, 224), torch.rand(1, 3, 224, 224))
    assert [f[-1].shape[-1] for f in real] == [31, 17]
    assert [len(f) for f in drawn] == [6, 6], "picture, four layers, verdict"
    assert real[0][0].shape == (1, 3, 224, 224)
    assert any("parametrizations" in n for n, _ in net.named_parameters()), "spectral norm"
    assert any(isinstance(m, nn.InstanceNorm2d) for m in net.modules())


# --- flow and pictures ---------------------------------------------------------------------------


def test_a_still_flow_brings_every_landmark_from_itself() -> None:
    axis = (torch.arange(32) + 0.5) / 32
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    still = torch.stack([x, y])[None]
    points = torch.rand(1, LANDMARKS, 2, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    assert landmark_flow(still, points, points).item() < 1e-6
    moved = landmark_flow(still + 0.1, points, points)
    weights = np.ones(LANDMARKS)
    weights[56:98], weights[112:] = 2, 2.5
    assert moved.item() == pytest.approx(0.1 * weights.mean(), rel=1e-4)
    assert dense_flow(still + 0.1, still, torch.ones(1, 1, 32, 32)).item() == pytest.approx(
        0.2, rel=1e-4
    )
    assert dense_flow(still + 0.1, still, torch.zeros(1, 1, 32, 32)).item() == 0


def test_a_bent_correction_costs_more_than_an_even_one() -> None:
    even = torch.full((1, 2, 8, 8), 0.1)
    assert smooth_residual(even).item() == pytest.approx(0.1)
    bent = even.clone()
    bent[:, :, ::2] *= -1
    assert smooth_residual(bent).item() > 0.3


def test_picture_difference_is_zero_for_equals_and_has_a_right_gradient() -> None:
    a, b = noise(1, 3, 8, 8), noise(1, 3, 8, 8, seed=1)
    weight = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    assert picture_difference(a, a, weight).item() == 0
    assert torch.autograd.gradcheck(lambda x: picture_difference(x, b, weight), (a,))


# --- perceptual net and priors ---------------------------------------------------------


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return load_networks(open_checkpoint(verify=False)).motion.net


def test_perceptual_weights_are_the_published_ones() -> None:
    def five(x: Tensor) -> list[Tensor]:
        return [x] * 5

    one = torch.ones(1, 3, 4, 4)
    found = perceptual_loss(five, one, 0 * one)
    assert found.item() == pytest.approx(10 * (1 / 32 + 1 / 16 + 1 / 8 + 1 / 4 + 1))


def test_the_open_perceptual_net_is_frozen_and_passes_gradients_on(encoder: nn.Module) -> None:
    net = FaceFeatures(encoder)
    picture = torch.rand(1, 3, 144, 144, requires_grad=True)
    assert len(net(picture)) == 5
    perceptual_loss(net, picture, torch.rand(1, 3, 144, 144)).backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in net.parameters())


def test_priors_answer_in_shape_and_reach_the_picture(encoder: nn.Module) -> None:
    prior = LabelPrior(encoder)
    prior.train()
    assert not prior.training, "frozen, batch norms too"
    picture = torch.rand(2, 3, 224, 224, requires_grad=True)
    phi, psi, gaze = prior.phi(picture), prior.psi(picture), prior.gaze(picture)
    assert (phi.shape, psi.shape, gaze.shape) == ((2, 26), (2, 542), (2, 2))
    (phi.sum() + psi.sum() + gaze.sum()).backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    with torch.no_grad():
        other = prior.gaze(torch.rand(2, 3, 224, 224))
    assert not torch.equal(other, gaze.detach()), "another picture is read anew"


def test_a_prior_is_plugged_in_by_its_path() -> None:
    assert by_path("trainer.losses.priors.LabelPrior") is LabelPrior
    with pytest.raises(ValueError, match="names nothing"):
        by_path("trainer.losses.priors.Nothing")
