"""From a kernel's source to code for one card: nvcc or NVRTC, once per source and card.

Images lie in the user's cache directory, named by a hash of everything that went into them
(source and header, flags, architecture, compiler and its version), written atomically, so
that several processes may start at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from kernels.operation import ROOT, Operation

HEADER = ROOT / "kernel.cuh"
FLAGS: tuple[str, ...] = ("-std=c++17", "--fmad=true")
_log = logging.getLogger("visavis.kernels")


class CompileError(RuntimeError):
    """A kernel does not compile; the message has the command and the compiler's own words."""

    def __init__(self, command: Sequence[str], output: str) -> None:
        super().__init__(f"{' '.join(command)}\n{output.strip()}")


class NoCompilerError(RuntimeError):
    """Neither nvcc nor NVRTC is there; the message says what would help."""


class Compiler(Protocol):
    """Turns one source file into a cubin."""

    @property
    def version(self) -> str:
        """Name and version, part of the cache's key."""

    def compile(self, source: Path, sm: str) -> bytes:
        """Return the cubin for `sm` (`sm_89`). Raises CompileError."""


class Nvcc:
    """The CUDA toolkit's compiler."""

    def __init__(self, path: str) -> None:
        self.path = path
        found = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        release = re.search(r"release (\S+), (\S+)", found.stdout)
        if found.returncode != 0 or release is None:
            raise CompileError([path, "--version"], found.stdout + found.stderr)
        self.version = f"nvcc {release[2]}"

    def compile(self, source: Path, sm: str) -> bytes:
        """See `Compiler.compile`."""
        return self.compile_verbosely(source, sm)[0]

    def compile_verbosely(self, source: Path, sm: str, *more: str) -> tuple[bytes, str]:
        """Return the cubin and what the compiler said; `more` are further flags."""
        with tempfile.TemporaryDirectory(prefix="visavis-nvcc-") as folder:
            target = Path(folder) / "kernel.cubin"
            command = [self.path, "--cubin", f"-arch={sm}", *FLAGS, *more]
            command += [str(source), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            if done.returncode != 0:
                raise CompileError(command, said)
            return target.read_bytes(), said

    def architectures(self) -> list[str]:
        """Targets that this compiler knows, e.g. `sm_90`."""
        command = [self.path, "--list-gpu-code"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(command, done.stdout + done.stderr)
        return done.stdout.split()


class Nvrtc:
    """The compiler as a library, as it comes with the driver's runtime packages."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"nvrtc {major.value}.{minor.value}"

    def compile(self, source: Path, sm: str) -> bytes:
        """See `Compiler.compile`."""
        lib, program = self._library, ctypes.c_void_p()
        headers = (ctypes.c_char_p * 1)(HEADER.read_bytes())
        names = (ctypes.c_char_p * 1)(b"../kernel.cuh")
        flags = [f"--gpu-architecture={sm}", *FLAGS]
        command = [self.version, *flags, str(source)]
        text, name = source.read_bytes(), str(source).encode()
        code = lib.nvrtcCreateProgram(ctypes.byref(program), text, name, 1, headers, names)
        if code != 0:
            raise CompileError(command, self._words(code))
        try:
            encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            code = lib.nvrtcCompileProgram(program, len(flags), encoded)
            if code != 0:
                log = self._read(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")
                said = log.rstrip(b"\0").decode(errors="replace")
                raise CompileError(command, f"{self._words(code)}\n{said}")
            return self._read(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
        finally:
            lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _words(self, code: int) -> str:
        words: bytes = self._library.nvrtcGetErrorString(code)
        return words.decode()

    def _read(self, program: ctypes.c_void_p, size_call: str, call: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, size_call)(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self._library, call)(program, buffer)
        return buffer.raw


def find_nvcc() -> str | None:
    """Path of nvcc: on PATH, under CUDA_HOME or CUDA_PATH, or where toolkits usually lie."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(places))


def find_nvrtc() -> Any | None:
    """NVRTC, loaded: the system's or the one of NVIDIA's Python packages; None without one."""
    names = [f"libnvrtc.so.{major}" for major in (13, 12)]
    packaged = [
        str(found)
        for place in sys.path
        for pattern in ("nvidia/cu1*/lib/libnvrtc.so.1?", "nvidia/cuda_nvrtc/lib/libnvrtc.so.1?")
        for found in sorted(Path(place or ".").glob(pattern), reverse=True)
    ]
    for name in [*packaged, *names]:
        try:
            # NVRTC looks for its second half by name only, so it has to be loaded already.
            for half in sorted(Path(name).parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(half), mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@cache
def find_compiler() -> Compiler:
    """Nvcc, else NVRTC. Raises NoCompilerError."""
    path = find_nvcc()
    if path is not None:
        return Nvcc(path)
    library = find_nvrtc()
    if library is not None:
        return Nvrtc(library)
    raise NoCompilerError(
        "CUDA kernels cannot be compiled: there is neither nvcc (the CUDA toolkit, on PATH or "
        "named by CUDA_HOME) nor NVRTC (`pip install nvidia-cuda-nvrtc`)."
    )


def cache_folder() -> Path:
    """Where images are kept: below XDG_CACHE_HOME, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "visavis" / "kernels"


def cache_key(source: Path, sm: str, version: str, flags: Sequence[str] = FLAGS) -> str:
    """Hash of everything that decides what comes out."""
    parts = [version, sm, *flags]
    digest = hashlib.sha256("\0".join(parts).encode())
    for path in (source, HEADER):
        digest.update(b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def store(path: Path, image: bytes) -> None:
    """Write a file at once or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(image)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def build(
    operation: Operation,
    sm: str,
    *,
    compiler: Compiler | None = None,
    folder: Path | None = None,
) -> bytes:
    """Return the cubin of an operation for `sm`, from the cache if it is there.

    A cache that cannot be written costs time, not function: it is logged. Raises CompileError,
    NoCompilerError.
    """
    compiler = compiler or find_compiler()
    name = f"{operation.name}-{sm}-{cache_key(operation.source, sm, compiler.version)}.cubin"
    path = (folder or cache_folder()) / name
    try:
        image = path.read_bytes()
    except OSError:
        image = b""
    # A cubin is an ELF file; anything else in its place is not ours.
    if image.startswith(b"\x7fELF"):
        return image
    image = compiler.compile(operation.source, sm)
    try:
        store(path, image)
    except OSError as error:
        _log.warning("compiled kernels cannot be kept in %s: %s", path.parent, error)
    return image


__all__ = [
    "CompileError",
    "Compiler",
    "NoCompilerError",
    "Nvcc",
    "Nvrtc",
    "build",
    "cache_folder",
    "cache_key",
    "find_compiler",
    "find_nvcc",
    "find_nvrtc",
]
