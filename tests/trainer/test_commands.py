"""`visavis train` from the command line."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from tests.trainer.tiny import write_cache
from trainer import lab_commands
from trainer.commands import _needs_prior, _prior, register
from trainer.loop import OutOfTime
from trainer.stages.training import PRIOR_FILE

pytestmark = pytest.mark.unit


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    register(made)
    made.command(name="other")(lambda: None)
    return made


def test_a_stage_runs_and_pauses_at_its_time(app: typer.Typer, tmp_path: Path) -> None:
    cache, run = write_cache(tmp_path), tmp_path / "run"
    command = ["train", "--recipe", "tests.trainer.tiny.tiny", "--data", str(cache), "--run",
               str(run), "--stage", "2c", "--device", "cpu", "--threads", "1"]  # fmt: skip
    paused = CliRunner().invoke(app, [*command, "--minutes", "0.0001"])
    assert paused.exit_code == 0, paused.output
    assert "stands at step 1 of 4; call again to go on" in paused.output
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert len((run / "curve-2c.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "live"], "--data and --run are needed"),
        (["--recipe", "nobody", "--data", ".", "--run", "."], "there is no recipe 'nobody'"),
        (["--recipe", "personalise"], "needs --video and --run"),
    ],
)
def test_what_is_missing_is_said(app: typer.Typer, arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(app, ["train", *arguments])
    assert found.exit_code != 0
    assert message in " ".join(found.output.replace("│", " ").split())


def test_personalise_is_handed_on(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[tuple, dict]] = []
    fake = ModuleType("trainer.personalise")
    fake.STEPS = 7
    fake.PersonaliseError = ValueError
    fake.personalise = lambda *a, **k: calls.append((a, k))
    monkeypatch.setitem(sys.modules, "trainer.personalise", fake)
    arguments = ["train", "--recipe", "personalise", "--video", "me.mp4", "--run", str(tmp_path)]
    assert CliRunner().invoke(app, [*arguments, "--i-am-the-owner"]).exit_code == 0
    told = {"i_am_the_owner": True, "checkpoint": None, "replay": None, "threads": 0}
    assert calls == [((Path("me.mp4"), None, tmp_path, 7), told)]
    mine = CliRunner().invoke(
        app, [*arguments, "--i-am-the-owner", "--checkpoint", "base", "--threads", "2"]
    )
    assert mine.exit_code == 0
    assert calls[1][1] == told | {"checkpoint": Path("base"), "threads": 2}


def test_a_missing_file_to_begin_from_is_named(app: typer.Typer, tmp_path: Path) -> None:
    command = ["train", "--data", str(write_cache(tmp_path)), "--run", str(tmp_path / "run")]
    found = CliRunner().invoke(app, [*command, "--start", "generator=nowhere.pt"])
    assert found.exit_code == 1
    assert "there is no file or checkpoint folder nowhere.pt" in found.output
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_a_run_that_began_from_networks_makes_no_prior_when_called_again(tmp_path: Path) -> None:
    assert _needs_prior(tmp_path, ())
    assert not _needs_prior(tmp_path, ("shipped",))
    (tmp_path / "stage-1.pt").touch()
    assert not _needs_prior(tmp_path, ())
    (tmp_path / "motion.pt").touch()
    assert _needs_prior(tmp_path, ()), "it has one of its own, to be finished"


def test_the_prior_needs_somebody_held_out(app: typer.Typer, tmp_path: Path) -> None:
    cache = write_cache(tmp_path, ("grid",), filmed="")
    with np.load(cache / "labels.npz") as z:
        labels = dict(z)
    np.savez(cache / "labels.npz", **labels, held_out=np.zeros(len(labels["kind"]), bool))
    command = ["train", "--data", str(cache), "--run", str(tmp_path / "run"), "--stage", "prior"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1
    assert "begin from the shipped networks with --start shipped" in found.output


def test_the_prior_stops_in_time_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cache, run = write_cache(tmp_path, ("grid",) * 6, filmed=""), tmp_path / "run"
    with pytest.raises(OutOfTime, match="the eye reader, stands at step 1 of 2"):
        _prior(cache, run, 2, deadline=0.0)
    with pytest.raises(OutOfTime, match="the eye reader, stands at step 2 of 2"):
        _prior(cache, run, 2, deadline=0.0)
    with pytest.raises(OutOfTime, match="E_mot, stands at step 1 of 2"):
        _prior(cache, run, 2, deadline=0.0)
    _prior(cache, run, 2)
    steps = [torch.load(run / f, weights_only=True)["step"] for f in ("eye.pt", PRIOR_FILE)]
    assert steps == [2, 2]


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", ".", "--run", "r"],
        ["train", "--recipe", "personalise", "--video", "me.mp4", "--run", "r"],
        ["prepare", "--videos", ".", "-o", "o"],
    ],
)
def test_without_the_training_packages_the_command_that_installs_them_is_said(
    app: typer.Typer, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab_commands.register(app)
    monkeypatch.setattr(lab_commands, "find_spec", lambda name: None)
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 1
    assert "pip install -e '.[train]'" in " ".join(found.output.split())
