"""Stage 1, appearance and motion: E_app, the trunk of E_mot, a generator and its judge.

A portrait and driving frames of the same clip. The driving frame is damaged before the
motion encoder sees it, the target is the clean one, so motion cannot carry appearance
(METHOD.md section 3). Learnt codes: the trunk's feature drives the generator, and only
pictures teach it. Named codes: the labels drive it, and teach the trunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.loader import to_unit
from trainer.motion_stage import lip_weights
from trainer.motion_stage import losses as label_losses
from trainer.recipes.config import Recipe
from trainer.stages.judging import Critics, parameters_of, picture_terms, train_judge
from trainer.stages.optim import adam, picture_adam, schedule
from trainer.stages.painting import Plan, paint
from trainer.stages.run import Average, Batch, Run, set_frozen, set_trained
from trainer.stages.sampling import Data, PairPlan, pairs
from trainer.stages.system import System


def train(recipe: Recipe, system: System, data: Data, run: Run, critics: Critics) -> None:
    """Run stage 1 to its end; resumes where the run's file says."""
    spec, w = recipe.stage1, recipe.stage1.weights
    set_frozen(system)
    set_trained(system.appearance, system.first)
    if spec.train_motion:
        set_trained(system.motion)
    if system.who is not None:
        set_trained(system.who)
    system.judge.train()
    reads = spec.drive == "feature" or w.labels > 0
    others = parameters_of(system.appearance, system.motion, *filter(None, [system.who]))
    optimiser = picture_adam(system.first, others, spec.optim)
    system.judge.requires_grad_(True)
    judging = adam(list(system.judge.parameters()), spec.optim, spec.judge_lr)
    system.judge.requires_grad_(False)
    average = Average({"appearance": system.appearance, "generator": system.generator}
                      if system.first is system.generator
                      else {"appearance": system.appearance, "stage1_generator": system.first},
                      spec.average)  # fmt: skip
    run.track(system=system, optimiser=optimiser, judging=judging, average=average)
    weight = lip_weights(data.frames).to(run.device)
    plan = PairPlan(recipe.model, spec.driving, spec.augment, spec.synth_share, spec.code_noise,
                    face=reads, flow=w.flow > 0)  # fmt: skip
    paintings = Plan(w, spec.driving, spec.window, spec.mouth_window)
    trained = parameters_of(system.appearance, system.motion, system.first,
                            *filter(None, [system.who]))  # fmt: skip
    for step, batch in run.steps(pairs(data, plan), batch=spec.batch, steps=spec.steps):
        schedule(optimiser, spec.optim, step, spec.steps)
        terms: dict[str, Tensor] = {}
        feature = None
        if reads:
            with run.autocast():
                feature = system.motion.features(to_unit(batch["face"].flatten(0, 1)) * 2 - 1)
        if w.labels and feature is not None:
            terms["labels"] = w.labels * read_labels(run, system, batch, feature, weight)
        if spec.drive == "feature":
            assert feature is not None
            driving = feature
        else:
            driving = (batch["code"][:, 1:] + batch["noise"]).flatten(0, 1)
        drawn = paint(run, system, system.first, batch, driving, paintings)
        adversarial = w.gan > 0 and step >= spec.adversarial_after
        terms |= drawn.terms
        terms |= picture_terms(run, system, drawn, w, critics, adversarial)
        run.descend(optimiser, terms, trained, limit=spec.optim.clip)
        if w.gan:
            terms |= train_judge(run, system, drawn, judging, limit=spec.optim.clip)
        average.follow()
        terms["error"] = (drawn.drawn_part() - drawn.true_part()).detach().abs().mean()
        run.log(terms)
        run.pictures("source-true-drawn", [drawn.source, drawn.true, drawn.picture])


def read_labels(
    run: Run, system: System, batch: Batch, feature: Tensor, lip_weight: Tensor
) -> Tensor:
    """The supervised loss of named codes and landmarks on the damaged driving frames."""
    with run.autocast():
        out = {f: system.motion.heads[f](feature) for f in ("lip", "pose", "eye", "exp")}
        offset = system.motion.landmarks(feature).view(-1, system.config.landmarks, 2) * 0.1
    out["landmarks"] = system.motion.mean_landmarks + offset.float()
    wanted = {
        "code": batch["code"][:, 1:].flatten(0, 1),
        "landmarks": batch["landmarks"][:, 1:].flatten(0, 1),
        "trust": batch["trust"].flatten(0, 1),
    }
    found = label_losses({k: v.float() for k, v in out.items()}, wanted, lip_weight)
    return torch.stack(list(found.values())).sum()
