"""`visavis train` from the command line."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from tests.trainer.tiny import write_cache
from trainer.commands import register

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
    assert calls == [
        ((Path("me.mp4"), None, tmp_path, 7), {"i_am_the_owner": True, "replay": None})
    ]
