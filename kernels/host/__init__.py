"""The kernels without a GPU: the same sources compiled for the host, behind the same driver.

`open_context()` gives a `kernels.driver.Context` whose device is the processor: arrays lie in
host memory between guard bytes, launches run block by block, streams run at once, graphs are
recorded and replayed. For tests and development, never chosen by `driver.open_context`: it
proves arithmetic, bounds, tables, launches and captures, and says nothing about speed.

    context = kernels.host.open_context()
    library = Library(context, build=kernels.host.build)
"""

from __future__ import annotations

from kernels.host.binding import HostCalls, open_context
from kernels.host.build import SANITIZE, build, build_library, find_compiler

__all__ = ["SANITIZE", "HostCalls", "build", "build_library", "find_compiler", "open_context"]
