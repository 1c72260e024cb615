"""Nothing is read or written outside: the sanitizers agree, and are awake."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels import host
from kernels.compiler import CompileError, NoCompilerError
from kernels.operation import OPERATIONS

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all kernels built with the sanitizers."""
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda op: host.build_library(op, host.SANITIZE, folder), OPERATIONS))
    except (NoCompilerError, CompileError) as error:
        pytest.skip(f"no compiler with sanitizers: {error}")
    return folder


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    runtime = subprocess.run(
        [host.find_compiler(), "-print-file-name=libasan.so"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    if not Path(runtime).is_absolute():
        pytest.skip("the compiler has no libasan to load")
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        # Python's own memory is not ours to judge, and small blocks must not share a page pool.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.kernels.sanitized", str(folder), *more]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.timeout(600)
def test_every_kernel_stays_inside_its_arrays(sanitized: Path) -> None:
    done = run(sanitized)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.endswith("clean\n")


@pytest.mark.timeout(300)
def test_the_sanitizer_is_awake(sanitized: Path) -> None:
    done = run(sanitized, "probe")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
