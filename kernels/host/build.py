"""Kernels as shared libraries for this machine, through `shim.h`."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from kernels.compiler import CompileError, NoCompilerError, cache_folder, cache_key, store
from kernels.operation import Operation

#: Stops at the first access outside an array and at undefined arithmetic. The process must have
#: loaded the compiler's libasan before anything else.
SANITIZE = (
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1",
)  # fmt: skip
# Without contraction into fused multiply-adds the result does not depend on the processor.
FLAGS = (
    "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
    "-ffp-contract=off", "-fPIC", "-shared",
)  # fmt: skip


def find_compiler() -> str:
    """Path of a C++ compiler: CXX, g++, c++ or clang++. Raises NoCompilerError."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise NoCompilerError(
        "no C++ compiler: install one (Debian: apt install g++) or name it in CXX"
    )


@cache
def _version(compiler: str) -> str:
    """First line of what the compiler says of itself."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]


def build_library(
    operation: Operation, more: Sequence[str] = (), folder: Path | None = None
) -> Path:
    """Return the path of an operation's library, from the cache if it is there.

    Raises CompileError with the command and the compiler's words, NoCompilerError.
    """
    compiler = find_compiler()
    flags = (*FLAGS, *more)
    shim = Path(__file__).with_name("shim.h").read_text()
    key = cache_key(operation.source, "host", f"{_version(compiler)}\n{shim}", flags)
    path = (folder or cache_folder()) / f"{operation.name}-host-{key}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(prefix="visavis-host-") as scratch:
        target = Path(scratch) / "kernel.so"
        command = [compiler, *flags, "-x", "c++", str(operation.source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(command, done.stdout + done.stderr)
        store(path, target.read_bytes())
    return path


def build(operation: Operation, sm: str = "host", more: Sequence[str] = ()) -> bytes:
    """`Library`'s way to the host's kernels: the image is the library's path.

    `sm` is what the host's device calls itself and is not looked at.
    """
    return os.fsencode(build_library(operation, more))


__all__ = ["SANITIZE", "build", "build_library", "find_compiler"]
