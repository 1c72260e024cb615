"""`visavis evaluate` and `visavis prepare`, registered with the command line by entry point."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

_err = Console(stderr=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    app.command()(evaluate)
    app.command()(prepare)


def _fail(message: str) -> typer.Exit:
    _err.print(f"visavis: {message}", style="red", highlight=False, markup=False)
    return typer.Exit(1)


def need_packages(*names: str) -> None:
    """End with the command that installs them, unless all of these packages are there."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise _fail(f"{' and '.join(missing)} not installed: pip install -e '.[train]'")


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of the networks; the shipped one by default.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Training pack or prepared folder with the media.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Frame cache of that data; else DATA/cache, runs/cache.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for videos, JSON and the report.")
    ] = Path("runs/evaluation"),
    seed: Annotated[int, typer.Option(help="Which clips and portraits are chosen.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small part: minutes instead of about twenty.")
    ] = False,
    measure_python: Annotated[
        Path | None,
        typer.Option(help="Python with mediapipe (and dlib); without it our own E_mot measures."),
    ] = None,
    measure_model: Annotated[
        Path | None, typer.Option(help="face_landmarker.task for that Python.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Inference threads; 0: all.", min=0)] = 2,
    record: Annotated[
        bool, typer.Option("--record", help="Keep the result in the history.")
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="Show the history and end.")] = False,
) -> None:
    """Measure a checkpoint on unseen identities: sync, motion, identity, pictures, leakage."""
    from trainer.evaluate import history as past

    if history:
        Console().print(past.table())
        return
    need_packages("scipy", "matplotlib")
    from models.checkpoint import CheckpointError
    from models.runtime.engine import EngineError
    from trainer.evaluate.evaluate import Options, run
    from trainer.evaluate.measuring import MeasureError
    from trainer.evaluate.suite import SuiteError
    from trainer.joined import cache_of

    if data is None:
        raise _fail("Name the media with --data: a training pack or a folder made by prepare.")
    try:
        found = cache_of(cache or (data if (data / "cache").is_dir() else Path("runs/cache")))
    except ValueError as error:
        raise _fail(str(error)) from None
    options = Options(
        data=data, cache=found, out=output, checkpoint=checkpoint, seed=seed, quick=quick,
        threads=threads, measure_python=measure_python, measure_model=measure_model,
    )  # fmt: skip
    try:
        result, files = run(options, _err)
    except (SuiteError, MeasureError, CheckpointError, EngineError) as error:
        raise _fail(str(error)) from None
    Console().print(targets_table(result))
    if record:
        files = (*files, _record(result))
    print("\n".join(str(f) for f in files))


def _record(result: dict[str, Any]) -> Path:
    """Keep a result in the history and name what became worse."""
    from trainer.evaluate import history as past

    path = past.record(result)
    entries = past.read_index()
    newest = next(e for e in entries if e["file"] == path.name)
    before = past.previous(entries, newest)
    if before is not None:
        for name in past.regressions(before, newest):
            _err.print(f"worse than on {before['when'][:10]}: {name}", style="red")
    return path


def targets_table(result: dict[str, Any]) -> Table:
    """The targets of one result for a person."""
    note = "" if result["protocol"]["independent"] else " (own measure, not independent)"
    table = Table(title=f"Checkpoint {result['checkpoint']['digest']}{note}", title_justify="left")
    for column in ("", "wanted", "median", "worst", "clips", ""):
        table.add_column(column, justify="left" if not column else "right")
    for target in result["targets"]:
        median, worst = (
            "-" if target[k] is None else f"{target[k]:.3f}" for k in ("median", "worst")
        )
        mark = {None: "", True: "[green]met[/green]", False: "[red]missed[/red]"}[target["met"]]
        table.add_row(target["title"], target["wanted"], median, worst, str(target["count"]), mark)
    return table


def prepare(
    videos: Annotated[Path, typer.Option(help="Folder with talking videos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the shards.")],
    people: Annotated[
        str, typer.Option(help="'folder': one person per folder; 'face': grouped by face.")
    ] = "folder",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Networks that read the faces; the shipped ones else.")
    ] = None,
    measure_python: Annotated[
        Path | None, typer.Option(help="Python with mediapipe, for its labels instead of E_mot's.")
    ] = None,
    measure_model: Annotated[
        Path | None, typer.Option(help="face_landmarker.task for that Python.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Inference threads; 0: all.", min=0)] = 2,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Copy the report to this file.")
    ] = None,
) -> None:
    """Turn your own talking videos into training shards."""
    need_packages("scipy", "matplotlib")
    from models.checkpoint import CheckpointError
    from models.runtime.engine import EngineError
    from trainer.evaluate.measuring import MeasureError
    from trainer.prepare.prepare import Options, PrepareError
    from trainer.prepare.prepare import prepare as run

    if people not in ("folder", "face"):
        raise _fail("--people is 'folder' or 'face'.")
    options = Options(
        videos=videos, out=output, people=people, checkpoint=checkpoint, threads=threads,
        measure_python=measure_python, measure_model=measure_model,
    )  # fmt: skip
    try:
        report = run(options, _err)
    except (PrepareError, MeasureError, CheckpointError, EngineError) as error:
        raise _fail(str(error)) from None
    print(report.text())
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=1) + "\n")
