"""The real bindings against a driver library over host memory (`fake_cuda.cpp`)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import driver, host
from kernels.compiler import NoCompilerError

pytestmark = pytest.mark.unit
HERE = Path(__file__).resolve().parent
PACKAGES = {"pycuda": "pycuda", "cuda-python": "cuda"}


def linked_calls() -> list[str]:
    """Calls that PyCUDA, where it is installed, wants to find whether it makes them or not."""
    spec = importlib.util.find_spec("pycuda")
    if spec is None or not spec.submodule_search_locations or shutil.which("nm") is None:
        return []
    modules = Path(spec.submodule_search_locations[0]).glob("_driver*.so")
    found: set[str] = set()
    for module in modules:
        command = ["nm", "-D", "--undefined-only", str(module)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= {name for name in said.split() if name.startswith("cu")}
    return sorted(found)


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
    source, rest = HERE / "fake_cuda.cpp", folder / "rest.cpp"
    known = source.read_text()
    names = [name for name in linked_calls() if f"CALL {name}(" not in known]
    rest.write_text("".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in names))
    sources = [str(source), str(rest)]
    subprocess.run([*command, *sources, "-o", str(target), "-ldl"], check=True)
    return folder


@pytest.mark.parametrize("binding", [name for name, _ in driver.BINDINGS])
def test_a_binding_does_all_that_it_promises(fake: Path, binding: str) -> None:
    if importlib.util.find_spec(PACKAGES[binding]) is None:
        pytest.skip(f"{binding} is not installed")
    # Loaded first: a PyCUDA that was built without a driver does not name the library.
    preload = {"LD_LIBRARY_PATH": str(fake), "LD_PRELOAD": str(fake / "libcuda.so.1")}
    environment = {**os.environ, **preload}
    command = [sys.executable, "-m", "tests.kernels.with_fake_cuda", binding, str(fake)]
    done = subprocess.run(
        command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "done\n"
