"""Where a measurement is made: hardware, versions, commit, and whether others are at work."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

PACKAGES = ("visavis", "aiortc", "av", "numpy", "openvino", "tensorrt")
#: Of all cores' time in other hands; beyond it they take from what is measured.
BUSY_SHARE = 0.15


def machine() -> dict[str, str]:
    """Where this was measured: hardware, versions, commit."""
    usable = hasattr(os, "sched_getaffinity")
    found = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if usable else os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    busy = busy_share()
    if busy is not None:
        found["busy_before"] = f"{100 * busy:.0f} %"
    return found


def busy_share(seconds: float = 1.0, stat: Path = Path("/proc/stat")) -> float | None:
    """Share of all cores' time that others use during `seconds` (blocks); None where the
    system does not tell. Not the load average: that remembers what ended a minute ago.
    """
    try:
        before = _ticks(stat)
        time.sleep(seconds)
        spent = np.subtract(_ticks(stat), before)
    except (OSError, ValueError):
        return None
    return float(spent[0] / spent[1]) if spent[1] > 0 else None


def _ticks(stat: Path) -> tuple[int, int]:
    """Ticks in use and all ticks so far, proc(5): user, nice, system, idle, iowait, irq,
    softirq, steal; what guests use is in the first two already."""
    fields = [int(field) for field in stat.read_text().splitlines()[0].split()[1:9]]
    return sum(fields) - sum(fields[3:5]), sum(fields)


def warnings(facts: dict[str, str]) -> list[str]:
    """Why these figures may be worth less than they look."""
    busy = float(facts.get("busy_before", "0").removesuffix("%"))
    if busy <= 100 * BUSY_SHARE:
        return []
    return [
        f"Other programs used {busy:.0f} % of this machine's {facts['cores']} cores in the second "
        "before this began: these figures say little."
    ]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent.parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True,
            timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
