"""Every kernel equals its reference on a GPU, and the driver does there what it does here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kernels import driver, template
from kernels.operation import Library
from tests.kernels import checks
from tests.kernels.bed import Bed

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=[name for name, _ in driver.BINDINGS])
def context(request: pytest.FixtureRequest) -> Iterator[driver.Context]:
    try:
        opened = driver.open_context(binding=request.param)
    except driver.DriverMissingError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="module")
def bed(context: driver.Context) -> Bed:
    return Bed(context, Library(context))


@pytest.fixture(params=[np.float32, np.float16], ids=["f32", "f16"])
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


EVERYTHING = {"gain", "shift", "bias", "noise", "strength", "residual", "conv", "limit", "slope"}


@pytest.mark.parametrize(("shift", "gap"), [(0, 0), (1, 3)], ids=["aligned", "odd"])
class TestSmall:
    """Small and odd; quick enough for compute-sanitizer."""

    def test_axpy(self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int) -> None:
        checks.axpy(bed, rng, dtype, 3, 1021, shift, gap)

    @pytest.mark.parametrize("nv12", [False, True])
    def test_yuv(self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int, nv12: bool) -> None:
        checks.yuv(bed, rng, dtype, (33, 47), (31, 29), 0.4 if shift else 1.3, nv12, gap)

    @pytest.mark.parametrize("maps", [5, 16, 31])
    def test_composite(
        self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int, maps: int
    ) -> None:
        steps = (3, 3) if shift else (4, 4)
        checks.composite(bed, rng, dtype, [(16, 16), (9, 141), (40, 40)], 7, maps, steps, gap)

    def test_features(self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int) -> None:
        checks.features(bed, rng, dtype, 2, 9, (15, 17), (21, 13), bool(shift), gap)

    def test_modulate(self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int) -> None:
        checks.modulate(bed, rng, dtype, (2, 3, 15, 37), EVERYTHING, shift, gap)

    @pytest.mark.parametrize(("up", "pad"), [(1, 1), (2, 2)])
    def test_fir(
        self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int, up: int, pad: int
    ) -> None:
        size = (15 * up - (up == 1), 9 * up - (up == 1))
        checks.fir(bed, rng, dtype, (2, 3, 15, 9), up, pad, size, EVERYTHING, gap)

    def test_demodulate(self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int) -> None:
        checks.demodulate(bed, rng, dtype, 2, 5, 130 + shift)

    def test_i420(self, bed: Bed, rng: Any, shift: int, gap: int) -> None:
        checks.i420(bed, rng, [(17, 33), (16, 64)], 3 if shift else 4, bool(shift), (3, 2), gap)

    def test_paste(self, bed: Bed, rng: Any, shift: int, gap: int) -> None:
        checks.paste(bed, rng, 32, (61, 47), 6.0 * shift)

    def test_window(self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int) -> None:
        checks.window(bed, rng, dtype, 7, 30 + 50 * shift, 23)

    def test_log_mel(self, bed: Bed, rng: Any, dtype: Any, shift: int, gap: int) -> None:
        checks.mel(bed, rng, dtype, [640] * 4 if shift else [1, 159, 2000, 13, 487])


class TestLarge:
    """The product's sizes."""

    def test_composite(self, bed: Bed, rng: Any, dtype: Any) -> None:
        checks.composite(bed, rng, dtype, [(512, 512), (384, 384)], 128, 256, (4, 4), 0)

    def test_modulate(self, bed: Bed, rng: Any, dtype: Any) -> None:
        checks.modulate(bed, rng, dtype, (4, 64, 128, 128), EVERYTHING, 0, 0)

    def test_i420(self, bed: Bed, rng: Any) -> None:
        checks.i420(bed, rng, [(512, 512)] * 4, 4, False, None, 0)


def test_a_graph_replays_with_new_inputs(context: driver.Context) -> None:
    stream, library = context.stream(), Library(context)
    library.load("template")
    staged, result = context.pinned((2, 9), "f4"), context.pinned((2, 9), "f4")
    x, y = context.alloc((2, 9), "f4"), context.alloc((2, 9), "f4")
    y.upload(np.ones((2, 9), "f4"), stream)
    stream.synchronize()
    with context.capture(stream) as graph:
        x.upload(staged, stream)
        library.run(template.axpy(x, y, x, 3.0), stream)
        x.download(result, stream)
    for value in (1.0, -2.0):
        staged.array[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert (result.array == 3 * value + 1).all()


def test_kernels_write_into_pinned_memory(context: driver.Context, bed: Bed) -> None:
    target = context.pinned((5, 33), "f4")
    x = bed.put(np.ones((5, 33), "f4"))
    from kernels.view import View

    out = View(target.pointer, (5, 33), (33, 1), np.dtype("f4"))
    bed.run(template.axpy(x.view, x.view, out, 2.0))
    assert (target.array == 3).all()


def test_events_measure_and_memory_is_counted(context: driver.Context) -> None:
    stream = context.stream()
    first, second = context.event(timing=True), context.event(timing=True)
    array = context.alloc((1 << 26,), "u1")
    first.record(stream)
    array.fill(1, stream)
    second.record(stream)
    second.synchronize()
    assert second.done
    assert 0 < second.elapsed_ms(first) < 1000
    free, total = context.memory()
    assert 0 < free < total == context.device.memory_bytes
    array.free()


def test_a_missing_entry_is_an_error(context: driver.Context) -> None:
    from kernels.compiler import build
    from kernels.operation import OPERATIONS

    module = context.load(build(OPERATIONS[0], context.device.sm))
    with pytest.raises(driver.DriverError):
        module.kernel("nothing")
