"""One command on a bare machine with an NVIDIA card: take what arrived, train, leave pieces.

    python -m trainer.gpu_run --shards SHARDS --work WORK --out OUT --stage 1 --minutes 9

No network, no decoder, no server parts: torch, numpy and OpenCV. Call it again with the same
`WORK` to go on. Into a machine that forgot everything the last state comes back with
`--resume FOLDER` (the pieces of the last `OUT`). `--keep all` leaves the whole state to resume
from, `--keep weights` only networks in float16, an eighth of the size.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.loop import OutOfTime
from trainer.pack_shards import MANIFEST, unpack
from trainer.pieces import MIB, join, split
from trainer.recipes import recipe_of
from trainer.recipes.config import Recipe
from trainer.stages.training import Options, train

#: Kept for saving and cutting the files after the training's own limit.
SPARE_MINUTES = 0.7


def for_gpu(recipe: Recipe, threads: int) -> Recipe:
    """The recipe with batches that fill a large card, whole pictures and more loading threads."""
    if recipe.model.family == "paper":
        return replace(recipe, threads=threads)
    return replace(
        recipe,
        stage1=replace(recipe.stage1, batch=24, window=0, train_motion=recipe.stage1.train_motion),
        stage2a=replace(recipe.stage2a, batch=64, negatives=128),
        stage2b=replace(recipe.stage2b, batch=128),
        stage2c=replace(recipe.stage2c, batch=256),
        stage3=replace(recipe.stage3, batch=24, decode_window=0),
        judge_width=64,
        judge_layers=4,
        threads=threads,
    )


def light(path: Path, out: Path) -> Path:
    """A stage file with nothing but networks and averages, in float16."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    kept: dict[str, Any] = {k: state[k] for k in ("step", "about")}
    kept["system"] = {k: _half(v) for k, v in state["system"].items() if not k.startswith("judge.")}
    if "average" in state:
        values = {k: _half(v) for k, v in state["average"]["values"].items()}
        kept["average"] = {"values": values, "count": state["average"]["count"]}
    torch.save(kept, out)
    return out


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(prog="python -m trainer.gpu_run", description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, action="append", default=[])
    parser.add_argument("--recipe", default="live")
    parser.add_argument("--stage", default="1,2a,2b,2c,3")
    parser.add_argument("--start", action="append", default=[])
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--keep", choices=("all", "weights"), default="weights")
    parser.add_argument("--threads", type=int, default=8, help="loading threads")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    cache, run = chosen.work / "cache", chosen.work / "run"
    missing = unpack(chosen.shards, cache) if (chosen.shards / MANIFEST).exists() else [MANIFEST]
    if missing:
        print(f"data is not complete yet, missing: {', '.join(missing)}")
        return
    for folder in chosen.resume:
        for listing in sorted(folder.glob("stage-*.pt.json")):
            target = run / listing.name.removesuffix(".json")
            if not target.exists():
                print(f"resuming from {join(listing, target).name}")
    recipe = recipe_of(chosen.recipe)
    if chosen.device != "cpu":
        recipe = for_gpu(recipe, chosen.threads)
    deadline = began + 60 * (chosen.minutes - SPARE_MINUTES)
    options = Options(
        tuple(chosen.stage.split(",")), tuple(chosen.start), chosen.steps, chosen.batch,
        chosen.device, deadline, show=False,
    )  # fmt: skip
    try:
        train(recipe, cache, run, options)
        print("all stages are done")
    except OutOfTime as pause:
        print(f"{pause}; call again to go on")
    leave(run, chosen.out, chosen.keep, tuple(chosen.stage.split(",")))


def leave(run: Path, out: Path, keep: str, stages: tuple[str, ...]) -> None:
    """Cut the newest stage's file into pieces in `out`, and copy the curves."""
    out.mkdir(parents=True, exist_ok=True)
    files = [p for s in stages if (p := run / f"stage-{s}.pt").exists()]
    if files:
        newest = max(files, key=lambda p: p.stat().st_mtime)
        source = newest if keep == "all" else light(newest, run / f"light-{newest.name}")
        pieces = split(source, out)
        size = sum(p.stat().st_size for p in pieces)
        print(f"{len(pieces)} files, {size / MIB:.0f} MiB in {out.name}")
    for curve in run.glob("curve-*.jsonl"):
        (out / curve.name).write_text(curve.read_text())


if __name__ == "__main__":
    main()
