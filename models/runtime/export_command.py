"""`visavis export --engine tensorrt`: build engines for this card, or ahead of time for others."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from kernels import driver
from models.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from models.runtime.engine import EngineError
from models.runtime.engine_cache import default_root
from models.runtime.flavour import FLAVOURS, PACKAGES, FlavourName, TensorRT, installed_flavours

EngineKind = Literal["tensorrt"]


def register(app: typer.Typer) -> None:
    """Add `export` to the `visavis` command (entry point group `visavis.commands`)."""
    app.command(name="export")(export)


def export(
    engine: Annotated[EngineKind, typer.Option(help="What to build.")] = "tensorrt",
    flavour: Annotated[
        FlavourName | None, typer.Option(help="The first that is installed, unless named.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Architectures, as sm86,sm120; the card of this machine, unless named."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of the networks; the shipped one by default.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Engine folder; else where `serve` looks for it."),
    ] = None,
) -> None:
    """Build GPU engines from a checkpoint's networks; `tensorrt_rtx` needs no GPU for it."""
    console = Console(highlight=False)
    try:
        folders = export_engines(flavour, target, checkpoint, output, console)
    except (EngineError, CheckpointError) as error:
        # Square brackets are pip's extras, not rich's markup.
        Console(stderr=True).print(f"visavis: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None
    for folder in folders:
        console.print(str(folder), markup=False)


def export_engines(
    flavour: FlavourName | None,
    target: str | None,
    checkpoint: Path | None,
    output: Path | None,
    console: Console,
) -> list[Path]:
    """Build all engines; the folders. Raises EngineError, CheckpointError."""
    from models.runtime import build

    opened = open_checkpoint(checkpoint)
    builder = TensorRT(flavour or first_flavour())
    context = _card()
    try:
        here = context.device.sm.replace("_", "") if context is not None else None
        targets = target.split(",") if target else [here] if here else []
        if not targets:
            raise EngineError(
                "This machine has no NVIDIA card to build for; name the architecture of yours, "
                "e.g. --target sm86 (GeForce 30), sm89 (GeForce 40), sm120 (GeForce 50)."
            )
        if builder.name == "tensorrt" and targets != [here]:
            raise EngineError(
                "tensorrt builds on the card that it runs on; --flavour tensorrt_rtx builds "
                "for others."
            )
        conversions: build.Conversions = {}
        return [
            build.build_engines(
                opened, builder, name, output or default_root(), conversions=conversions,
                device=context.device.name if context is not None and name == here else None,
                measure=_measure(context, builder, opened) if name == here else None,
                git_commit=_commit(), progress=partial(console.print, markup=False),
            )
            for name in targets
        ]  # fmt: skip
    finally:
        if context is not None:
            context.close()


def first_flavour() -> FlavourName:
    """The first installed flavour. Raises EngineError with what installs one."""
    found = installed_flavours()
    if not found:
        raise EngineError(
            "No TensorRT is installed: " + ", or ".join(PACKAGES[name] for name in FLAVOURS)
        )
    return found[0]


def _card() -> driver.Context | None:
    """This machine's card, opened; None without one."""
    try:
        return driver.open_context()
    except driver.DriverError:
        return None


def _measure(
    context: driver.Context | None, builder: TensorRT, opened: Checkpoint
) -> Callable[[str, bytes], dict[str, float]] | None:
    """What compares a built engine on this card; None without one."""
    from models.runtime import build
    from models.runtime.device_network import Device

    return build.measure_on(Device(context), builder.load, opened) if context is not None else None


def _commit() -> str | None:
    """Commit of this checkout, None outside one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return found.stdout.strip() or None
