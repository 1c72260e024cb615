"""The benchmark's cases compute what torch computes, and its record is complete."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from kernels import bench, driver, host
from kernels.bench import Clock, DisagreementError, Row, all_cases, check, copy_bandwidth
from kernels.benching import Maker, Sizes
from kernels.operation import OPERATIONS
from tests.kernels.bed import Bed

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def small_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "FLUSH_BYTES", 1 << 12)


SMALL = Sizes(batch=2, picture=48, maps=24, flow=16, channels=3)
EVERY = [operation.name for operation in OPERATIONS]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_case_agrees_with_torch(bed: Bed, dtype: str) -> None:
    kernels = set()
    for case in all_cases(Maker(dtype, "cpu", SMALL), EVERY):
        bed.run(case.launch)
        check(case)
        assert case.moved > 0
        assert case.output.double().abs().max() > 0
        kernels.add(case.launch.entry.rpartition("_")[0] if case.kernel != "rgb_to_i420" else "x")
    entries = {entry for operation in OPERATIONS for entry in operation.entries}
    assert kernels == entries - {"rgb_to_i420"} | {"x"}


def test_a_wrong_kernel_is_not_timed(bed: Bed) -> None:
    case = next(all_cases(Maker("float32", "cpu", SMALL), ["template"]))
    bed.run(case.launch)
    case.output[1, 5] += 0.1
    with pytest.raises(DisagreementError, match="axpy"):
        check(case)


class FakeTime:
    """Host calls whose events pass on a clock that every fill and copy moves."""

    def __init__(self, calls: host.HostCalls) -> None:
        self.now, self.order = 0.0, list[str]()
        fill, copy = calls.fill, calls.copy

        def slow_fill(*args: Any) -> None:
            self.now += 100.0
            self.order.append("flush")
            fill(*args)

        def slow_copy(*args: Any) -> None:
            self.now += 4.0
            copy(*args)

        def record(event: Any, stream: Any) -> None:
            event.recorded = self.now

        calls.fill, calls.copy, calls.record = slow_fill, slow_copy, record  # type: ignore[method-assign]
        calls.elapsed_ms = lambda start, end: end.recorded - start.recorded  # type: ignore[method-assign]


def test_every_run_has_a_cold_cache_and_the_flush_is_not_timed(calls: host.HostCalls) -> None:
    context = host.open_context(calls)
    stream = context.stream()
    fake, clock = FakeTime(calls), Clock(context, stream, runs=5)
    durations = iter([9.0] * bench.WARM_UP + [1.0, 50.0, 2.0, 3.0, 2.0])

    def work() -> None:
        fake.order.append("work")
        fake.now += next(durations)

    assert clock.median_ms(work) == 2.0
    assert fake.order[bench.WARM_UP :] == ["flush", "work"] * 5


def test_a_copy_counts_both_ways(calls: host.HostCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "COPY_BYTES", 1000)
    context = host.open_context(calls)
    stream = context.stream()
    FakeTime(calls)
    before = calls.live_bytes
    clock = Clock(context, stream, runs=3)
    assert copy_bandwidth(context, stream, clock) == 2 * 1000 / 4.0
    assert calls.live_bytes > before


def row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "date": "d", "commit": "c", "card": "x", "sm": "sm_90", "driver": "13.0",
        "binding": "host", "compiler": "n", "torch": "t", "kernel": "k", "shape": "s",
        "dtype": "f", "ms": 1.0, "ms_eager": 3.0, "ms_compiled": None, "moved_bytes": 8,
        "gb_per_s": 1.0, "copy_gb_per_s": 2.0, "fraction": 0.5, "times_eager": 3.0,
        "times_compiled": None,
    }  # fmt: skip
    return Row(**{**values, **changes})


def test_the_record_grows(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "bench.csv"
    bench.append(path, [row()])
    bench.append(path, [row(kernel="other")])
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["kernel"] for line in lines] == ["k", "other"]
    assert lines[0]["ms_compiled"] == ""
    assert lines[0]["fraction"] == "0.5"


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(*args: Any) -> driver.Context:
        raise driver.DriverMissingError("no device here")

    monkeypatch.setattr(driver, "open_context", missing)
    assert bench.main(["--csv", str(tmp_path / "x.csv")]) == 2
    assert "no GPU to measure: no device here" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
