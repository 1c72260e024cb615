"""From a recipe, a cache and a run folder to trained networks: which stage begins from what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.loader import Make
from trainer.losses.perceptual import FaceFeatures
from trainer.losses.priors import LabelPrior, by_path, label_encoder
from trainer.recipes.config import Recipe
from trainer.stages import parallel, stage1, stage2a, stage2b, stage2c, stage3
from trainer.stages.judging import Critics
from trainer.stages.run import Run
from trainer.stages.sampling import Data
from trainer.stages.system import System, load_start

STAGES = ("1", "2a", "2b", "2c", "3")
#: Name of the file that stage `prior` leaves in a run folder.
PRIOR_FILE = "motion.pt"


class StageError(ValueError):
    """A stage cannot run as asked; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, as opposed to what to train. Zeros leave the recipe's value."""

    stages: tuple[str, ...] = STAGES
    start: tuple[str, ...] = ()
    steps: int = 0
    batch: int = 0
    device: str = "auto"
    deadline: float | None = None
    """When to save and stop, on the monotonic clock; None: never."""
    voices: Path | None = None
    show: bool = True
    torch_threads: int = 0


def train(recipe: Recipe, cache: Path, folder: Path, options: Options) -> System:
    """Run the stages in order in this process; resumes each from its file in `folder`.

    Raises:
        StageError: an unknown stage, or data that a stage needs is missing.
        trainer.loop.OutOfTime: the limit came; call again to go on.
    """
    for stage in options.stages:
        if stage not in STAGES:
            raise StageError(f"there is no stage {stage!r}; choose from {', '.join(STAGES)}")
    device = parallel.start(options.device)
    if options.torch_threads:
        torch.set_num_threads(options.torch_threads)
    folder.mkdir(parents=True, exist_ok=True)
    data = Data.open(cache)
    if recipe.identities and recipe.identities < len(data.people):
        raise StageError(
            f"{len(data.people)} people do not fit into an identity head of {recipe.identities}"
        )
    system = make_system(recipe, data)
    critics = make_critics(recipe, folder, device)
    for stage in options.stages:
        begin(system, stage, folder, options.start if stage == options.stages[0] else ())
        system.to(device)
        run_stage(stage, recipe, system, data, folder, critics, options, device)
        system.to("cpu")
    return system


def make_system(recipe: Recipe, data: Data) -> System:
    """Untrained networks, the same in every process, that know the data's face model."""
    torch.manual_seed(recipe.seed)
    system = System(recipe)
    mean = data.frames.landmarks[data.train].mean(0)
    system.load_face(data.frames.face, torch.from_numpy(mean))
    return system


def make_critics(recipe: Recipe, folder: Path, device: torch.device) -> Critics:
    """The frozen judges: the run's own prior, else the motion encoder that ships, or a user's."""
    path = folder / PRIOR_FILE
    prior: Any
    encoder = label_encoder(path if path.exists() else None, device)
    prior = by_path(recipe.prior)(device) if recipe.prior else LabelPrior(encoder)
    perceptual = by_path(recipe.perceptual)(device) if recipe.perceptual else FaceFeatures(encoder)
    return Critics(prior, perceptual)


def begin(system: System, stage: str, folder: Path, start: Sequence[str]) -> None:
    """Load what a stage begins from, unless its own file exists and will be resumed.

    The nearest earlier stage of the folder, over it the files named by the user, in their order.
    """
    if (folder / f"stage-{stage}.pt").exists():
        return
    earlier = [folder / f"stage-{s}.pt" for s in STAGES[: STAGES.index(stage)]]
    known = [p for p in earlier if p.exists()][-1:]
    if not known and (folder / PRIOR_FILE).exists():
        known = [folder / PRIOR_FILE]
    for source in [*map(str, known), *start]:
        load_start(system, source)


def run_stage(
    stage: str, recipe: Recipe, system: System, data: Data, folder: Path, critics: Critics,
    options: Options, device: torch.device,
) -> None:  # fmt: skip
    """One stage to its end."""
    recipe = overridden(recipe, stage, options)
    torch.manual_seed(recipe.seed * 100 + STAGES.index(stage))
    run = Run(
        folder, stage, device=device, precision=recipe.precision, seed=recipe.seed,
        save_every=recipe.save_every, picture_every=recipe.picture_every,
        log_every=recipe.log_every, threads=recipe.threads, deadline=options.deadline,
        show=options.show, repeat=recipe.repeat,
    )  # fmt: skip
    run.about = {"recipe": recipe.name, "config": recipe.model.to_json()}
    if stage == "1":
        stage1.train(recipe, system, data, run, critics)
    elif stage == "2a":
        if data.speech is None:
            raise StageError("stage 2a needs sound: the cache has no speech.npz")
        stage2a.train(recipe, system, data, run, more_voices(recipe, options))
    elif stage == "2b":
        stage2b.train(recipe, system, data, run)
    elif stage == "2c":
        stage2c.train(recipe, system, data, run)
    else:
        stage3.train(recipe, system, data, run, critics)


def overridden(recipe: Recipe, stage: str, options: Options) -> Recipe:
    """The recipe with the steps and batch of the command line in one stage."""
    name = f"stage{stage}"
    changes: dict[str, Any] = {}
    if options.steps:
        changes["steps"] = options.steps
    if options.batch:
        changes["batch"] = options.batch
    return replace(recipe, **{name: replace(getattr(recipe, name), **changes)})


def more_voices(recipe: Recipe, options: Options) -> Make | None:
    """Other sound with known mouths for stage 2a, from a file of `trainer.voices`."""
    if options.voices is None:
        return None
    from trainer.voices.corpus import VoiceCache, sampler

    return sampler(VoiceCache(options.voices), recipe.model)
