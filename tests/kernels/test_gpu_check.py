"""The GPU check's plan, its survival of failures, and what it reports; with fake machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kernels import gpu_check
from kernels.gpu_check import Options, Result, Step, execute, plan, report

pytestmark = pytest.mark.unit


def everything(name: str) -> str:
    return f"/bin/{name}"


def nothing(name: str) -> None:
    return None


def by_name(steps: Sequence[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def test_the_plan_of_a_full_machine(tmp_path: Path) -> None:
    archive = tmp_path / "pycuda.tar.gz"
    archive.write_bytes(b"x")
    steps = by_name(plan(Options(tmp_path, archive), everything))
    assert list(steps) == [
        "card", "packages", "pycuda", "binding", "tests", "sanitizer", "bench",
    ]  # fmt: skip
    assert [step.skip for step in steps.values()] == [""] * 7
    pycuda = steps["pycuda"].command
    assert pycuda[1:] == ("-m", "kernels.pycuda_build", str(archive), str(tmp_path / "site"))
    assert steps["tests"].command[-2:] == ("tests/kernels", "tests/models")
    assert steps["sanitizer"].command[0] == "/bin/compute-sanitizer"
    assert str(tmp_path / "bench.csv") in steps["bench"].command


def test_the_plan_of_a_bare_machine_says_what_is_missing(tmp_path: Path) -> None:
    steps = by_name(plan(Options(tmp_path), nothing))
    assert "the fallback binding is used" in steps["pycuda"].skip
    assert steps["sanitizer"].skip == "no compute-sanitizer on PATH"
    assert steps["card"].skip == "no nvidia-smi"
    assert [steps[name].skip for name in ("binding", "tests", "bench")] == ["", "", ""]
    gone = by_name(plan(Options(tmp_path, tmp_path / "gone.tar.gz"), nothing))
    assert "gone.tar.gz is not there" in gone["pycuda"].skip


class FakeMachine:
    """Answers each step by name; time passes while it runs."""

    def __init__(self, answers: Mapping[str, Any], seconds: float = 1.0) -> None:
        self.answers, self.seconds, self.now = answers, seconds, 0.0
        self.ran: list[tuple[str, float]] = []
        self.environment: Mapping[str, str] = {}

    def clock(self) -> float:
        return self.now

    def run(
        self, command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str]
    ) -> int | None:
        self.ran.append((command[0], limit_s))
        self.environment = environment
        log.write_text(f"line of {command[0]}\nlast of {command[0]}\n")
        self.now += self.seconds
        answer = self.answers.get(command[0], 0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]


STEPS = [Step(name, (name,), 100) for name in ("one", "two", "three", "four")]


def test_failures_do_not_stop_what_follows(tmp_path: Path) -> None:
    machine = FakeMachine({"one": 3, "two": None, "three": FileNotFoundError("no three")})
    results = execute(STEPS, Options(tmp_path), machine.run, machine.clock)
    assert [(r.name, r.outcome) for r in results] == [
        ("one", "failed"), ("two", "timed out"), ("three", "failed"), ("four", "passed"),
    ]  # fmt: skip
    assert results[2].note == "no three"
    assert results[0].note.endswith("last of one")


def test_steps_without_time_are_skipped_aloud(tmp_path: Path) -> None:
    machine = FakeMachine({}, seconds=30.0)
    results = execute(STEPS, Options(tmp_path, budget_s=50), machine.run, machine.clock)
    assert [r.outcome for r in results] == ["passed", "passed", "skipped", "skipped"]
    assert results[2].note == "no time left"
    assert machine.ran == [("one", 50.0), ("two", 20.0)]


def test_steps_see_what_was_built_first(tmp_path: Path) -> None:
    machine = FakeMachine({})
    execute(STEPS[:1], Options(tmp_path), machine.run, machine.clock)
    path = machine.environment["PYTHONPATH"].split(os.pathsep)
    assert path[0] == str(tmp_path / "site")
    assert machine.environment["XDG_CACHE_HOME"] == str(tmp_path / "cache")


def test_the_report_has_every_step(tmp_path: Path) -> None:
    words = report(
        [
            Result("tests", "passed", 2.0, "a\n9 passed"),
            Result("bench", "failed", 1.0, "two\nlines"),
            Result("pycuda", "skipped", 0.0, "no archive"),
        ],
        tmp_path,
    )
    for part in ("passed    tests", "9 passed", "failed    bench", "two", "no archive"):
        assert part in words
    saved = json.loads((tmp_path / "summary.json").read_text())
    assert [r["outcome"] for r in saved["results"]] == ["passed", "failed", "skipped"]


def test_a_real_command_runs_and_times_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    hello = [sys.executable, "-c", "print('hello'); raise SystemExit(4)"]
    assert gpu_check.run_command(hello, log, 60, os.environ) == 4
    assert log.read_text() == "hello\n"
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu_check.run_command(wait, log, 0.2, os.environ) is None


def test_its_pytest_settings_collect_the_gpu_tests_without_our_plugins(tmp_path: Path) -> None:
    """A bare machine has pytest and not pytest-asyncio or pytest-timeout."""
    options = Options(tmp_path)
    (tmp_path / "pytest.ini").write_text(gpu_check.PYTEST_INI.format(root=gpu_check.REPOSITORY))
    modules = ["tests/kernels/test_gpu_kernels.py", "tests/kernels/test_host.py"]
    more = ["--collect-only", "-q", "-p", "no:asyncio", "-p", "no:timeout"]
    command = [*by_name(plan(options, nothing))["tests"].command[:-2], *modules, *more]
    done = subprocess.run(
        command, cwd=gpu_check.REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_gpu_kernels.py" in done.stdout
    assert "test_host.py" not in done.stdout
