"""Every kernel against torch, on a GPU.

    python -m kernels.bench [--csv kernels/bench.csv] [--only warp_composite] [--runs 50]

Each case is first compared with torch's result, then timed alone on its stream with events:
the L2 cache is overwritten before every run, medians of all runs count. `fraction` is bytes that
must move, over the time, over the bandwidth that a device-to-device copy reaches on the same card
(bytes read and written). Rows are appended with hardware, versions, commit and date.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kernels import driver
from kernels.benching import Case, Maker, Sizes
from kernels.driver import Context, Stream
from kernels.operation import OPERATIONS, ROOT, Library

RECORD = ROOT / "bench.csv"
DTYPES = ("float32", "float16")
WARM_UP = 5
#: Bytes of the copy whose bandwidth is the measure; many times any L2 cache.
COPY_BYTES = 1 << 30
#: Least that is written to empty the cache; it also lets the next launches queue up behind it.
FLUSH_BYTES = 1 << 28


class DisagreementError(RuntimeError):
    """A kernel does not compute what torch does: its time would mean nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the record; times in milliseconds, empty where something could not run."""

    date: str
    commit: str
    card: str
    sm: str
    driver: str
    binding: str
    compiler: str
    torch: str
    kernel: str
    shape: str
    dtype: str
    ms: float
    ms_eager: float | None
    ms_compiled: float | None
    moved_bytes: int
    gb_per_s: float
    copy_gb_per_s: float
    fraction: float
    times_eager: float | None
    times_compiled: float | None


class Clock:
    """Times work on one stream with a cold L2 cache."""

    def __init__(self, context: Context, stream: Stream, runs: int) -> None:
        self._stream, self._runs = stream, runs
        self._start = [context.event(timing=True) for _ in range(runs)]
        self._end = [context.event(timing=True) for _ in range(runs)]
        self._flush = context.alloc((max(2 * context.device.l2_bytes, FLUSH_BYTES),), "u1")

    def median_ms(self, work: Callable[[], Any]) -> float:
        """Median of all runs of `work`, which puts its work on the stream."""
        for _ in range(WARM_UP):
            work()
        for i, (start, end) in enumerate(zip(self._start, self._end, strict=True)):
            self._flush.fill(i & 255, self._stream)
            start.record(self._stream)
            work()
            end.record(self._stream)
        self._stream.synchronize()
        pairs = zip(self._start, self._end, strict=True)
        return statistics.median(end.elapsed_ms(start) for start, end in pairs)


def copy_bandwidth(context: Context, stream: Stream, clock: Clock) -> float:
    """Bytes per millisecond of a device-to-device copy, read and written."""
    source, target = (context.alloc((COPY_BYTES,), "u1") for _ in range(2))
    try:
        source.fill(1, stream)
        return 2 * COPY_BYTES / clock.median_ms(lambda: target.copy_from(source, stream))
    finally:
        source.free()
        target.free()


def all_cases(make: Maker, only: Sequence[str] = ()) -> Iterator[Case]:
    """Cases of all operations (but the template, unless it is asked for)."""
    for operation in OPERATIONS:
        if operation.name in only or (not only and operation.name != "template"):
            yield from importlib.import_module(f"kernels.{operation.name}.bench").cases(make)


def check(case: Case) -> None:
    """Compare what the kernel wrote with torch's result. Raises DisagreementError."""
    expected = case.torch(*case.inputs).double()
    got = case.output.double()
    limit = case.tolerance if case.tolerance is not None else 4e-3
    error = ((got - expected).abs() / expected.abs().clamp(min=1)).max().item()
    if expected.max() > 2:  # bytes: levels of 255, a rounding apart
        error = (got - expected).abs().max().item()
    if not error <= limit:
        raise DisagreementError(f"{case.kernel} {case.shape}: {error:.3g} from torch, not {limit}")


def commit() -> str:
    """Short hash of the commit, with a + for local changes."""
    try:
        command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


class Bench:
    """Runs cases on one context, torch on the same stream."""

    def __init__(
        self, context: Context, runs: int, only: Sequence[str] = (), compiled: bool = True
    ) -> None:
        import torch

        from kernels.compiler import find_compiler

        self.failed = False
        self._torch, self._context, self._only = torch, context, only
        self._compiled = compiled
        self._stream = context.stream()
        self._clock = Clock(context, self._stream, runs)
        self._library = Library(context)
        self._copy = copy_bandwidth(context, self._stream, self._clock)
        device = context.device
        self._common = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "card": device.name,
            "sm": device.sm,
            "driver": ".".join(map(str, device.driver_version)),
            "binding": context.binding,
            "compiler": find_compiler().version,
            "torch": torch.__version__,
        }

    def rows(self, dtype: str, sizes: Sizes | None = None) -> Iterator[Row]:
        """Measure all cases of one type; one that disagrees is reported and left out."""
        stream: Any = self._torch.cuda.ExternalStream(self._stream.handle)  # type: ignore[no-untyped-call]
        with self._torch.cuda.stream(stream), self._torch.inference_mode():
            for case in all_cases(Maker(dtype, "cuda", sizes), self._only):
                try:
                    yield self._row(case, dtype)
                except DisagreementError as error:
                    self.failed = True
                    print(error, file=sys.stderr)

    def _row(self, case: Case, dtype: str) -> Row:
        self._library.run(case.launch, self._stream)
        self._stream.synchronize()
        check(case)
        ours = self._clock.median_ms(lambda: self._library.run(case.launch, self._stream))
        eager = self._torch_ms(case, lambda work: work)
        compiled = self._torch_ms(case, self._torch.compile) if self._compiled else None
        rate = case.moved / ours
        return Row(
            **self._common,
            kernel=case.kernel, shape=case.shape, dtype=dtype, ms=round(ours, 5),
            ms_eager=_rounded(eager), ms_compiled=_rounded(compiled), moved_bytes=case.moved,
            gb_per_s=round(rate / 1e6, 1), copy_gb_per_s=round(self._copy / 1e6, 1),
            fraction=round(rate / self._copy, 3), times_eager=_ratio(eager, ours),
            times_compiled=_ratio(compiled, ours),
        )  # fmt: skip

    def _torch_ms(self, case: Case, wrap: Callable[[Any], Any]) -> float | None:
        try:
            work = wrap(case.torch)
            return self._clock.median_ms(lambda: work(*case.inputs))
        except Exception as error:  # a compiler's failure must not end the other cases
            print(f"{case.kernel}: torch could not run it: {error}", file=sys.stderr)
            return None


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 5)


def _ratio(theirs: float | None, ours: float) -> float | None:
    return None if theirs is None else round(theirs / ours, 2)


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to the record; a new file gets a heading."""
    fresh = not path.exists() or path.stat().st_size == 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 2 without a GPU and 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--csv", type=Path, default=RECORD, help="record to append to")
    parser.add_argument("--only", nargs="*", default=(), help="names of operations")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--no-compiled", action="store_true", help="spare torch's compiler")
    options = parser.parse_args(arguments)
    try:
        context = driver.open_context()
    except driver.DriverMissingError as error:
        print(f"no GPU to measure: {error}", file=sys.stderr)
        return 2
    with context:
        print(f"{context.device.name} through {context.binding} ({context.reason})")
        bench = Bench(context, options.runs, options.only, not options.no_compiled)
        for row in (row for dtype in DTYPES for row in bench.rows(dtype)):
            append(options.csv, [row])
            print(
                f"{row.kernel:18} {row.shape:22} {row.dtype:8} {row.ms:9.4f} ms "
                f"{row.fraction:6.1%} of copy, x{row.times_eager} eager, "
                f"x{row.times_compiled} compiled",
                flush=True,
            )
    return int(bench.failed)


if __name__ == "__main__":
    sys.exit(main())
