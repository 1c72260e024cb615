"""PyCUDA from its source archive, without network: what its own set-up does not find by itself.

    python -m kernels.pycuda_build pycuda-2026.1.tar.gz TARGET

PyCUDA looks for the toolkit beside `nvcc` and for `libcuda.so` in the toolkit. On a bare machine
`nvcc` may be a link or a wrapper, the driver comes as `libcuda.so.1` only, and cuRAND's headers,
which we do not need, may be missing. So the archive is unpacked, told all that in `siteconf.py`,
and installed with pip into the folder TARGET. numpy, setuptools and a C++ compiler must be there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from kernels.compiler import find_nvcc

DRIVER = "libcuda.so.1"


class BuildError(RuntimeError):
    """PyCUDA cannot be built here; the message says what is missing."""


def toolkit_root(candidates: Iterable[str | None]) -> Path:
    """First folder with CUDA's headers. Raises BuildError."""
    tried = []
    for candidate in candidates:
        if not candidate:
            continue
        tried.append(candidate)
        if (Path(candidate) / "include" / "cuda.h").is_file():
            return Path(candidate)
    raise BuildError(f"no include/cuda.h below {', '.join(tried) or 'any CUDA toolkit'}")


def driver_library(cache: str, places: Iterable[Path]) -> Path:
    """Find the driver by `ldconfig -p`'s output or in `places`. Raises BuildError."""
    for line in cache.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.startswith(DRIVER) and path:
            return Path(path)
    for place in places:
        for name in (DRIVER, "libcuda.so"):
            if (place / name).exists():
                return place / name
    raise BuildError(f"{DRIVER}, the NVIDIA driver's library, is not installed")


def siteconf(root: Path, link_folder: Path, headers: Path) -> str:
    """Return the text of PyCUDA's settings."""
    settings = {
        "CUDA_ROOT": str(root),
        "CUDADRV_LIB_DIR": [str(link_folder)],
        "CUDADRV_LIBNAME": ["cuda"],
        "CUDA_INC_DIR": [str(root / "include")],
        "CUDA_ENABLE_CURAND": (headers / "curand.h").is_file(),
        "CUDA_ENABLE_GL": False,
        "USE_SHIPPED_BOOST": True,
    }
    return "".join(f"{name} = {value!r}\n" for name, value in settings.items())


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a source archive and return its one folder. Raises BuildError."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise BuildError(f"{archive} cannot be unpacked: {error}") from error
    inside = [path for path in folder.iterdir() if (path / "setup.py").is_file()]
    if len(inside) != 1:
        raise BuildError(f"{archive} is not a source archive of one Python package")
    return inside[0]


def _places() -> list[Path]:
    named = [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
    usual = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/x86_64-linux-gnu",
             "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib")  # fmt: skip
    return [*named, *(Path(place) for place in usual)]


def _library_cache() -> str:
    try:
        return subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout
    except OSError:
        return ""


def build(archive: Path, target: Path) -> int:
    """Build and install into `target`; returns pip's exit status. Raises BuildError."""
    nvcc = find_nvcc()
    beside = str(Path(nvcc).resolve().parent.parent) if nvcc else None
    root = toolkit_root(
        [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), beside, "/usr/local/cuda"]
    )
    library = driver_library(_library_cache(), _places())
    with tempfile.TemporaryDirectory(prefix="visavis-pycuda-") as scratch:
        source = unpack(archive, Path(scratch))
        links = Path(scratch) / "link"
        links.mkdir()
        (links / "libcuda.so").symlink_to(library)
        (source / "siteconf.py").write_text(siteconf(root, links, root / "include"))
        command = [
            sys.executable, "-m", "pip", "install", "--no-index", "--no-deps",
            "--no-build-isolation", "--no-cache-dir", "--upgrade", "--target", str(target),
            str(source),
        ]  # fmt: skip
        environment = {**os.environ, "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(command, env=environment, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Build; the exit status is pip's, or 2 when something is missing."""
    parser = argparse.ArgumentParser(prog="python -m kernels.pycuda_build", description=__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    try:
        return build(options.archive, options.target)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
