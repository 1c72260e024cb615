"""Where the C libraries are that PyAV brings."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import av


def library_paths(name: str) -> list[str]:
    """Files of the library `name` ("vpx", "opus"): PyAV's own first, then the system's."""
    root = Path(av.__file__).parent
    found = [
        str(path)
        for folder in (root.parent / "av.libs", root / ".dylibs")
        for path in sorted(folder.glob(f"*{name}*"))
    ]
    system = ctypes.util.find_library(name)
    return [*found, system] if system else found
