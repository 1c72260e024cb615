"""Stage 2c, pose: the pose head regresses six labelled dimensions, L1; the trunk is frozen."""

from __future__ import annotations

import torch

from trainer.loader import to_unit
from trainer.losses.motion import pose_loss
from trainer.recipes.config import Recipe
from trainer.stages.optim import adam, schedule
from trainer.stages.run import Run, set_frozen, set_trained
from trainer.stages.sampling import Data, poses
from trainer.stages.system import System


def train(recipe: Recipe, system: System, data: Data, run: Run) -> None:
    """Run stage 2c to its end; resumes where the run's file says."""
    spec = recipe.stage2c
    set_frozen(system)
    trained = set_trained(system.motion.heads["pose"])
    optimiser = adam(trained, spec.optim)
    run.track(system=system, optimiser=optimiser)
    make = poses(data, spec, recipe.model)
    for step, batch in run.steps(make, batch=spec.batch, steps=spec.steps):
        schedule(optimiser, spec.optim, step, spec.steps)
        with run.autocast():
            with torch.no_grad():
                feature = system.motion.features(to_unit(batch["face"]) * 2 - 1)
            _, code = system.motion.embed("pose", feature)
        terms = {"pose": pose_loss(code.float(), batch["pose"])}
        run.descend(optimiser, terms, trained, limit=spec.optim.clip)
        run.log(terms)
