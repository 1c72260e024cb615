"""The terms that stages 1 and 3 share: adversarial, perceptual, and what the priors see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.networks.discriminator import judge
from trainer.losses.adversarial import feature_matching, fool_loss, judge_loss
from trainer.losses.motion import gaze_consistency, motion_loss
from trainer.losses.perceptual import Perceptual, perceptual_loss
from trainer.losses.priors import Prior
from trainer.recipes.config import PictureWeights
from trainer.stages.painting import Drawn
from trainer.stages.run import Run
from trainer.stages.system import System


@dataclass(frozen=True, slots=True)
class Critics:
    """Frozen judges of a picture."""

    prior: Prior
    perceptual: Perceptual


def picture_terms(
    run: Run, system: System, drawn: Drawn, w: PictureWeights, critics: Critics, adversarial: bool
) -> dict[str, Tensor]:
    """GAN, feature matching, perceptual loss, L_mot and the gaze term, each times its weight.

    The discriminator must be frozen while this is called, so that only its answer counts.
    """
    terms: dict[str, Tensor] = {}
    part, true = drawn.drawn_part(), drawn.true_part()
    if w.fm or (w.gan and adversarial):
        with run.autocast():
            seen, found = judge(system.judge, true, part)
        seen, found = ([[f.float() for f in scale] for scale in fs] for fs in (seen, found))
        if w.gan and adversarial:
            terms["gan"] = w.gan * fool_loss(found)
        if w.fm:
            terms["fm"] = w.fm * feature_matching(seen, found)
    with run.autocast():
        if w.perceptual:
            terms["perceptual"] = w.perceptual * perceptual_loss(critics.perceptual, part, true)
        motion = w.mot + w.con_mot
        if motion or w.con_gaze:
            with torch.no_grad():
                prior = critics.prior
                phi, psi = prior.phi(drawn.true).float(), prior.psi(drawn.true).float()
                gaze = prior.gaze(drawn.true).float()
            if motion:
                seen_phi, seen_psi = prior.phi(drawn.picture), prior.psi(drawn.picture)
                terms["mot"] = motion * motion_loss(seen_phi.float(), phi, seen_psi.float(), psi)
            if w.con_gaze:
                terms["con_gaze"] = w.con_gaze * gaze_consistency(
                    prior.gaze(drawn.picture).float(), gaze
                )
    return terms


def train_judge(
    run: Run, system: System, drawn: Drawn, optimiser: Optimizer, *, limit: float
) -> dict[str, Tensor]:
    """One step of the discriminator on the same pictures."""
    system.judge.requires_grad_(True)
    with run.autocast():
        real, fake = judge(system.judge, drawn.true_part(), drawn.drawn_part().detach())
    real, fake = ([[f.float() for f in scale] for scale in fs] for fs in (real, fake))
    terms = {"judge": judge_loss(real, fake)}
    run.descend(optimiser, terms, system.judge.parameters(), limit=limit)
    system.judge.requires_grad_(False)
    return terms


def parameters_of(*modules: nn.Module) -> list[nn.Parameter]:
    """All parameters that are being trained."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]
