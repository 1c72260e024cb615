"""The real bindings against a driver library over host memory (`fake_cuda.cpp`)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import driver, host
from kernels.compiler import NoCompilerError

pytestmark = pytest.mark.unit
HERE = Path(__file__).resolve().parent
PACKAGES = {"pycuda": "pycuda", "cuda-python": "cuda"}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fake driver library."""
    folder = tmp_path_factory.mktemp("fake_cuda")
    try:
        compiler = host.find_compiler()
    except NoCompilerError as error:
        pytest.skip(str(error))
    target = folder / "libcuda.so.1"
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    source = HERE / "fake_cuda.cpp"
    subprocess.run([*command, str(source), "-o", str(target), "-ldl"], check=True)
    return folder


@pytest.mark.parametrize("binding", [name for name, _ in driver.BINDINGS])
def test_a_binding_does_all_that_it_promises(fake: Path, binding: str) -> None:
    if importlib.util.find_spec(PACKAGES[binding]) is None:
        pytest.skip(f"{binding} is not installed")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(fake)}
    command = [sys.executable, "-m", "tests.kernels.with_fake_cuda", binding, str(fake)]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "done\n"
