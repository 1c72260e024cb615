"""What this machine has of a GPU path, and what each missing part needs: for `visavis doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kernels import driver
from kernels.compiler import CompileError, NoCompilerError, find_compiler
from models.checkpoint import Checkpoint
from models.runtime import has_nvidia_driver
from models.runtime.engine import EngineError
from models.runtime.engine_cache import export_command, open_engines
from models.runtime.flavour import PACKAGES, FlavourName, TensorRT, installed_flavours

GPU_EXTRA = "pip install -e '.[gpu]'"


@dataclass(frozen=True, slots=True)
class Fact:
    """One finding; `fix` is the command that changes it, empty where nothing is amiss."""

    verdict: Literal["ok", "warning"]
    subject: str
    detail: str
    fix: str = ""


def gpu_facts(
    checkpoint: Checkpoint | None,
    *,
    root: Path | None = None,
    has_driver: Callable[[], bool] = has_nvidia_driver,
    open_context: Callable[[], driver.Context] = driver.open_context,
    flavours: Callable[[], list[FlavourName]] = installed_flavours,
    load_flavour: Callable[[FlavourName], TensorRT] = TensorRT,
) -> Iterator[Fact]:
    """Driver and card, compiler of the kernels, TensorRT flavours, built engines.

    One line and no warning on a machine without a driver. Opens the card for a moment.
    """
    if not has_driver():
        yield Fact("ok", "GPU", "no NVIDIA driver: the networks run on the CPU")
        return
    try:
        context = open_context()
    except driver.DriverError as error:
        yield Fact("warning", "GPU", f"there is a driver, but no card can be used: {error}",
                   GPU_EXTRA)  # fmt: skip
        return
    with context:
        card = context.device
        free, total = (b / 2**30 for b in context.memory())
        version = ".".join(map(str, card.driver_version))
        yield Fact(
            "ok",
            "GPU",
            f"{card.name} ({card.sm}), {free:.1f} of {total:.1f} GiB free, driver for CUDA "
            f"{version}, through {context.binding} ({context.reason})",
        )
    yield _compiler()
    names = flavours()
    if not names:
        yield Fact("warning", "TensorRT", "not installed: torch would draw on the card, slower",
                   GPU_EXTRA)  # fmt: skip
    target = card.sm.replace("_", "")
    for name in names:
        yield from _flavour(name, checkpoint, target, card.name, root, load_flavour)


def _compiler() -> Fact:
    try:
        return Fact("ok", "CUDA kernels", f"compiled at first use by {find_compiler().version}")
    except (CompileError, NoCompilerError) as error:
        return Fact("warning", "CUDA kernels", str(error), "apt install nvidia-cuda-toolkit")


def _flavour(
    name: FlavourName,
    checkpoint: Checkpoint | None,
    target: str,
    card: str,
    root: Path | None,
    load_flavour: Callable[[FlavourName], TensorRT],
) -> Iterator[Fact]:
    """The flavour's version, then its engines."""
    try:
        flavour = load_flavour(name)
    except EngineError as error:
        yield Fact("warning", "TensorRT", str(error), PACKAGES[name])
        return
    yield Fact("ok", "TensorRT", f"{name} {flavour.version}")
    if checkpoint is None:
        return
    try:
        plans = open_engines(checkpoint, name, flavour.version, target, card, root)
    except EngineError as error:
        said, _, _ = str(error).partition(" Run: ")
        yield Fact("warning", "Engines", said, export_command(checkpoint, name, target))
    else:
        size = sum(map(len, plans.values())) / 2**20
        yield Fact("ok", "Engines", f"{checkpoint.config.name} for {target}, {size:.0f} MiB")
