"""Stage 3, expression and generator: E_exp, G and its judge; everything else is frozen.

The expression code is the mean over a window of damaged frames, so it holds what lasts; the
lip code comes from sound; pose and eyes come from the driving frame itself. Expression and
sound are decorrelated over batch and memory banks (METHOD.md section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.codes import FACTORS
from trainer.loader import to_unit
from trainer.losses.decorrelation import MemoryBank, decorrelation
from trainer.losses.motion import lip_consistency
from trainer.recipes.config import Recipe
from trainer.stages.judging import Critics, parameters_of, picture_terms, train_judge
from trainer.stages.optim import adam, picture_adam, schedule
from trainer.stages.painting import Drawn, Plan, paint
from trainer.stages.parallel import gather, mean
from trainer.stages.run import Average, Batch, Run, set_frozen, set_trained
from trainer.stages.sampling import Data, PairPlan, pairs
from trainer.stages.system import System

#: One unit of a scaled expression code is an error that a person would see.
EXP_SCALE = 4.0


@dataclass(frozen=True, slots=True)
class Read:
    """What the encoders say about the driving frames, rows (B * n).

    `expression` and `audio` are 512-d pre-embeddings, `code` the driving code.
    """

    expression: Tensor
    exp_code: Tensor
    audio: Tensor
    audio_code: Tensor
    code: Tensor


def train(recipe: Recipe, system: System, data: Data, run: Run, critics: Critics) -> None:
    """Run stage 3 to its end; resumes where the run's file says."""
    spec, w = recipe.stage3, recipe.stage3.weights
    set_frozen(system)
    set_trained(system.generator)
    head = system.motion.heads["exp"]
    if spec.train_expression:
        set_trained(head)
    system.judge.train()
    optimiser = picture_adam(system.generator, parameters_of(head), spec.optim)
    system.judge.requires_grad_(True)
    judging = adam(list(system.judge.parameters()), spec.optim, spec.judge_lr)
    system.judge.requires_grad_(False)
    average = Average({"generator": system.generator, "motion.heads.exp": head}, spec.average)
    banks = [MemoryBank(spec.bank, 512).to(run.device) for _ in range(2)]
    run.track(system=system, optimiser=optimiser, judging=judging, average=average,
              expression_bank=banks[0], audio_bank=banks[1])  # fmt: skip
    plan = PairPlan(recipe.model, spec.driving, spec.augment, spec.synth_share, spec.code_noise,
                    window=recipe.model.expression_window, window_kind=spec.window,
                    sound=True, flow=w.flow > 0)  # fmt: skip
    paintings = Plan(w, spec.driving, spec.decode_window, spec.mouth_window)
    trained = parameters_of(system.generator, head)
    for step, batch in run.steps(pairs(data, plan), batch=spec.batch, steps=spec.steps):
        schedule(optimiser, spec.optim, step, spec.steps)
        read = read_driving(run, recipe, system, batch)
        drawn = paint(run, system, system.generator, batch, read.code, paintings)
        adversarial = w.gan > 0 and step >= spec.adversarial_after
        terms = dict(drawn.terms)
        terms |= picture_terms(run, system, drawn, w, critics, adversarial)
        terms |= code_terms(run, recipe, system, batch, read, drawn, (banks[0], banks[1]))
        run.descend(optimiser, terms, trained, limit=spec.optim.clip)
        if w.gan:
            terms |= train_judge(run, system, drawn, judging, limit=spec.optim.clip)
        average.follow()
        terms["error"] = (drawn.drawn_part() - drawn.true_part()).detach().abs().mean()
        run.log(terms)
        run.pictures("source-true-drawn", [drawn.source, drawn.true, drawn.picture])


def read_driving(run: Run, recipe: Recipe, system: System, batch: Batch) -> Read:
    """Read all four factors; only the expression head has a gradient."""
    spec, motion = recipe.stage3, system.motion
    shares = batch["window_share"].flatten(0, 1)
    with run.autocast():
        with torch.no_grad():
            feature = motion.features(to_unit(batch["face"].flatten(0, 1)) * 2 - 1)
            many = motion.features(to_unit(batch["window"].flatten(0, 2)) * 2 - 1)
            audio, lip = system.audio.embed(batch["mel"].flatten(0, 1))
            seen = {f: motion.heads[f](feature).float() for f in ("lip", "pose", "eye")}
        pre, exp = motion.embed("exp", many)
    # Mean over the window, each frame counted as often as it stands for one.
    expression, exp_code = (
        (x.float().view(*shares.shape, -1) * shares[..., None]).sum(1) for x in (pre, exp)
    )
    heard = batch["heard"].flatten()[:, None]
    lip = lip.float()
    if system.config.family == "paper":
        # Where a clip is silent the frame's own lips drive.
        spoken = heard * lip + (1 - heard) * seen["lip"]
        code = torch.cat([spoken, seen["pose"], seen["eye"], exp_code], 1)
        return Read(expression, exp_code, audio.float(), lip, code)
    label = (batch["code"][:, 1:] + batch["noise"]).flatten(0, 1)
    dice = batch["dice"].flatten(0, 1) < label.new_tensor(spec.read)
    found = {"lip": lip, "pose": seen["pose"], "eye": seen["eye"], "exp": exp_code}
    parts = []
    start = 0
    for i, factor in enumerate(FACTORS):
        wide = found[factor].shape[1]
        use = dice[:, i : i + 1]
        if factor == "lip":
            use = use & (heard > 0)
        parts.append(torch.where(use, found[factor], label[:, start : start + wide]))
        start += wide
    return Read(expression, exp_code, audio.float(), lip, torch.cat(parts, 1))


def code_terms(
    run: Run, recipe: Recipe, system: System, batch: Batch, read: Read, drawn: Drawn,
    banks: tuple[MemoryBank, MemoryBank],
) -> dict[str, Tensor]:  # fmt: skip
    """L_decor, the lip term of L_con, and the labels of named expressions."""
    spec, w = recipe.stage3, recipe.stage3.weights
    terms: dict[str, Tensor] = {}
    heard = batch["heard"].flatten()
    if w.decor and spec.train_expression:
        sounding = gather(heard) > 0
        expression, audio = gather(read.expression)[sounding], gather(read.audio)[sounding]
        if len(expression):
            terms["decor"] = w.decor * decorrelation(expression, audio, *banks, variant=spec.decor)
    if w.con_lip:
        with run.autocast():
            seen = system.motion.embed("lip", system.motion.features(drawn.picture))
        pick = 0 if recipe.stage2a.space == "feature" else 1
        said = (read.audio, read.audio_code)[pick]
        terms["con_lip"] = w.con_lip * lip_consistency(
            seen[pick].float(), said, heard, mean(heard.sum())
        )
    if w.labels and spec.train_expression:
        wanted, trust = batch["window_exp"].flatten(0, 1), batch["trust"].flatten(0, 1)[:, -30:]
        error = (read.exp_code - wanted) * trust
        loss = F.smooth_l1_loss(error, torch.zeros_like(error))
        terms["labels"] = w.labels * 2 * loss
    return terms
