"""What single losses buy: `python -m trainer.ablate CACHE OUT --start motion=FILE`.

Every variant is a small change of one recipe and runs a part of its stage for the same few
steps, from the same weights, on the same batches, once per seed. Then it is measured on people
and clips that nobody trains on: how E_aud follows the mouth, what the expression code tells of
speech, what else moves a code besides its own factor (`trainer.ablate_measure`), and how
far the drawn flow is from the renderer's. The table is printed and written as `table.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.codes import FACTOR_SLICES
from trainer.ablate_draw import Suite, drawn
from trainer.ablate_measure import Rows, draws, expressions, lips, listener, sound_of
from trainer.loop import descend
from trainer.losses.decorrelation import MemoryBank, decorrelation
from trainer.recipes import recipe_of
from trainer.recipes.config import Recipe
from trainer.stages import stage1, stage2a
from trainer.stages.features import KeptFeatures
from trainer.stages.optim import adam, schedule
from trainer.stages.run import Run, set_frozen, set_trained
from trainer.stages.sampling import Data, by_clip, moment_rows, window_rows
from trainer.stages.system import System, load_start
from trainer.stages.training import make_critics, make_system

Part = Literal["lips", "expression", "flow"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of the recipe, and the part of the training on which it acts."""

    part: Part
    change: Callable[[Recipe], Recipe] = lambda recipe: recipe


def _tau(value: float) -> Variant:
    return Variant("lips", lambda r: replace(r, stage2a=replace(r.stage2a, tau=value)))


def _right(frames: int) -> Variant:
    return Variant("lips", lambda r: replace(r, model=replace(r.model, right_frames=frames)))


def _decor(weight: float) -> Variant:
    def change(r: Recipe) -> Recipe:
        weights = replace(r.stage3.weights, decor=weight)
        return replace(r, stage3=replace(r.stage3, weights=weights))

    return Variant("expression", change)


def _window(frames: int) -> Variant:
    return Variant(
        "expression", lambda r: replace(r, model=replace(r.model, expression_window=frames))
    )


def _flow(weight: float) -> Variant:
    def change(r: Recipe) -> Recipe:
        weights = replace(r.stage1.weights, flow=weight)
        return replace(r, stage1=replace(r.stage1, weights=weights))

    return Variant("flow", change)


#: The recipe itself is the first of each part.
VARIANTS: dict[str, Variant] = {
    "lips: live (tau .1, r 1)": Variant("lips"),
    "lips: tau 1": _tau(1.0),
    "lips: tau .07": _tau(0.07),
    "lips: no contrast": Variant(
        "lips", lambda r: replace(r, stage2a=replace(r.stage2a, contrast=0.0))
    ),
    "lips: r 0": _right(0),
    "lips: r 2": _right(2),
    "exp: live (decor .2, window 7)": Variant("expression"),
    "exp: no decorrelation": _decor(0.0),
    "exp: decorrelation 5": _decor(5.0),
    "exp: no window": _window(1),
    "flow: live (10)": Variant("flow"),
    "flow: none": _flow(0.0),
}


#: What every part learns from nothing; all else begins as `--start` has it.
FRESH: dict[Part, tuple[str, ...]] = {
    "lips": ("audio.",),
    "expression": ("motion.heads.exp.",),
    "flow": tuple(
        f"generator.{name}." for name in ("kernel", "flow_in", "flow_res", "flow_up", "flow_out")
    ),
}


def train_expression(
    recipe: Recipe, system: System, data: Data, kept: KeptFeatures, folder: Path
) -> float:
    """The expression head under the two losses of stage 3 that reach it without the generator:
    labels and L_decor, on kept trunk features of filmed clips with their sound.

    Returns the mean label loss of the last fifth of the steps.
    """
    spec = recipe.stage3
    set_frozen(system)
    trained = set_trained(system.motion.heads["exp"])
    optimiser = adam(trained, recipe.stage2b.optim)
    banks = [MemoryBank(spec.bank, 512) for _ in range(2)]
    rows, clip_of = spoken_rows(data)
    windows = [
        window_rows(data.frames, clip_of[str(data.frames.clip[r])], int(r),
                    recipe.model.expression_window, spec.window)
        for r in rows
    ]  # fmt: skip
    wide = torch.from_numpy(np.stack(windows))
    mel, whole = sound_of(data, rows, recipe.model)
    path = folder / f"heard-{len(mel)}.npy"
    if not path.exists():  # E_aud is the same for all variants of this part
        with torch.no_grad():
            parts = [system.audio.embed(part)[0] for part in torch.split(mel, 64)]
        np.save(path, torch.cat(parts).numpy())
    heard = torch.from_numpy(np.load(path))
    use = torch.from_numpy(np.flatnonzero(whole))
    place = torch.full((len(rows),), -1, dtype=torch.long)
    place[use] = torch.arange(len(use))
    label = torch.from_numpy(data.frames.code[:, FACTOR_SLICES["exp"]])
    losses = []
    rng = torch.Generator().manual_seed(recipe.seed)
    for step in range(spec.steps):
        schedule(optimiser, recipe.stage2b.optim, step, spec.steps)
        pick = use[torch.randperm(len(use), generator=rng)[: spec.batch * 8]]
        near = wide[pick]
        version = torch.randint(recipe.stage2a.kept, near.shape, generator=rng)
        feature = kept.pick(near.flatten(), version.flatten())
        pre, code = (x.view(*near.shape, -1).mean(1) for x in system.motion.embed("exp", feature))
        terms: dict[str, Tensor] = {"labels": 2 * F.smooth_l1_loss(code, label[near].mean(1))}
        if spec.weights.decor:
            terms["decor"] = spec.weights.decor * decorrelation(
                pre, heard[place[pick]], *banks, variant=spec.decor
            )
        descend(optimiser, terms, trained, limit=spec.optim.clip)
        losses.append(terms["labels"].item())
    return float(np.mean(losses[-max(1, spec.steps // 5) :]))


def spoken_rows(data: Data, every: int = 12) -> tuple[NDArray[np.int64], dict[str, Rows]]:
    """Rows of every twelfth filmed training clip with sound, and all rows of those clips."""
    clips = by_clip(data.frames, data.train)
    some = dict(list(clips.items())[::every])
    return np.concatenate(list(some.values())), some


def sized(recipe: Recipe, part: Part, steps: int) -> Recipe:
    """The recipe at a length and batch that one core turns; rates rise and fall within it."""
    warm = max(1, steps // 20)
    if part == "lips":
        optim = replace(recipe.stage2a.optim, warm_up=warm)
        stage = replace(recipe.stage2a, steps=steps, batch=6, frames=8, kept=2, optim=optim)
        return replace(recipe, stage2a=stage)
    if part == "expression":
        heads = replace(recipe.stage2b, optim=replace(recipe.stage2b.optim, warm_up=warm))
        lip = replace(recipe.stage2a, frames=8, kept=2)
        third = replace(recipe.stage3, steps=steps, batch=8)
        return replace(recipe, stage2a=lip, stage2b=heads, stage3=third)
    optim = replace(recipe.stage1.optim, warm_up=warm)
    first = replace(recipe.stage1, steps=steps, batch=2, optim=optim, adversarial_after=steps)
    return replace(recipe, stage1=first)


def common(data: Data, recipe: Recipe) -> Data:
    """Only moments whose sound is whole for every number of right frames."""
    widest = replace(recipe.model, right_frames=2)
    rows = moment_rows(data, replace(recipe.stage2a, frames=8), widest)
    return replace(data, train=np.sort(np.concatenate(list(rows.values()))))


def begin(recipe: Recipe, data: Data, part: Part, start: list[str]) -> System:
    """Networks of the seed; what the part trains from nothing stays as it was made."""
    system = make_system(recipe, data)
    kept = {k: v.clone() for k, v in system.state_dict().items() if k.startswith(FRESH[part])}
    for source in start:
        load_start(system, source)
    system.load_state_dict(kept, strict=False)
    return system


def one(
    name: str, seed: int, recipe: Recipe, data: Data, cache: Path, folder: Path, start: list[str],
    steps: int, suite: Suite | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train one variant and measure it. Raises ValueError where the data cannot tell it apart."""
    variant = VARIANTS[name]
    if variant.part == "flow" and not any(map(data.frames.has_flow, data.train)):
        raise ValueError(f"{name}: these data have no renderer's flow, so nothing would differ")
    recipe = sized(
        replace(variant.change(recipe), seed=seed, precision="fp32"), variant.part, steps
    )
    label = "".join(c if c.isalnum() else "-" for c in name)
    run = Run(
        folder / f"{label}-{seed}", "1" if variant.part == "flow" else "2a",
        device=torch.device("cpu"), precision="fp32", seed=seed, save_every=10**9, log_every=5,
        picture_every=10**9, threads=1, show=False,
    )  # fmt: skip
    system = begin(recipe, data, variant.part, start)
    found: dict[str, float]
    if variant.part == "flow":
        stage1.train(recipe, system, data, run, make_critics(recipe, folder, run.device))
        found = draws(recipe, system, data)
        return found | (drawn(system, data, run.folder, suite) if suite else {})
    shared, mine = folder / "features-2a.npz", run.folder / "features-2a.npz"
    if shared.exists() and not mine.exists():
        os.link(shared, mine)
    narrow = common(data, recipe)
    if variant.part == "lips":
        stage2a.train(recipe, system, narrow, run)
        found = lips(system, data, cache, folder) | listener(system, data, folder)
    else:
        kept = stage2a.keep_features(recipe, system, narrow, run)
        found = {"label loss": train_expression(recipe, system, narrow, kept, folder)}
        found |= expressions(system, data, folder)
    if not shared.exists():
        os.link(mine, shared)
    mine.unlink()
    return found | (drawn(system, data, run.folder, suite) if suite else {})


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown, one row per variant and part: means, and half the spread where there are more."""
    lines = []
    for part in dict.fromkeys(n.split(":")[0] for n in found):
        rows = {n: f for n, f in found.items() if n.startswith(f"{part}:") and f}
        keys = list(next(iter(rows.values()))[0])
        lines += ["", f"| variant | {' | '.join(keys)} |", "|---" * (1 + len(keys)) + "|"]
        for name, seeds in rows.items():
            cells = []
            for key in keys:
                values = [s[key] for s in seeds]
                spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.3f}{spread}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    cache: Path,
    out: Path,
    start: Annotated[list[str], typer.Option(help="As of `visavis train`.")],
    steps: int = 150,
    seeds: int = 1,
    only: Annotated[str, typer.Option(help="Beginning of the variants' names.")] = "",
    drawn_from: Annotated[
        Path | None, typer.Option("--drawn", help="Training pack with the clips to draw.")
    ] = None,
    measure_python: Annotated[Path | None, typer.Option(help="As of `visavis evaluate`.")] = None,
    measure_model: Annotated[Path | None, typer.Option(help="As of `visavis evaluate`.")] = None,
    drawn_cache: Annotated[
        Path | None, typer.Option(help="Cache of that pack, where it is another one.")
    ] = None,
) -> None:
    """Train all variants, print and save the table; what is in it already is not done again."""
    torch.set_num_threads(1)
    recipe, data = recipe_of("live"), Data.open(cache)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "table.json"
    found: dict[str, list[dict[str, float]]] = json.loads(path.read_text()) if path.exists() else {}
    suite = None
    if drawn_from:
        suite = Suite(drawn_from, drawn_cache or cache, measure_python, measure_model)
    for seed in range(seeds):
        for name in VARIANTS:
            if not name.startswith(only) or len(found.get(name, [])) > seed:
                continue
            values = one(name, seed, recipe, data, cache, out, start, steps, suite)
            found.setdefault(name, []).append(values)
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(name, seed, {k: round(v, 3) for k, v in values.items()}, flush=True)
    print(table(found))


if __name__ == "__main__":
    typer.run(main)
