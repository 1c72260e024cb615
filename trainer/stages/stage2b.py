"""Stage 2b, eyes: a face with borrowed eyes belongs to whom the eyes came from.

The trunk is frozen. Anchor: frame 2 with the eyes of frame 1; positive: frame 1; negative:
frame 2 (METHOD.md section 3). Only lids and gaze can tell them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.loader import to_unit
from trainer.losses.contrastive import eye_contrast
from trainer.recipes.config import Recipe
from trainer.stages.eyes import eye_triples
from trainer.stages.optim import adam, schedule
from trainer.stages.run import Run, set_frozen, set_trained
from trainer.stages.sampling import Data
from trainer.stages.system import System

#: One unit of a scaled eye code is an error that a person would see.
EYE_SCALE = 4.0


def train(recipe: Recipe, system: System, data: Data, run: Run) -> None:
    """Run stage 2b to its end; resumes where the run's file says."""
    spec = recipe.stage2b
    set_frozen(system)
    trained = set_trained(system.motion.heads["eye"])
    optimiser = adam(trained, spec.optim)
    run.track(system=system, optimiser=optimiser)
    make = eye_triples(data, spec, recipe.model)
    for step, batch in run.steps(make, batch=spec.batch, steps=spec.steps):
        schedule(optimiser, spec.optim, step, spec.steps)
        with run.autocast():
            with torch.no_grad():
                feature = system.motion.features(to_unit(batch["face"].flatten(0, 1)) * 2 - 1)
            pre, code = system.motion.embed("eye", feature)
        space = (pre if spec.space == "feature" else code).float().view(len(batch["face"]), 3, -1)
        terms: dict[str, Tensor] = {}
        if spec.contrast:
            terms["eye"] = spec.contrast * eye_contrast(space[:, 0], space[:, 1], space[:, 2])
        if spec.labels:
            read = code.float().view(-1, 3, code.shape[1])[:, :2]
            error = EYE_SCALE * (read - batch["eye"]) * batch["trust"][..., None]
            loss = F.smooth_l1_loss(error, torch.zeros_like(error))
            terms["labels"] = spec.labels * 2 * loss
        run.descend(optimiser, terms, trained, limit=spec.optim.clip)
        nearer = F.cosine_similarity(space[:, 0], space[:, 2]) > F.cosine_similarity(
            space[:, 1], space[:, 2]
        )
        run.log({**terms, "right": nearer.float().mean()})
        run.pictures("one-two-anchor", _columns(batch["face"]))


def _columns(face_B3HWC: Tensor) -> list[Tensor]:
    return [to_unit(face_B3HWC[:, i]) * 2 - 1 for i in range(3)]
