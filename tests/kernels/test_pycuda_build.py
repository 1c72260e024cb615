"""What PyCUDA is told before it is built."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from kernels import pycuda_build
from kernels.pycuda_build import BuildError, driver_library, siteconf, toolkit_root, unpack

pytestmark = pytest.mark.unit

CACHE = """2 libs found in cache
\tlibcudart.so.13 (libc6,x86-64) => /usr/lib/libcudart.so.13
\tlibcuda.so.1 (libc6,x86-64) => /drivers/libcuda.so.1
"""


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    return path


def test_the_toolkit_is_where_its_headers_are(tmp_path: Path) -> None:
    (tmp_path / "b" / "include").mkdir(parents=True)
    (tmp_path / "b" / "include" / "cuda.h").write_text("")
    assert toolkit_root([None, str(tmp_path / "a"), str(tmp_path / "b")]) == tmp_path / "b"
    with pytest.raises(BuildError, match=r"include/cuda.h below .*/a"):
        toolkit_root([None, str(tmp_path / "a")])


def test_the_driver_is_found_in_the_cache_or_in_its_usual_places(tmp_path: Path) -> None:
    assert driver_library(CACHE, []) == Path("/drivers/libcuda.so.1")
    (tmp_path / "libcuda.so.1").write_text("")
    assert driver_library("", [tmp_path / "none", tmp_path]) == tmp_path / "libcuda.so.1"
    with pytest.raises(BuildError, match="driver's library"):
        driver_library("", [tmp_path / "none"])


def test_settings_are_python_that_pycuda_executes(tmp_path: Path) -> None:
    values: dict[str, object] = {}
    exec(siteconf(Path("/cuda"), tmp_path, tmp_path), values)
    assert values["CUDA_ROOT"] == "/cuda"
    assert values["CUDADRV_LIB_DIR"] == [str(tmp_path)]
    assert values["CUDA_ENABLE_CURAND"] is False


def test_archives_are_unpacked_within_bounds(tmp_path: Path) -> None:
    good = archive(tmp_path / "good.tar.gz", "pycuda-1/setup.py", "pycuda-1/x")
    assert unpack(good, tmp_path / "good") == tmp_path / "good" / "pycuda-1"
    for name, members in {"other": ["readme"], "evil": ["../setup.py"]}.items():
        bad = archive(tmp_path / f"{name}.tar.gz", *members)
        (tmp_path / name).mkdir()
        with pytest.raises(BuildError):
            unpack(bad, tmp_path / name)
    assert not (tmp_path / "setup.py").exists()
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(BuildError, match="cannot be unpacked"):
        unpack(tmp_path / "text", tmp_path / "x")


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(candidates: object) -> Path:
        raise BuildError("no toolkit here")

    monkeypatch.setattr(pycuda_build, "toolkit_root", missing)
    assert pycuda_build.main([str(tmp_path / "a.tar.gz"), str(tmp_path / "site")]) == 2
    assert "no toolkit here" in capsys.readouterr().err
