"""Registers, stack and shared memory of every kernel for every card: a record in the repository.

    python -m kernels.resources            compare with kernels/resources.csv
    python -m kernels.resources --write    write it anew

Spilled registers cost memory traffic that no benchmark names, and the number of registers
decides how many threads fit: both show here, without a GPU, before anybody measures.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from kernels.compiler import Nvcc, find_nvcc
from kernels.operation import OPERATIONS, ROOT, Operation

#: Turing, Ampere (data centre, consumer), Ada, Hopper, Blackwell (data centre, consumer).
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
RECORD = ROOT / "resources.csv"
#: Registers that a kernel may grow by (another patch of the compiler) before it is a finding.
MARGIN = 4
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)a?'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one entry needs on one architecture; bytes, but for registers per thread."""

    kernel: str
    sm: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


def parse(said: str) -> list[Usage]:
    """Read what `ptxas -v` says."""
    found: list[Usage] = []
    parts = _ENTRY.split(said)[1:]
    for kernel, sm, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        memory, used, shared = _MEMORY.search(text), _USED.search(text), _SHARED.search(text)
        if memory is None or used is None:
            raise ValueError(f"ptxas said nothing of {kernel}: {text!r}")
        stack, stores, loads = (int(number) for number in memory.groups())
        smem = int(shared[1]) if shared else 0
        found.append(Usage(kernel, sm, int(used[1]), stack, stores, loads, smem))
    return found


def measure(
    nvcc: Nvcc,
    operations: Iterable[Operation] = OPERATIONS,
    architectures: Sequence[str] = ARCHITECTURES,
) -> list[Usage]:
    """Compile everything, two at a time. Raises CompileError."""

    def one(task: tuple[Operation, str]) -> list[Usage]:
        operation, sm = task
        return parse(nvcc.compile_verbosely(operation.source, sm, "-Xptxas", "-v")[1])

    tasks = [(operation, sm) for operation in operations for sm in architectures]
    with ThreadPoolExecutor(2) as pool:
        found = [usage for usages in pool.map(one, tasks) for usage in usages]
    return sorted(found, key=lambda u: (u.kernel, ARCHITECTURES.index(u.sm)))


def read(path: Path = RECORD) -> dict[tuple[str, str], Usage]:
    """Return the record by kernel and architecture."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    usages = [
        Usage(row["kernel"], row["sm"], *(int(row[f.name]) for f in fields(Usage)[2:]))
        for row in rows
    ]
    return {(usage.kernel, usage.sm): usage for usage in usages}


def write(usages: Iterable[Usage], path: Path = RECORD) -> None:
    """Write the record."""
    names = [f.name for f in fields(Usage)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(usage, name) for name in names] for usage in usages)


def findings(usages: Iterable[Usage], record: dict[tuple[str, str], Usage]) -> list[str]:
    """What is worse than the record or missing from it, one sentence each."""
    found = []
    seen = set()
    for now in usages:
        seen.add((now.kernel, now.sm))
        name = f"{now.kernel} for {now.sm}"
        if now.spill_stores or now.spill_loads:
            found.append(f"{name} spills {now.spill_stores} + {now.spill_loads} bytes")
        before = record.get((now.kernel, now.sm))
        if before is None:
            found.append(f"{name} is not in the record; python -m kernels.resources --write")
            continue
        if now.registers > before.registers + MARGIN:
            found.append(f"{name} uses {now.registers} registers, {before.registers} on record")
        for what in ("stack", "shared"):
            if getattr(now, what) > getattr(before, what):
                found.append(
                    f"{name} uses {getattr(now, what)} bytes of {what} memory, "
                    f"{getattr(before, what)} on record"
                )
    gone = sorted(set(record) - seen)
    found += [f"{kernel} for {sm} is on record and no longer there" for kernel, sm in gone]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare or write; the exit status is 1 when there are findings, 2 without nvcc."""
    parser = argparse.ArgumentParser(prog="python -m kernels.resources", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the record anew")
    options = parser.parse_args(arguments)
    path = find_nvcc()
    if path is None:
        print("no nvcc on PATH or under CUDA_HOME", file=sys.stderr)
        return 2
    usages = measure(Nvcc(path))
    if options.write:
        write(usages)
        return 0
    found = findings(usages, read())
    print("\n".join(found) or f"{len(usages)} entries as on record")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
