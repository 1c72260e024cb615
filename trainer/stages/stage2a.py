"""Stage 2a, lips: the lip head of E_mot and E_aud agree on what belongs to one moment.

The trunk is frozen. InfoNCE goes both ways; half of the negatives are other moments of the
same clip, so that timing counts and not identity (METHOD.md section 3). With named codes
the label term stays beside it: E_aud regresses the lip code and its change per frame.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.loader import Make, to_unit
from trainer.losses.contrastive import choose_negatives, sync_losses
from trainer.losses.lips import contact
from trainer.motion_stage import lip_weights
from trainer.recipes.config import Recipe, Stage2a
from trainer.stages.features import KeptFeatures
from trainer.stages.optim import adam, schedule
from trainer.stages.parallel import gather
from trainer.stages.run import Batch, Run, set_frozen, set_trained
from trainer.stages.sampling import Data, damaged, moment_rows, moments
from trainer.stages.system import System
from trainer.voices.lips import mouth_directions


def train(recipe: Recipe, system: System, data: Data, run: Run, voices: Make | None = None) -> None:
    """Run stage 2a to its end; resumes where the run's file says."""
    spec = recipe.stage2a
    set_frozen(system)
    head = system.motion.heads["lip"]
    trained = set_trained(head, system.audio)
    optimiser = adam(trained, spec.optim)
    run.track(system=system, optimiser=optimiser)
    weight = lip_weights(data.frames).to(run.device)
    opening = torch.from_numpy(mouth_directions(data.frames.face)[0]).float().to(run.device)
    make = moments(data, spec, recipe.model, voices)
    kept = keep_features(recipe, system, data, run) if spec.kept else None
    for step, batch in run.steps(make, batch=spec.batch, steps=spec.steps):
        schedule(optimiser, spec.optim, step, spec.steps)
        with run.autocast():
            if kept is not None:
                feature = kept.pick(batch["row"].flatten(), batch["version"].flatten())
            else:
                with torch.no_grad():
                    feature = system.motion.features(to_unit(batch["face"].flatten(0, 1)) * 2 - 1)
            video = system.motion.embed("lip", feature)
            audio = system.audio.embed(batch["mel"].flatten(0, 2))
        terms: dict[str, Tensor] = {}
        if spec.contrast:
            which = 0 if spec.space == "feature" else 1
            now = audio[which].float().view(-1, 2, audio[which].shape[1])[:, 0]
            terms |= contrast(spec, batch, now, video[which].float(), run)
        if spec.labels:
            terms |= labels(spec, batch, audio[1].float(), video[1].float(), weight, opening)
            if "voice_mel" in batch:
                terms |= heard(run, system, spec, batch, weight, opening)
        run.descend(optimiser, terms, trained, limit=spec.optim.clip)
        run.log(terms)


def keep_features(recipe: Recipe, system: System, data: Data, run: Run) -> KeptFeatures:
    """The frozen trunk's features of all pictures of this stage, read once."""
    spec = recipe.stage2a

    def picture(row: int, version: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng((run.seed, row, version))
        return damaged(rng, data, spec, recipe.model, row)

    rows = np.sort(np.concatenate(list(moment_rows(data, spec, recipe.model).values())))
    return KeptFeatures.of(run, system.motion, rows, spec.kept, picture)


def contrast(
    spec: Stage2a, batch: Batch, audio_ND: Tensor, video_ND: Tensor, run: Run
) -> dict[str, Tensor]:
    """L_a2v and L_v2a over the moments of all processes that have a voice."""
    voiced = gather(batch["voiced"].flatten()) > 0
    audio, video = gather(audio_ND)[voiced], gather(video_ND)[voiced]
    clip, frame = (gather(batch[k].flatten())[voiced].cpu() for k in ("clip", "frame"))
    rng = torch.Generator().manual_seed(run.seed * 1_000_003 + run.step)
    negatives = choose_negatives(clip, frame, spec.negatives, rng).to(audio.device)
    found = sync_losses(audio, video, negatives, spec.tau)
    return {k: spec.contrast * v for k, v in found.items()}


def labels(
    spec: Stage2a, batch: Batch, audio: Tensor, video: Tensor, weight: Tensor, opening: Tensor
) -> dict[str, Tensor]:
    """L1 of the named lip code from sound, of its change, and of the code from the picture; lips
    that stay apart.
    """
    wanted = batch["lip"]
    lip = audio.view_as(wanted)
    moved = (lip[:, :, 1] - lip[:, :, 0]) - (wanted[:, :, 1] - wanted[:, :, 0])
    terms = {
        "lip": spec.labels * ((lip - wanted).abs() * weight).mean(),
        "motion": spec.labels * spec.motion * (moved.abs() * weight).mean(),
    }
    if spec.contact:
        terms["contact"] = spec.contact * contact(lip, wanted, opening)
    if spec.video_labels:
        seen = batch["seen"].flatten(0, 1)
        terms["seen"] = spec.video_labels * ((video - seen).abs() * weight).mean()
    return terms


def heard(
    run: Run, system: System, spec: Stage2a, batch: Batch, weight: Tensor, opening: Tensor
) -> dict[str, Tensor]:
    """The label terms on consecutive windows of other voices, which have no picture."""
    wanted = batch["voice_lip"]
    with run.autocast():
        lip = system.audio.embed(batch["voice_mel"].flatten(0, 1))[1]
    lip = lip.float().view_as(wanted)
    moved = lip.diff(dim=1) - wanted.diff(dim=1)
    terms = {
        "voice_lip": spec.labels * ((lip - wanted).abs() * weight).mean(),
        "voice_motion": spec.labels * spec.motion * (moved.abs() * weight).mean(),
    }
    if spec.contact:
        terms["voice_contact"] = spec.contact * contact(lip, wanted, opening)
    return terms
