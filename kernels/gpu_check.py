"""Everything that needs a GPU, on a bare CUDA machine without network, in one go.

    python -m kernels.gpu_check OUT [--wheels FOLDER] [--pycuda-archive pycuda-2026.1.tar.gz]

Run in the repository's root. It needs Python, numpy and nvcc (or NVRTC); pytest for the tests,
torch for benchmarks and the torch engine, cuda-python where PyCUDA cannot be built. What else a
machine lacks (OpenCV above all) may be carried along as wheels. Steps: what is there; the
wheels; PyCUDA from its source archive; which binding is used and why; the GPU tests of the
kernels; `kernels.bench`; the engines, both configurations, batches of 1 to 16; their GPU tests;
compute-sanitizer; TensorRT where it is installed; `visavis bench` from end to end; `kernels.bench`
against compiled torch, which compiles for minutes and so comes last.

A step that fails, takes too long or lacks something is reported, and the next one begins; the
whole takes `--budget-s` at most. After every step OUT holds all results so far in seven files:
summary.json, summary.txt, logs.txt, kernels.csv, engines-*.json, bench.json. What is built, and
which steps passed, stays in `--work`: a second call goes on where the first one ended. The exit
status is the number of failed steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from kernels.operation import ROOT

REPOSITORY = ROOT.parent
Outcome = Literal["passed", "failed", "timed out", "skipped"]
#: No file of OUT is larger: of a longer log its end is kept.
MAX_LOGS_BYTES = 8 << 20
#: Not in the repository, but kept beside it from one call to the next.
WORK = REPOSITORY / "build" / "gpu_check"
BATCHES = ("1", "2", "4", "8", "16")
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
    needs: tuple[str, ...] = ()
    """Modules that must be there when it begins."""
    after: str = ""
    """A step that must have passed."""


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
    work: Path = WORK
    pycuda_archive: Path | None = None
    wheels: Path | None = None
    budget_s: float = 570.0
    again: bool = False
    python: str = field(default=sys.executable)

    @property
    def site(self) -> Path:
        """Where wheels and PyCUDA are installed."""
        return self.work / "site"


Which = Callable[[str], str | None]
#: Runs a step: command, log, limit in seconds, environment -> exit status, None for timed out.
Runner = Callable[[Sequence[str], Path, float, Mapping[str, str]], int | None]
#: Modules of a list that are not there.
Missing = Callable[[Sequence[str]], list[str]]


def plan(options: Options, which: Which = shutil.which) -> list[Step]:
    """Return the steps for this machine, with reasons for those that are left out."""
    # Without a card tests would skip, which is no success.
    measuring = (replace(step, after="binding") for step in _measuring(options, which))
    return [*_preparing(options, which), *measuring]


def _preparing(options: Options, which: Which) -> list[Step]:
    python, archive, wheels = options.python, options.pycuda_archive, options.wheels
    no_archive = "" if archive else "no --pycuda-archive: the fallback binding is used"
    if archive is not None and not archive.is_file():
        no_archive = f"{archive} is not there: the fallback binding is used"
    found = sorted(wheels.glob("*.whl")) if wheels else []
    no_wheels = "" if found else "no --wheels: steps that lack a package are skipped"
    install = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--upgrade")
    return [
        Step("card", ("nvidia-smi",), 30, "" if which("nvidia-smi") else "no nvidia-smi"),
        Step("packages", (python, "-m", "pip", "list"), 30, needs=("pip",)),
        Step(
            "wheels", (*install, "--target", str(options.site), *map(str, found)), 90, no_wheels,
            ("pip",),
        ),
        Step(
            "pycuda",
            (python, "-m", "kernels.pycuda_build", str(archive), str(options.site)),
            180, no_archive, ("pip", "setuptools", "numpy"),
        ),
        Step("binding", (python, "-c", _BINDING), 60, needs=("numpy",)),
    ]  # fmt: skip


def _measuring(options: Options, which: Which) -> list[Step]:
    python, work = options.python, options.work
    pytest = (python, "-m", "pytest", "-c", str(work / "pytest.ini"), f"--rootdir={REPOSITORY}",
              "-m", "gpu", "-q")  # fmt: skip
    small = "tests/kernels/test_gpu_kernels.py"
    sanitizer = which("compute-sanitizer")
    check = (sanitizer or "compute-sanitizer", "--error-exitcode", "86")
    no_sanitizer = "" if sanitizer else "no compute-sanitizer on PATH"
    bench = (python, "-m", "kernels.bench", "--csv", str(work / "kernels.csv"))
    engines = (python, "-m", "realtime.engine_bench", "--seconds", "15", "--batch", *BATCHES)
    in_torch = ("numpy", "torch", "cv2", "safetensors")
    in_trt = ("numpy", "torch", "cv2", "onnx", "onnxruntime", "safetensors", "tensorrt")
    whole = ("av", "aiortc", "starlette", "uvicorn", "typer", "rich", "msgspec", "cv2", "torch",
             "safetensors")  # fmt: skip
    return [
        Step("tests", (*pytest, small), 150, needs=("pytest", "numpy")),
        Step("bench", (*bench, "--no-compiled"), 90, needs=("numpy", "torch")),
        Step(
            "engines",
            (*engines, "--engine", "torch", "--json", str(work / "engines-torch.json")),
            120, needs=in_torch,
        ),
        Step(
            "engine tests", (*pytest, "tests/models/test_tensorrt_gpu.py"), 150,
            needs=("pytest", *in_torch),
        ),
        Step(
            "sanitizer", (*check, "--tool", "memcheck", *pytest, "-x", small, "-k", "TestSmall"),
            120, no_sanitizer, ("pytest", "numpy"),
        ),
        Step(
            "racecheck",
            (*check, "--tool", "racecheck", *pytest, "-x", small, "-k",
             "TestSmall and (composite or demodulate or log_mel)"),
            60, no_sanitizer, ("pytest", "numpy"),
        ),
        Step(
            "export", (python, "-m", "realtime.cli", "export", "--engine", "tensorrt"), 120,
            needs=(*in_trt, "typer", "rich"),
        ),
        Step(
            "engines in TensorRT",
            (*engines, "--engine", "tensorrt", "--only", "live", "--json",
             str(work / "engines-tensorrt.json")),
            60, needs=in_trt,
        ),
        Step(
            "end to end",
            (python, "-m", "realtime.cli", "bench", "--engine", "auto", "--seconds", "10",
             "--json", str(work / "bench.json")),
            90, needs=whole,
        ),
        Step("bench, compiled", bench, 240, needs=("numpy", "torch")),
    ]  # fmt: skip


def run_command(
    command: Sequence[str], log: Path, limit_s: float, environment: Mapping[str, str]
) -> int | None:
    """Run to the end or the limit, with all that it started; both streams go into `log`."""
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=REPOSITORY, env=dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if child.poll() is None:
                # A sanitizer's or a server's children would keep the card.
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _end_of(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def environment_for(options: Options) -> dict[str, str]:
    """The process's own, with what was installed here in front and caches in the work folder."""
    path = [str(options.site), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "XDG_CACHE_HOME": str(options.work / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(options.work / "cache" / "inductor"),
        "PYTHONUNBUFFERED": "1",
    }


def missing_modules(options: Options) -> Missing:
    """What cannot be found by a step of ours; nothing is imported."""

    def missing(names: Sequence[str]) -> list[str]:
        PathFinder.invalidate_caches()
        path = [str(options.site), *sys.path]
        return [name for name in names if PathFinder.find_spec(name, path) is None]

    return missing


def execute(
    steps: Sequence[Step],
    options: Options,
    runner: Runner = run_command,
    clock: Callable[[], float] = time.monotonic,
    missing: Missing | None = None,
) -> list[Result]:
    """Run all steps, whatever becomes of each; stop starting new ones when the budget is spent.

    Steps that passed in an earlier call are not run again. Results are published after each.
    """
    missing = missing or missing_modules(options)
    before = {} if options.again else passed_before(options.work)
    began = clock()
    results: list[Result] = []
    environment = environment_for(options)
    for step in steps:
        started = clock()
        left = options.budget_s - (started - began)
        lacking = missing(step.needs)
        passed = {result.name for result in results if result.outcome == "passed"}
        reason = step.skip or ("no time left" if left <= 0 else "")
        if lacking and not reason:
            reason = f"it needs {', '.join(lacking)}: not installed here, nor among the wheels"
        if step.after and step.after not in passed and not reason:
            reason = f"it needs the step {step.after!r} to pass"
        if step.name in before:
            result = before[step.name]
        elif reason:
            result = Result(step.name, "skipped", 0.0, reason)
        else:
            result = _run(step, options, min(step.limit_s, left), environment, runner, clock)
        results.append(result)
        print(f"{step.name}: {result.outcome} in {result.seconds} s", flush=True)
        publish(results, options)
    return results


def _run(
    step: Step,
    options: Options,
    limit_s: float,
    environment: Mapping[str, str],
    runner: Runner,
    clock: Callable[[], float],
) -> Result:
    log, started, note = options.work / f"{step.name}.log", clock(), ""
    try:
        status = runner(step.command, log, limit_s, environment)
    except OSError as error:
        status, note = 127, str(error)
    outcome: Outcome = "passed" if status == 0 else "timed out" if status is None else "failed"
    return Result(step.name, outcome, round(clock() - started, 1), note or _end_of(log))


def passed_before(work: Path) -> dict[str, Result]:
    """Steps that passed in an earlier call of the same work folder, by name."""
    try:
        found = json.loads((work / "summary.json").read_text())["results"]
        results = [Result(**entry) for entry in found]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {result.name: result for result in results if result.outcome == "passed"}


def publish(results: Sequence[Result], options: Options) -> str:
    """Write everything known so far into OUT, and the summary into the work folder, too."""
    options.out.mkdir(parents=True, exist_ok=True)
    summary = json.dumps({"results": [asdict(result) for result in results]}, indent=1) + "\n"
    for folder in (options.work, options.out):
        (folder / "summary.json").write_text(summary)
    lines = []
    for result in results:
        detail = result.note if result.outcome != "passed" else result.note.rpartition("\n")[2]
        lines.append(f"{result.outcome:9} {result.name} ({result.seconds} s)")
        lines += [f"          {line}" for line in detail.splitlines()]
    words = "\n".join(lines)
    (options.out / "summary.txt").write_text(words + "\n")
    logs = b""
    for result in results:
        log = options.work / f"{result.name}.log"
        if log.is_file():
            logs += f"\n=== {result.name}\n".encode() + log.read_bytes()[-MAX_LOGS_BYTES // 8 :]
    (options.out / "logs.txt").write_bytes(logs[-MAX_LOGS_BYTES:])
    for name in ("kernels.csv", "engines-torch.json", "engines-tensorrt.json", "bench.json"):
        if (options.work / name).is_file():
            shutil.copyfile(options.work / name, options.out / name)
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the number of failed steps."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.gpu_check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", type=Path, help="folder for logs and results")
    parser.add_argument("--pycuda-archive", type=Path, help="PyCUDA's source archive (.tar.gz)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="what is built and cached; kept between calls"
    )
    parser.add_argument("--budget-s", type=float, default=570.0, help="seconds for everything")
    parser.add_argument("--again", action="store_true", help="also run what passed before")
    given = parser.parse_args(arguments)
    work: Path = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / "pytest.ini").write_text(PYTEST_INI.format(root=REPOSITORY))
    options = Options(
        given.out.resolve(), work,
        given.pycuda_archive.resolve() if given.pycuda_archive else None,
        given.wheels.resolve() if given.wheels else None,
        given.budget_s, given.again,
    )  # fmt: skip
    results = execute(plan(options), options)
    print(publish(results, options))
    return sum(result.outcome in ("failed", "timed out") for result in results)


if __name__ == "__main__":
    sys.exit(main())
