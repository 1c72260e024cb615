"""Ablations: every variant changes one thing, the probe knows what explains what, it trains."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.codes import FACTORS
from tests.trainer.tiny import tiny, write_cache
from trainer.ablate import FRESH, VARIANTS, begin, table, train_expression
from trainer.ablate_draw import figures
from trainer.ablate_measure import Held, expressions, leaks, over_window, ridge_share
from trainer.recipes import recipe_of
from trainer.stages import stage2a
from trainer.stages.run import Run
from trainer.stages.sampling import Data, by_clip
from trainer.stages.training import make_system

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data.open(write_cache(tmp_path_factory.mktemp("cache")))


def leaves(value: object, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in leaves(x, f"{name}/{key}").items()}
    return {name: value}


def test_a_variant_is_live_but_for_one_value() -> None:
    live = leaves(asdict(recipe_of("live")))
    seen = set()
    for name, variant in VARIANTS.items():
        mine = leaves(asdict(variant.change(recipe_of("live"))))
        changed = {k: v for k, v in mine.items() if live[k] != v}
        assert len(changed) == (0 if ": live" in name else 1), (name, changed)
        seen |= set(changed)
    assert seen == {
        "/stage2a/tau", "/stage2a/contrast", "/model/right_frames", "/stage3/weights/decor",
        "/model/expression_window", "/stage1/weights/flow",
    }  # fmt: skip


def test_ridge_explains_what_it_can_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    given = rng.standard_normal((600, 6))
    clip = np.repeat(np.arange(30), 20).astype(str)
    told = given @ rng.standard_normal((6, 3))
    assert ridge_share(given, told, clip) > 0.98
    assert ridge_share(given, rng.standard_normal((600, 3)), clip) < 0.02
    half = told / told.std(0) + rng.standard_normal((600, 3))
    assert ridge_share(given, half, clip) == pytest.approx(0.5, abs=0.08)
    # What belongs to a clip alone does not help on clips that were not seen.
    own = np.repeat(rng.standard_normal((30, 6)), 20, 0)
    assert ridge_share(own, np.repeat(rng.standard_normal((30, 1)), 20, 0), clip) < 0.2


def test_leaks_name_the_factor_that_moves_a_code() -> None:
    rng = np.random.default_rng(1)
    code = rng.standard_normal((500, 58))
    clip = np.repeat(np.arange(25), 20).astype(str)
    read = code[:, 28:] + code[:, 16:22] @ rng.standard_normal((6, 30))
    found = leaks(read, "exp", code, clip)
    assert found["exp moved by pose"] > 0.95
    assert max(found["exp moved by lip"], found["exp moved by eye"]) < 0.05
    assert max(leaks(code[:, 28:] + 0.5, "exp", code, clip).values()) < 0.05


def test_the_window_is_the_past_of_the_same_clip(data: Data) -> None:
    rows = np.concatenate(list(by_clip(data.frames, np.arange(16, 32)).values()))
    value = data.frames.frame[rows].astype(np.float64)[:, None]
    clip = data.frames.clip[rows]
    assert (over_window(value, data.frames, rows, 1) == value).all()
    late = value - over_window(value, data.frames, rows, 7)
    assert (late >= 0).all()
    assert (late[value[:, 0] > 7] > 1).all()
    assert len(set(clip)) > 1


def test_the_expression_head_learns_and_is_measured(data: Data, tmp_path: Path) -> None:
    recipe = tiny()
    recipe = replace(recipe, stage2a=replace(recipe.stage2a, kept=2))
    losses = []
    for steps in (5, 80):
        mine = replace(recipe, stage3=replace(recipe.stage3, steps=steps, batch=4))
        system = make_system(mine, data)
        run = Run(tmp_path, "2a", device=CPU, precision="fp32", threads=1, show=False)
        kept = stage2a.keep_features(mine, system, data, run)
        rows = sorted(
            r for c in stage2a.moment_rows(data, mine.stage2a, mine.model).values() for r in c
        )
        losses.append(
            train_expression(mine, system, replace(data, train=np.array(rows)), kept, tmp_path)
        )
    assert losses[1] < 0.8 * losses[0]
    held = Held(np.arange(24, 48), np.arange(24))
    found = expressions(system, data, tmp_path, held)
    assert all(np.isfinite(v) for k, v in found.items() if k != "smile r")


def test_a_part_begins_from_nothing_and_the_rest_from_what_is_given(
    data: Data, tmp_path: Path
) -> None:
    given = make_system(replace(tiny(), seed=5), data)
    for value in given.parameters():
        value.data.fill_(0.25)
    torch.save({"system": given.state_dict(), "step": 1}, tmp_path / "given.pt")
    nothing = make_system(tiny(), data).state_dict()
    for part, fresh in FRESH.items():
        begun = begin(tiny(), data, part, [str(tmp_path / "given.pt")])
        mine = {name for name in nothing if name.startswith(fresh)}
        assert mine, part
        for name, value in begun.named_parameters():
            wanted = nothing[name] if name in mine else given.state_dict()[name]
            assert torch.equal(value, wanted), (part, name)


def test_drawn_figures_are_the_sync_and_every_cell_beside_the_diagonal() -> None:
    explained = {
        f: {g: 1.0 if f == g else (i + j) / 100 for j, g in enumerate(FACTORS)}
        for i, f in enumerate(FACTORS)
    }
    result = {
        "summary": {
            "speech.mouth_gap.r": {"median": 0.9, "worst": 0.6, "count": 6},
            "speech.mouth_gap.lag_frames": {"median": 0.2, "worst": 1.0, "count": 6},
        },
        "leakage": {"explained": explained},
    }
    found = figures(result)
    assert found["drawn mouth r"] == 0.9
    assert found["drawn worst r"] == 0.6
    assert found["drawn lag frames"] == 0.2
    assert np.isnan(found["drawn slope"]), "what was not measured is not zero"
    cells = {k: v for k, v in found.items() if " into " in k}
    assert len(cells) == 12
    assert cells["eye into exp"] == explained["eye"]["exp"]


def test_repeated_batches_are_the_first_ones_and_resume(tmp_path: Path) -> None:
    def make(rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x": rng.standard_normal(2).astype(np.float32)}

    def seen(start: int, repeat: int) -> list[float]:
        run = Run(tmp_path, "x", device=CPU, threads=1, show=False, save_every=99, repeat=repeat)
        run.step = start
        return [float(b["x"][0, 0]) for _, b in run.steps(make, batch=1, steps=7)]

    endless, again = seen(0, 0), seen(0, 3)
    assert len(set(endless)) == 7
    assert again == [endless[i % 3] for i in range(7)]
    assert seen(4, 3) == again[4:]


def test_the_table_has_the_spread_of_seeds() -> None:
    text = table(
        {"exp: a": [{"r": 0.5}, {"r": 0.7}], "exp: b": [{"r": 0.25}], "flow: c": [{"e": 1}]}
    )
    assert "| exp: a | 0.600 ± 0.100 |" in text
    assert "| exp: b | 0.250 |" in text
    assert "| variant | e |" in text
