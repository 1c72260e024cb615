"""Every kernel, compiled for the host, equals its reference: odd sizes, strides, offsets, types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import host
from kernels.operation import Library, Operation
from tests.kernels import checks
from tests.kernels.bed import Bed

pytestmark = pytest.mark.unit

DTYPES = st.sampled_from([np.float32, np.float16])
SEEDS = st.integers(0, 2**31)
GAPS = st.integers(0, 5)
SHIFTS = st.sampled_from([0, 1, 3, 4, 8])
SMALL = st.integers(1, 40)
EPILOGUES = st.sets(
    st.sampled_from(
        ["gain", "shift", "bias", "noise", "noises", "strength", "residual", "gain_add", "slope",
         "scale", "limit", "conv"]
    )
)  # fmt: skip
fuzz = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def both(
    request: pytest.FixtureRequest, host_images: Callable[[Operation, str], bytes]
) -> Iterator[Callable[[], Bed]]:
    """Makes a fresh bed; blocks and threads run in both orders, so that races show."""
    used: list[tuple[Any, host.HostCalls]] = []

    def fresh() -> Bed:
        while used:
            context, calls = used.pop()
            calls.check_guards()
            context.close()
        calls = host.HostCalls(backwards=request.param)
        context = host.open_context(calls)
        used.append((context, calls))
        return Bed(context, Library(context, host_images))

    yield fresh
    fresh()


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@fuzz
@given(SEEDS, DTYPES, st.integers(1, 5), st.integers(1, 3000), SHIFTS, GAPS)
def test_axpy(
    both: Callable[[], Bed], seed: int, dtype: Any, rows: int, columns: int, shift: int, gap: int
) -> None:
    checks.axpy(both(), rng(seed), dtype, rows, columns, shift, gap)


@fuzz
@given(SEEDS, DTYPES, st.tuples(SMALL, SMALL), st.tuples(SMALL, SMALL),
       st.floats(0.3, 2.5), st.booleans(), GAPS)  # fmt: skip
def test_yuv_to_tensor(
    both: Callable[[], Bed], seed: int, dtype: Any, size: tuple[int, int],
    out_size: tuple[int, int], zoom: float, nv12: bool, gap: int,
) -> None:  # fmt: skip
    checks.yuv(both(), rng(seed), dtype, size, out_size, zoom, nv12, gap)


@fuzz
@given(
    SEEDS, DTYPES, st.lists(st.tuples(SMALL, st.integers(1, 150)), min_size=1, max_size=3),
    st.integers(1, 12), st.integers(1, 24), st.tuples(*2 * [st.sampled_from([3, 4])]), GAPS,
)  # fmt: skip
def test_warp_composite(
    both: Callable[[], Bed], seed: int, dtype: Any, sizes: list[tuple[int, int]],
    flow_size: int, map_size: int, steps: tuple[int, int], gap: int,
) -> None:  # fmt: skip
    checks.composite(both(), rng(seed), dtype, sizes, flow_size, map_size, steps, gap)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("size", "map_size"),
    [(64, 64), (256, 128), (129, 33), (40, 64), (140, 220), (131, 131)],
    ids=["same", "double", "odd", "smaller", "wide and smaller", "odd same"],
)
def test_warp_composite_at_the_products_ratios(
    bed: Bed, dtype: Any, size: int, map_size: int
) -> None:
    checks.composite(bed, rng(1), dtype, [(size, size)] * 2, 32, map_size, (4, 4), 0)


@fuzz
@given(SEEDS, DTYPES, st.integers(1, 2), st.integers(1, 19), st.tuples(SMALL, SMALL),
       st.tuples(SMALL, SMALL), st.booleans(), GAPS)  # fmt: skip
def test_warp_features(
    both: Callable[[], Bed], seed: int, dtype: Any, batch: int, channels: int,
    in_size: tuple[int, int], out_size: tuple[int, int], occluded: bool, gap: int,
) -> None:  # fmt: skip
    checks.features(both(), rng(seed), dtype, batch, channels, in_size, out_size, occluded, gap)


@fuzz
@given(SEEDS, DTYPES, st.tuples(st.integers(1, 3), st.integers(1, 4), SMALL, SMALL), EPILOGUES,
       st.booleans(), SHIFTS, GAPS)  # fmt: skip
def test_modulate(
    both: Callable[[], Bed], seed: int, dtype: Any, shape: tuple[int, int, int, int],
    terms: set[str], in_place: bool, shift: int, gap: int,
) -> None:  # fmt: skip
    terms = terms | {"in_place"} if in_place else terms
    checks.modulate(both(), rng(seed), dtype, shape, terms, shift, gap)


@fuzz
@given(SEEDS, DTYPES, st.tuples(st.integers(1, 2), st.integers(1, 3), SMALL, SMALL),
       st.sampled_from([1, 2]), st.integers(0, 3), st.integers(-3, 3), EPILOGUES, GAPS)  # fmt: skip
def test_fir(
    both: Callable[[], Bed], seed: int, dtype: Any, shape: tuple[int, int, int, int], up: int,
    pad: int, more: int, terms: set[str], gap: int,
) -> None:  # fmt: skip
    out_size = (max(1, shape[2] * up + more), max(1, shape[3] * up - more))
    checks.fir(both(), rng(seed), dtype, shape, up, pad, out_size, terms, gap)


@fuzz
@given(SEEDS, DTYPES, st.integers(1, 3), st.integers(1, 9), st.integers(1, 600))
def test_demodulate(
    both: Callable[[], Bed], seed: int, dtype: Any, batch: int, outputs: int, inputs: int
) -> None:
    checks.demodulate(both(), rng(seed), dtype, batch, outputs, inputs)


@fuzz
@given(
    SEEDS, st.lists(st.tuples(SMALL, SMALL), min_size=1, max_size=3), st.sampled_from([3, 4]),
    st.booleans(), st.none() | st.tuples(st.integers(-8, 40), st.integers(-8, 40)), GAPS,
)  # fmt: skip
def test_rgb_to_i420(
    both: Callable[[], Bed], seed: int, sizes: list[tuple[int, int]], step: int, mean: bool,
    mark: tuple[int, int] | None, gap: int,
) -> None:  # fmt: skip
    checks.i420(both(), rng(seed), sizes, step, mean, mark, gap)


@pytest.mark.parametrize("feather", [0.0, 6.0])
@pytest.mark.parametrize("size", [(90, 122), (61, 47)])
def test_paste_back(bed: Bed, feather: float, size: tuple[int, int]) -> None:
    checks.paste(bed, rng(2), 32, size, feather)


@fuzz
@given(SEEDS, DTYPES, st.integers(1, 13), st.sampled_from([1, 6, 30, 64, 100]), st.integers(1, 20))
def test_window_mean(
    both: Callable[[], Bed], seed: int, dtype: Any, length: int, dim: int, pushes: int
) -> None:
    checks.window(both(), rng(seed), dtype, length, dim, pushes)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "chunks", [[640] * 6, [1, 159, 160, 161, 480, 7, 2000, 13], [100] * 20], ids=str
)
def test_log_mel(both: Callable[[], Bed], dtype: Any, chunks: list[int]) -> None:
    checks.mel(both(), rng(3), dtype, chunks)
