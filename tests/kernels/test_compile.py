"""Compiling for cards that are not here: every architecture, the record, the cache, errors."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import compiler, driver, host, operation, resources
from kernels.compiler import CompileError, NoCompilerError, Nvcc, Nvrtc, build
from kernels.operation import OPERATIONS, Operation
from kernels.resources import ARCHITECTURES, Usage, findings

pytestmark = pytest.mark.unit

TEMPLATE = OPERATIONS[0]
SAID = """ptxas info    : Compiling entry function 'axpy_f16' for 'sm_90'
ptxas info    : Function properties for axpy_f16
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 25 registers, used 1 barriers, 512 bytes smem
ptxas info    : Compiling entry function 'axpy_f32' for 'sm_90'
ptxas info    : Function properties for axpy_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 0 barriers
"""


def test_every_folder_is_an_operation() -> None:
    folders = {path.parent.name for path in operation.ROOT.glob("*/kernel.cu")}
    assert folders == {op.name for op in OPERATIONS}
    for name in folders:
        parts = {path.name for path in (operation.ROOT / name).iterdir()}
        assert {"__init__.py", "reference.py", "bench.py", "kernel.cu"} <= parts, name


@pytest.mark.timeout(900)
def test_every_kernel_compiles_for_every_card_within_its_record(nvcc: Nvcc) -> None:
    missing = set(ARCHITECTURES) - set(nvcc.architectures())
    usages = resources.measure(nvcc, architectures=[a for a in ARCHITECTURES if a not in missing])
    symbols = {symbol for op in OPERATIONS for symbol in op.symbols}
    assert {usage.kernel for usage in usages} == symbols
    record = {key: usage for key, usage in resources.read().items() if key[1] not in missing}
    assert findings(usages, record) == []
    if missing:
        pytest.skip(f"compared, but {nvcc.version} does not know {sorted(missing)}")


def test_reports_are_read() -> None:
    assert resources.parse(SAID) == [
        Usage("axpy_f16", "sm_90", 25, 16, 4, 8, 512),
        Usage("axpy_f32", "sm_90", 22, 0, 0, 0, 0),
    ]


def test_growth_is_a_finding(tmp_path: Path) -> None:
    old = Usage("k", "sm_90", 40, 0, 0, 0, 512)
    resources.write([old], tmp_path / "record.csv")
    record = resources.read(tmp_path / "record.csv")
    assert findings([old], record) == []
    assert findings([Usage("k", "sm_90", 44, 0, 0, 0, 512)], record) == []
    worse = findings([Usage("k", "sm_90", 45, 8, 4, 0, 513)], record)
    assert [word in " ".join(worse) for word in ("spills", "45 registers", "stack", "shared")] == [
        True, True, True, True,
    ]  # fmt: skip
    assert len(findings([], record)) == 1
    assert "not in the record" in findings([Usage("new", "sm_90", 1, 0, 0, 0, 0), old], record)[0]


class FakeCompiler:
    """Counts, and returns an image of its own."""

    version = "fake 1"

    def __init__(self) -> None:
        self.compiled = 0

    def compile(self, source: Path, sm: str) -> bytes:
        self.compiled += 1
        return b"\x7fELF" + sm.encode()


def test_a_card_is_compiled_for_once(tmp_path: Path) -> None:
    fake = FakeCompiler()
    for _ in range(2):
        assert build(TEMPLATE, "sm_89", compiler=fake, folder=tmp_path) == b"\x7fELFsm_89"
    assert fake.compiled == 1
    build(TEMPLATE, "sm_90", compiler=fake, folder=tmp_path)
    assert fake.compiled == 2
    fake.version = "fake 2"
    build(TEMPLATE, "sm_90", compiler=fake, folder=tmp_path)
    assert fake.compiled == 3
    assert all(path.suffix == ".cubin" for path in tmp_path.iterdir())


def test_a_changed_source_or_header_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "kernel.cuh"
    header.write_text("// one")
    monkeypatch.setattr(compiler, "HEADER", header)
    first = compiler.cache_key(TEMPLATE.source, "sm_90", "v")
    header.write_text("// two")
    assert compiler.cache_key(TEMPLATE.source, "sm_90", "v") != first
    assert compiler.cache_key(OPERATIONS[1].source, "sm_90", "v") != first
    assert compiler.cache_key(TEMPLATE.source, "sm_90", "v", ["-g"]) != first


def test_a_broken_cache_file_is_made_again(tmp_path: Path) -> None:
    fake = FakeCompiler()
    build(TEMPLATE, "sm_89", compiler=fake, folder=tmp_path)
    next(tmp_path.iterdir()).write_bytes(b"half")
    assert build(TEMPLATE, "sm_89", compiler=fake, folder=tmp_path).startswith(b"\x7fELF")
    assert fake.compiled == 2


def test_an_unwritable_cache_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    image = build(TEMPLATE, "sm_89", compiler=FakeCompiler(), folder=blocked / "cache")
    assert image == b"\x7fELFsm_89"
    assert "cannot be kept" in caplog.text


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, target: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(compiler.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        compiler.store(tmp_path / "x.cubin", b"\x7fELF")
    assert list(tmp_path.iterdir()) == []


def broken(tmp_path: Path) -> Path:
    source = tmp_path / "broken" / "kernel.cu"
    source.parent.mkdir()
    source.write_text("KERNEL(x) { this is no kernel }")
    return source


def test_nvcc_says_command_and_reason(nvcc: Nvcc, tmp_path: Path) -> None:
    source = broken(tmp_path)
    with pytest.raises(CompileError) as caught:
        nvcc.compile(source, "sm_90")
    message = str(caught.value)
    assert f"{nvcc.path} --cubin -arch=sm_90" in message
    assert str(source) in message
    assert "error" in message


def test_an_unknown_card_is_the_compilers_error(nvcc: Nvcc) -> None:
    with pytest.raises(CompileError, match="sm_999"):
        nvcc.compile(TEMPLATE.source, "sm_999")


def test_the_host_compiler_says_command_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path)
    monkeypatch.setattr(operation, "ROOT", tmp_path)
    with pytest.raises(CompileError, match=r"-ffp-contract=off(.|\n)*error"):
        host.build_library(Operation("broken", ("x",)), folder=tmp_path)


def test_nvrtc_makes_the_same_entries(tmp_path: Path) -> None:
    library = compiler.find_nvrtc()
    if library is None:
        pytest.skip("no NVRTC (pip install nvidia-cuda-nvrtc)")
    nvrtc = Nvrtc(library)
    image = nvrtc.compile(TEMPLATE.source, "sm_90")
    assert image.startswith(b"\x7fELF")
    assert all(symbol.encode() in image for symbol in TEMPLATE.symbols)
    with pytest.raises(CompileError, match="NVRTC_ERROR_COMPILATION"):
        nvrtc.compile(broken(tmp_path), "sm_90")


def test_without_a_compiler_the_message_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    monkeypatch.setattr(compiler, "find_nvrtc", lambda: None)
    compiler.find_compiler.cache_clear()
    with pytest.raises(NoCompilerError, match=r"CUDA_HOME.*pip install nvidia-cuda-nvrtc"):
        compiler.find_compiler()
    compiler.find_compiler.cache_clear()


def test_structures_are_as_large_here_as_there(host_images: Any) -> None:
    """Entries export the size of their Params; launching compares it with the ctypes mirror."""
    from kernels import log_mel, rgb_to_i420, warp_composite, window_mean, yuv_to_tensor
    from kernels import modulate_activate as modulate

    mirrors = {
        "axpy_f32": __import__("kernels.template", fromlist=["Params"]).Params,
        "yuv_to_tensor_f32": yuv_to_tensor.Params,
        "warp_composite_f32": warp_composite.CompositeParams,
        "warp_features_f32": warp_composite.FeaturesParams,
        "modulate_activate_f32": modulate.ModulateParams,
        "fir_activate_f32": modulate.FirParams,
        "demodulate_f32": modulate.DemodulateParams,
        "rgb_to_i420": rgb_to_i420.Params,
        "window_mean_f32": window_mean.Params,
        "log_mel_f32": log_mel.Params,
    }
    for entry, mirror in mirrors.items():
        op = operation.operation_of(entry)
        library = ctypes.CDLL(host_images(op, "host").decode())
        assert ctypes.c_uint.in_dll(library, f"{entry}_params").value == ctypes.sizeof(mirror)


@pytest.mark.parametrize(
    ("body", "fine"),
    [
        ("threads([&] { out = 1; }); barrier(); threads([&] { out = 2; });", True),
        ("threads([&] { out = 1; }); threads([&] { out = 2; });", False),
        ("threads([&] { barrier(); });", False),
    ],
    ids=["barrier", "none", "inside"],
)
def test_barriers_are_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, fine: bool
) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (tmp_path / "kernel.cuh").write_text(compiler.HEADER.read_text())
    (tmp_path / "host").symlink_to(Path(host.__file__).parent)
    (folder / "kernel.cu").write_text(
        '#include "../kernel.cuh"\nstruct Params { int unused; };\n'
        "KERNEL(made, Params, 2) { SHARED int out; (void)p; (void)out; " + body + " }\n"
    )
    monkeypatch.setattr(operation, "ROOT", tmp_path)
    library = host.build_library(Operation("made", ("made",), ()), folder=tmp_path)
    calls = host.HostCalls()
    stream, entry = calls.stream(), calls.function(calls.load(bytes(library)), "made")
    if fine:
        calls.launch(entry, (2, 1, 1), (2, 1, 1), bytes(4), stream, 0)
        assert calls.launched == ["made"]
    else:
        with pytest.raises(driver.DriverError, match="barrier"):
            calls.launch(entry, (2, 1, 1), (2, 1, 1), bytes(4), stream, 0)


def test_halves_round_like_the_hardware(tmp_path: Path) -> None:
    """Every half and what lies between two of them, against numpy."""
    source = tmp_path / "half.cpp"
    shim = Path(host.__file__).with_name("shim.h").parent.parent / "kernel.cuh"
    source.write_text(
        f'#include "{shim}"\n'
        'extern "C" void halves(const float* in, u16* out, float* back, int n) {\n'
        "    for (int i = 0; i < n; ++i) {\n"
        "        half h = to_half(in[i]);\n"
        "        out[i] = h.bits;\n"
        "        back[i] = to_float(h);\n"
        "    }\n}\n"
    )
    target = tmp_path / "half.so"
    command = [host.find_compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-w"]
    subprocess.run([*command, str(source), "-o", str(target)], check=True)
    every = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(every[np.isfinite(every)])
    between = (finite[1:] + finite[:-1]) / 2
    edges = np.array([65519.9, 65520, 1e9, -1e-9], np.float32)
    above = np.nextafter(between, np.float32(9e9))
    values = np.concatenate([every, between, above, edges])
    bits, back = np.empty(len(values), np.uint16), np.empty(len(values), np.float32)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (values, bits, back))
    ctypes.CDLL(str(target)).halves(*pointers, len(values))
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(bits[numbers], expected[numbers].view(np.uint16))
    np.testing.assert_array_equal(back[numbers], expected[numbers].astype(np.float32))
    assert np.isnan(back[~numbers]).all()
