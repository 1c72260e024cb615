"""What `visavis doctor` says about a GPU, with and without one."""

from __future__ import annotations

from pathlib import Path

import pytest

import kernels.host
from kernels.driver import Context, DriverMissingError
from models.checkpoint import Checkpoint, open_checkpoint
from models.runtime import gpu_report
from models.runtime.engine import EngineError
from models.runtime.engine_cache import EngineManifest, NetworkRecord, engine_folder, onnx_hash
from models.runtime.gpu_report import Fact, gpu_facts
from realtime import doctor
from realtime.settings import Settings
from tests.models.host_cuda import GraphFlavour, WatchedCalls

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(verify=False)


def facts(checkpoint: Checkpoint, root: Path, **changed: object) -> list[Fact]:
    calls = WatchedCalls()
    parts: dict[str, object] = {
        "has_driver": lambda: True,
        "open_context": lambda: kernels.host.open_context(calls),
        "flavours": lambda: ["tensorrt_rtx"],
        "load_flavour": GraphFlavour,
    } | changed
    found = list(gpu_facts(checkpoint, root=root, **parts))  # type: ignore[arg-type]
    assert calls.released or changed
    return found


def test_without_a_driver_it_is_one_line_and_no_error(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [fact] = facts(checkpoint, tmp_path, has_driver=lambda: False)
    assert (fact.verdict, fact.fix) == ("ok", "")
    assert "no NVIDIA driver" in fact.detail
    monkeypatch.setattr(gpu_report.gpu_facts, "__kwdefaults__", {
        **gpu_report.gpu_facts.__kwdefaults__, "has_driver": lambda: False,
    })  # fmt: skip
    [check] = doctor.check_gpu(Settings())
    assert (check.verdict, check.subject, check.fix) == ("ok", "GPU", "")


def test_a_driver_without_a_card_names_the_remedy(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def nothing() -> Context:
        raise DriverMissingError("pycuda cannot be used (No module named 'pycuda')")

    [fact] = facts(checkpoint, tmp_path, open_context=nothing)
    assert fact.verdict == "warning"
    assert "pycuda cannot be used" in fact.detail
    assert fact.fix == "pip install -e '.[gpu]'"


def test_a_card_is_named_and_missing_engines_name_their_command(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = {fact.subject: fact for fact in facts(checkpoint, tmp_path)}
    assert "Fake RTX (sm_86)" in found["GPU"].detail
    assert "CUDA 13.0" in found["GPU"].detail
    assert found["TensorRT"] == Fact("ok", "TensorRT", "tensorrt_rtx 1.0")
    assert found["Engines"].verdict == "warning"
    assert "no tensorrt_rtx engine of live for sm86" in found["Engines"].detail
    assert found["Engines"].fix == (
        "visavis export --engine tensorrt --flavour tensorrt_rtx --target sm86"
    )


def test_built_engines_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = engine_folder(tmp_path, "live", "tensorrt_rtx", "sm86")
    folder.mkdir(parents=True)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    records = {}
    for name in ("audio", "motion", "appearance", "generator"):
        (folder / f"{name}.plan").write_bytes(b"")
        records[name] = NetworkRecord(empty, 0, onnx_hash(checkpoint, name), {}, {}, {}, None)
    weights = checkpoint.manifest["files"]["weights.safetensors"]
    EngineManifest("live", weights, "tensorrt_rtx", "1.0", "sm86", None, records).write(folder)
    found = {fact.subject: fact for fact in facts(checkpoint, tmp_path)}
    assert found["Engines"] == Fact("ok", "Engines", "live for sm86, 0 MiB")


def test_no_tensorrt_and_a_broken_one_are_told_apart(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = {f.subject: f for f in facts(checkpoint, tmp_path, flavours=lambda: [])}
    assert found["TensorRT"].fix == "pip install -e '.[gpu]'"
    assert "torch would draw" in found["TensorRT"].detail

    def broken(name: str) -> GraphFlavour:
        raise EngineError("tensorrt_rtx cannot be used (libcudart is missing)")

    found = {f.subject: f for f in facts(checkpoint, tmp_path, load_flavour=broken)}
    assert found["TensorRT"].verdict == "warning"
    assert "libcudart is missing" in found["TensorRT"].detail
    assert "Engines" not in found


def test_a_missing_compiler_is_said(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.compiler import NoCompilerError

    def none() -> None:
        raise NoCompilerError("neither nvcc nor NVRTC")

    monkeypatch.setattr(gpu_report, "find_compiler", none)
    found = {fact.subject: fact for fact in facts(checkpoint, tmp_path)}
    assert found["CUDA kernels"].verdict == "warning"
    assert "neither nvcc" in found["CUDA kernels"].detail
    assert found["CUDA kernels"].fix
