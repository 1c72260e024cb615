"""`visavis train`: registered through the entry-point group `visavis.commands`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from trainer.lab_commands import need_packages

#: Steps of the eye reader where the command line says nothing.
EYE_STEPS = 4000


def register(app: typer.Typer) -> None:
    """Add the trainer's commands; nothing heavy is imported before one of them runs."""
    app.command(name="train")(train)


def train(
    recipe: Annotated[
        str, typer.Option(help="live, paper, paper-small, personalise, or a dotted path.")
    ] = "live",
    data: Annotated[
        Path | None, typer.Option(help="Folder made by `visavis prepare`, or a training cache.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of this run; resumes.")] = None,
    stage: Annotated[
        str, typer.Option(help="all, prior, 1, 2a, 2b, 2c, 3, or several with commas.")
    ] = "all",
    start: Annotated[
        list[str] | None,
        typer.Option(help="File to begin from, part=file, or shipped; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps per stage; 0: the recipe's.")] = 0,
    batch: Annotated[int, typer.Option(help="Batch over all processes; 0: the recipe's.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    minutes: Annotated[float, typer.Option(help="Stop and save after this long; 0: never.")] = 0,
    voices: Annotated[
        Path | None, typer.Option(help="File of synthetic voices for stage 2a.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Torch's threads; 0: its own choice.")] = 0,
    video: Annotated[
        Path | None, typer.Option(help="personalise: 20 to 60 s of one person.")
    ] = None,
    portrait: Annotated[
        Path | None, typer.Option(help="personalise: the picture; else a frame of the video.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="personalise: networks to tune; the shipped ones else.")
    ] = None,
    i_am_the_owner: Annotated[
        bool,
        typer.Option("--i-am-the-owner", help="personalise: it is you, or you have their consent."),
    ] = False,
) -> None:
    """Train the networks, stage by stage; call it again to go on."""
    if recipe == "personalise":
        _personalise(video, portrait, run, steps, data, checkpoint, threads, i_am_the_owner)
        return
    if data is None or run is None:
        raise typer.BadParameter("--data and --run are needed")
    need_packages("torch", "scipy")
    from models.checkpoint import CheckpointError
    from trainer import origins
    from trainer.joined import cache_of
    from trainer.loop import OutOfTime
    from trainer.recipes import recipe_of
    from trainer.stages import parallel
    from trainer.stages.training import STAGES, Options, StageError
    from trainer.stages.training import train as run_stages

    deadline = time.monotonic() + minutes * 60 if minutes else None
    wanted = ("prior", *STAGES) if stage == "all" else tuple(stage.split(","))
    try:
        made = recipe_of(recipe)
        data = cache_of(data)
        _check_starts(start or ())
        if int(os.environ.get("RANK", "0")) == 0:
            origins.remember(run, data, start or ())
        if "prior" in wanted and made.model.family == "live" and _needs_prior(run, start or ()):
            _prior(data, run, steps, deadline)
        rest = tuple(s for s in wanted if s != "prior")
        options = Options(rest, tuple(start or ()), steps, batch, device, deadline, voices,
                          torch_threads=threads)  # fmt: skip
        if rest:
            run_stages(made, data, run, options)
    except OutOfTime as pause:
        print(f"{pause}; call again to go on")
    except (StageError, ValueError, FileNotFoundError, CheckpointError) as error:
        typer.echo(f"visavis: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        parallel.stop()


def _check_starts(sources: Sequence[str]) -> None:
    """Raises ValueError where a file to begin from is not there."""
    for source in sources:
        name = source.rpartition("=")[2]
        if name != "shipped" and not Path(name).exists():
            raise ValueError(f"--start {source}: there is no file or checkpoint folder {name}")


def _needs_prior(run: Path, start: Sequence[str]) -> bool:
    """Whether the run has to make its own prior: it does not begin from networks, nor did it
    when it was called first, without having to be told again.
    """
    from trainer.stages.training import PRIOR_FILE

    begun = any(run.glob("stage-*.pt")) and not (run / PRIOR_FILE).exists()
    return not start and not begun


def _prior(data: Path, run: Path, steps: int, deadline: float | None = None) -> None:
    """Supervised pretraining: the eye reader, then E_mot on the labels; both are the open prior."""
    from trainer import eye_stage, motion_stage
    from trainer.frames import FrameCache
    from trainer.stages.training import PRIOR_FILE

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("train the prior in one process first: --stage prior")
    if not len(FrameCache(data).split().test):
        raise ValueError(
            "stage prior measures itself on held-out clips and this data has none: prepare more "
            "videos, or begin from the shipped networks with --start shipped"
        )
    run.mkdir(parents=True, exist_ok=True)
    if not (run / PRIOR_FILE).exists():
        eye_stage.train(data, run / "eye.pt", steps or EYE_STEPS, deadline=deadline)
    motion_stage.train(data, run / PRIOR_FILE, start=run / "eye.pt", deadline=deadline,
                       **({"steps": steps} if steps else {}))  # fmt: skip


def _personalise(
    video: Path | None,
    portrait: Path | None,
    out: Path | None,
    steps: int,
    data: Path | None,
    checkpoint: Path | None,
    threads: int,
    i_am_the_owner: bool,
) -> None:
    """`data` is a cache of other people, for replay; `threads` are the engine's."""
    if video is None or out is None:
        raise typer.BadParameter("personalise needs --video and --run")
    need_packages("torch", "onnx", "onnxscript", "safetensors", "scipy", "matplotlib")
    from models.checkpoint import CheckpointError
    from models.runtime.engine import EngineError
    from trainer.joined import cache_of
    from trainer.personalise import STEPS, PersonaliseError, personalise

    try:
        personalise(
            video, portrait, out, steps or STEPS, i_am_the_owner=i_am_the_owner,
            checkpoint=checkpoint, replay=cache_of(data) if data else None, threads=threads,
        )  # fmt: skip
    except (PersonaliseError, CheckpointError, EngineError, ValueError) as error:
        typer.echo(f"visavis: {error}", err=True)
        raise typer.Exit(1) from None
