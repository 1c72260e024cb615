"""Everything that needs a GPU, on a bare CUDA machine without network, in one go.

    python -m kernels.gpu_check OUT [--pycuda-archive pycuda-2026.1.tar.gz] [--budget-s 1500]

Run in the repository's root. It needs Python, numpy, pytest and nvcc (or NVRTC); torch for the
benchmark; cuda-python where PyCUDA cannot be built. Steps: what is there; PyCUDA from its source
archive, into OUT/site; which binding is used and why; the GPU tests of kernels and models;
compute-sanitizer on the small ones; `kernels.bench`. A step that fails or takes too long is
reported and the next one begins. OUT gets a log per step, bench.csv, and summary.json with what
happened; the exit status is the number of failed steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from kernels.operation import ROOT

REPOSITORY = ROOT.parent
Outcome = Literal["passed", "failed", "timed out", "skipped"]
#: A test run of its own: the project's settings name plugins that a bare machine lacks.
PYTEST_INI = """[pytest]
addopts = --import-mode=importlib -ra
pythonpath = {root}
markers =
    unit: no GPU
    e2e: whole server
    gpu: needs an NVIDIA GPU
    soak: long
"""
_BINDING = (
    "from kernels import driver; c = driver.open_context(); "
    "print(c.device); print('binding:', c.binding, '(' + c.reason + ')')"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command; `skip` says why it cannot be run here."""

    name: str
    command: tuple[str, ...]
    limit_s: float
    skip: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a step; `note` is the end of its log or the reason of a skip."""

    name: str
    outcome: Outcome
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    out: Path
    pycuda_archive: Path | None = None
    budget_s: float = 1500.0
    tests: tuple[str, ...] = ("tests/kernels", "tests/models")
    python: str = field(default=sys.executable)


Which = Callable[[str], str | None]
#: Runs a step: command, log, limit in seconds, environment -> exit status, None for timed out.
Runner = Callable[[Sequence[str], Path, float, Mapping[str, str]], int | None]


def plan(options: Options, which: Which = shutil.which) -> list[Step]:
    """Return the steps for this machine, with reasons for those that are left out."""
    python, out = options.python, options.out
    pytest = (python, "-m", "pytest", "-c", str(out / "pytest.ini"), f"--rootdir={REPOSITORY}")
    archive = options.pycuda_archive
    no_archive = "" if archive else "no --pycuda-archive: the fallback binding is used"
    if archive is not None and not archive.is_file():
        no_archive = f"{archive} is not there: the fallback binding is used"
    build = (python, "-m", "kernels.pycuda_build", str(archive), str(out / "site"))
    sanitizer = which("compute-sanitizer")
    tests = [path for path in options.tests if (REPOSITORY / path).exists()]
    small = ("tests/kernels/test_gpu_kernels.py", "-k", "TestSmall", "-x", "-q", "-m", "gpu")
    return [
        Step("card", ("nvidia-smi",), 60, "" if which("nvidia-smi") else "no nvidia-smi"),
        Step("packages", (python, "-m", "pip", "list"), 120),
        Step("pycuda", build, 600, no_archive),
        Step("binding", (python, "-c", _BINDING), 120),
        Step(
            "tests",
            (
                *pytest, "-m", "gpu", "--continue-on-collection-errors",
                f"--junitxml={out / 'tests.xml'}", *tests,
            ),
            900,
        ),
        Step(
            "sanitizer",
            (
                sanitizer or "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "86",
                *pytest, *small,
            ),
            600,
            "" if sanitizer else "no compute-sanitizer on PATH",
        ),
        Step(
            "bench",
            (python, "-m", "kernels.bench", "--csv", str(out / "bench.csv")),
            900,
        ),
    ]  # fmt: skip


def run_command(
    command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str]
) -> int | None:
    """Run to the end or the limit; both streams go into `log`."""
    with log.open("wb") as file:
        try:
            return subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=limit_s,
                cwd=REPOSITORY, env=dict(environment), check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return None


def _end_of(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def environment_for(options: Options) -> dict[str, str]:
    """The process's own, with what was built here in front and kernels cached in OUT."""
    path = [str(options.out / "site"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "XDG_CACHE_HOME": str(options.out / "cache"),
        "PYTHONUNBUFFERED": "1",
    }


def execute(
    steps: Sequence[Step],
    options: Options,
    runner: Runner = run_command,
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Run all steps, whatever becomes of each; stop starting new ones when the budget is spent."""
    began, results = clock(), []
    environment = environment_for(options)
    for step in steps:
        started = clock()
        left = options.budget_s - (started - began)
        reason = step.skip or ("no time left" if left <= 0 else "")
        if reason:
            results.append(Result(step.name, "skipped", 0.0, reason))
            continue
        log = options.out / f"{step.name}.log"
        note = ""
        try:
            status = runner(step.command, log, min(step.limit_s, left), environment)
        except OSError as error:
            status, note = 127, str(error)
        outcome: Outcome = "passed" if status == 0 else "timed out" if status is None else "failed"
        seconds = round(clock() - started, 1)
        results.append(Result(step.name, outcome, seconds, note or _end_of(log)))
        print(f"{step.name}: {outcome} in {seconds} s", flush=True)
    return results


def report(results: Sequence[Result], out: Path) -> str:
    """Write summary.json and return the same in words."""
    summary = {"results": [asdict(result) for result in results]}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    lines = []
    for result in results:
        detail = result.note if result.outcome != "passed" else result.note.rpartition("\n")[2]
        lines.append(f"{result.outcome:9} {result.name} ({result.seconds} s)")
        lines += [f"          {line}" for line in detail.splitlines()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the number of failed steps."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.gpu_check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", type=Path, help="folder for logs and results")
    parser.add_argument("--pycuda-archive", type=Path, help="PyCUDA's source archive (.tar.gz)")
    parser.add_argument("--budget-s", type=float, default=1500.0, help="seconds for everything")
    given = parser.parse_args(arguments)
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "pytest.ini").write_text(PYTEST_INI.format(root=REPOSITORY))
    archive: Path | None = given.pycuda_archive.resolve() if given.pycuda_archive else None
    options = Options(out, archive, given.budget_s)
    results = execute(plan(options), options)
    print(report(results, out))
    return sum(result.outcome in ("failed", "timed out") for result in results)


if __name__ == "__main__":
    sys.exit(main())
