"""The driver's objects over host memory, the choice of a binding, and what failures become."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

from kernels import driver, host, template
from kernels.driver import (
    DeviceLostError,
    DriverError,
    DriverMissingError,
    OutOfMemoryError,
    error_of,
)
from kernels.driver.libcuda import LibCuda
from kernels.operation import Launch
from tests.kernels.bed import Bed

pytestmark = pytest.mark.unit


def offer(monkeypatch: pytest.MonkeyPatch, **openers: Any) -> None:
    """Make modules with an `open` stand for the bindings."""
    bindings = []
    for name, opener in openers.items():
        module = types.ModuleType(f"fake_{name}")
        module.open = opener  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        bindings.append((name, module.__name__))
    monkeypatch.setattr(driver, "BINDINGS", tuple(bindings))


def refuse(words: str) -> Any:
    def opener(ordinal: int, reason: str) -> driver.Context:
        raise DriverMissingError(words)

    return opener


def accept(ordinal: int, reason: str) -> driver.Context:
    context = host.open_context()
    context.reason = reason
    return context


def test_the_first_binding_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, first=accept, second=refuse("never asked"))
    assert driver.open_context().reason == ""


def test_the_fallback_says_why_it_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, first=refuse("not built"), second=accept)
    assert driver.open_context().reason == "first cannot be used (not built)"


def test_without_a_binding_every_cause_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, first=refuse("not built"), second=refuse("no device"))
    with pytest.raises(DriverMissingError, match=r"not built.*no device"):
        driver.open_context()


def test_a_wanted_binding_has_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, first=refuse("not built"), second=accept)
    with pytest.raises(DriverMissingError, match="first cannot be used"):
        driver.open_context(binding="first")
    with pytest.raises(ValueError, match="there are: first, second"):
        driver.open_context(binding="third")


def test_importing_everything_but_the_bindings_imports_no_cuda() -> None:
    """Launchers, references and the driver's protocol belong on machines without CUDA."""
    code = (
        "import pkgutil, importlib, sys, kernels\n"
        "skip = ('_binding', '__main__')\n"
        "for m in pkgutil.walk_packages(kernels.__path__, 'kernels.'):\n"
        "    if not m.name.endswith(skip): importlib.import_module(m.name)\n"
        "bad = {'pycuda', 'cuda', 'torch', 'cupy', 'tensorrt', 'models'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(bad)}' if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, OutOfMemoryError), (700, DeviceLostError), (719, DeviceLostError), (1, DriverError)],
)
def test_results_become_exceptions(code: int, kind: type[DriverError]) -> None:
    error = error_of(code, "CUDA_ERROR_X", "cuCall")
    assert type(error) is kind
    assert "cuCall: CUDA_ERROR_X" in str(error)


def test_arrays_go_up_and_down(bed: Bed) -> None:
    context, stream = bed.context, bed.stream
    staged, back = context.pinned((3, 5), "f4"), context.pinned((3, 5), "f4")
    staged.array[:] = np.arange(15).reshape(3, 5)
    first, second = context.alloc((3, 5), "f4"), context.alloc((4, 5), "f4")
    second.fill(0, stream)
    first.upload(staged, stream)
    second.copy_from(first, stream)
    second.download(back, stream)
    np.testing.assert_array_equal(back.array, staged.array)
    interface = first.__cuda_array_interface__
    assert interface["shape"] == (3, 5)
    assert interface["data"] == (first.pointer, False)
    assert first.pointer % 256 == 0


def test_a_part_is_the_same_memory(bed: Bed) -> None:
    whole = bed.context.alloc((4, 2), "f4")
    whole.upload(np.zeros((4, 2), "f4"), bed.stream)
    part = whole.part(1, 2)
    part.upload(np.ones((2, 2), "f4"), bed.stream)
    part.free()
    got = np.empty((4, 2), "f4")
    whole.download(got, bed.stream)
    assert got.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
    with pytest.raises(IndexError):
        whole.part(3, 2)
    with pytest.raises(ValueError, match="12 bytes do not fit"):
        whole.part(0).upload(np.zeros(3, "f4"), bed.stream)


def test_a_part_keeps_its_array_alive(bed: Bed, calls: host.HostCalls) -> None:
    part = bed.context.alloc((4, 64), "f4").part(1)
    gc.collect()
    part.upload(np.zeros(64, "f4"), bed.stream)
    assert calls.live_bytes >= 4 * 64 * 4


@pytest.mark.parametrize("size", [7, 4])
def test_what_does_not_fit_is_refused(bed: Bed, size: int) -> None:
    array = bed.context.alloc((3,), "f4")
    with pytest.raises(ValueError, match="do not fit"):
        array.upload(np.zeros(size, "f4"), bed.stream)
    with pytest.raises(ValueError, match="do not fit"):
        array.download(np.zeros(size, "f4"), bed.stream)
    with pytest.raises(ValueError, match="contiguous"):
        array.upload(np.zeros((2, 2), "f4")[:, :1], bed.stream)


def test_freed_memory_is_given_back_once(bed: Bed, calls: host.HostCalls) -> None:
    before = calls.live_bytes
    array = bed.context.alloc((1000,), "u1")
    assert calls.live_bytes == before + 1000
    array.free()
    array.free()
    assert calls.live_bytes == before
    with pytest.raises(ValueError, match="freed"):
        array.fill(0, bed.stream)


def test_memory_is_bounded() -> None:
    context = host.open_context(host.HostCalls(memory_bytes=1000))
    keep = context.alloc((900,), "u1")
    with pytest.raises(OutOfMemoryError):
        context.pinned((200,), "u1")
    keep.free()
    assert context.pinned((200,), "u1").nbytes == 200


def test_closing_frees_everything(calls: host.HostCalls) -> None:
    with host.open_context(calls) as context:
        keep = [context.alloc((10,), "u1"), context.pinned((10,), "u1"), context.stream()]
        assert calls.live_bytes == 20
    assert calls.live_bytes == 0
    assert len(keep) == 3


def test_a_graph_replays_with_new_inputs(bed: Bed, calls: host.HostCalls) -> None:
    """Recording runs nothing; each replay reads what is in the pinned memory then."""
    context, stream = bed.context, bed.stream
    staged, result = context.pinned((2, 9), "f4"), context.pinned((2, 9), "f4")
    x, y = context.alloc((2, 9), "f4"), context.alloc((2, 9), "f4")
    y.upload(np.ones((2, 9), "f4"), stream)
    bed.library.load("template")
    with context.capture(stream) as graph:
        x.upload(staged, stream)
        bed.library.run(template.axpy(x, y, x, 3.0), stream)
        x.download(result, stream)
    assert calls.launched == []
    for value in (1.0, -2.0):
        staged.array[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert (result.array == 3 * value + 1).all()
    graph.free()
    with pytest.raises(DriverError, match="not captured"):
        graph.launch(stream)


def test_a_failed_recording_is_void(bed: Bed) -> None:
    with pytest.raises(KeyError), bed.context.capture(bed.stream) as graph:
        raise KeyError("x")
    with pytest.raises(DriverError, match="not captured"):
        graph.launch(bed.stream)
    bed.stream.synchronize()


def test_a_lost_device_fails_everything_and_can_still_be_closed(
    bed: Bed, calls: host.HostCalls
) -> None:
    array = bed.context.alloc((4,), "f4")
    calls.lose_device()
    for action in (
        lambda: bed.context.alloc((1,), "f4"),
        lambda: array.fill(0, bed.stream),
        bed.stream.synchronize,
        bed.context.synchronize,
    ):
        with pytest.raises(DeviceLostError):
            action()
    bed.context.close()


def test_strangers_and_empty_launches_are_refused(bed: Bed) -> None:
    array = bed.context.alloc((4,), "f4")
    with pytest.raises(TypeError, match="not made by"):
        array.fill(0, object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty or too large"):
        Launch("axpy_f32", (1, 0, 1), (1, 1, 1), template.Params())
    bed.library.load("template")
    launch = template.axpy(*3 * [bed.put(np.ones((1, 4), "f4")).view], 1.0)
    with pytest.raises(KeyError):
        bed.library.run(Launch("none", launch.grid, launch.block, launch.params), bed.stream)


class FakeCuda:
    """libcuda's graph calls, with a result to give."""

    def __init__(self, result: int = 0) -> None:
        self.result, self.called = result, list[str]()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> int:
            self.called.append(name)
            if name == "cuGetErrorName":
                args[1]._obj.value = b"CUDA_ERROR_FAKE"
                return 0
            for arg in args:
                inner = getattr(arg, "_obj", None)
                if isinstance(inner, ctypes.c_void_p):
                    inner.value = 77
            return self.result

        return call


def test_graphs_through_the_driver_library() -> None:
    fake = FakeCuda()
    lib = LibCuda(fake)
    lib.begin_capture(5)
    graph = lib.end_capture(5, keep=True)
    assert graph == 77
    lib.launch_graph(graph, 5)
    lib.free_graph(graph)
    assert fake.called == [
        "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags",
        "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy",
    ]  # fmt: skip
    fake.called.clear()
    assert lib.end_capture(5, keep=False) is None
    assert fake.called == ["cuStreamEndCapture", "cuGraphDestroy"]


def test_the_driver_librarys_failures_are_named() -> None:
    with pytest.raises(DeviceLostError, match=r"cuGraphLaunch: CUDA_ERROR_FAKE \(700\)"):
        LibCuda(FakeCuda(700)).launch_graph(1, 1)
    with pytest.raises(DeviceLostError):
        LibCuda(FakeCuda(719)).context_state()
