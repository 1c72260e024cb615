"""Run in a process that finds `fake_cuda.cpp` as its driver: a real binding, end to end.

`python -m tests.kernels.with_fake_cuda BINDING FOLDER`; prints `done` when all went well.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels import driver, host, template
from kernels.operation import Library, Operation
from tests.kernels import checks
from tests.kernels.bed import Bed


def main(binding: str, folder: Path) -> None:
    """Memory, kernels, graphs, events, errors, and a lost device."""

    def image(operation: Operation, sm: str) -> bytes:
        assert sm == "sm_90"
        return bytes(host.build_library(operation, folder=folder))

    context = driver.open_context(binding=binding)
    assert context.binding == binding
    assert context.device == driver.DeviceInfo("Fake 1", (9, 0), 1 << 30, 1 << 20, 7, (13, 0))
    bed, rng = Bed(context, Library(context, image)), np.random.default_rng(0)
    checks.axpy(bed, rng, np.float32, 3, 100, 1, 2)
    checks.composite(bed, rng, np.float16, [(20, 20), (9, 31)], 4, 8, (4, 4), 0)
    checks.window(bed, rng, np.float32, 3, 5, 6)

    stream, other = context.stream(), context.stream()
    assert stream.handle not in (0, other.handle)
    staged, result = context.pinned((2, 9), "f4"), context.pinned((2, 9), "f4")
    x, y = context.alloc((2, 9), "f4"), context.alloc((2, 9), "f4")
    y.upload(np.ones((2, 9), "f4"), stream)
    bed.library.load("template")
    with context.capture(stream) as graph:
        x.upload(staged, stream)
        bed.library.run(template.axpy(x, y, x, 3.0), stream)
        x.download(result, stream)
    for value in (1.0, -2.0):
        staged.array[:] = value
        graph.launch(stream)
        stream.synchronize()
        assert (result.array == 3 * value + 1).all()
    y.copy_from(x, stream)
    back = np.empty((2, 9), "f4")
    y.download(back, stream)
    assert (back == -5).all()
    graph.free()

    first, second = context.event(timing=True), context.event(timing=True)
    assert not first.done
    first.record(stream)
    other.wait(first)
    second.record(other)
    second.synchronize()
    assert second.done
    assert second.elapsed_ms(first) == 1.5
    assert context.memory() == (1 << 29, 1 << 30)
    context.make_current()
    context.synchronize()

    raises(driver.OutOfMemoryError, lambda: context.alloc((1 << 31,), "u1"))
    raises(driver.DriverError, lambda: context.load(b"/nothing"))
    module = context.load(image(Operation("template", ("axpy",)), "sm_90"))
    raises(driver.DriverError, lambda: module.kernel("nothing"))

    ctypes.CDLL("libcuda.so.1").fake_lose(700)
    raises(driver.DeviceLostError, stream.synchronize)
    raises(driver.DeviceLostError, lambda: x.fill(0, stream))
    raises(driver.DeviceLostError, lambda: context.alloc((1,), "u1"))
    context.close()

    # Releasing does not revive a context that others hold; opening it anew does.
    with driver.open_context(binding=binding) as fresh:
        fresh.synchronize()
        assert fresh.alloc((4,), "u1").pointer
    print("done")


def raises(kind: type[Exception], action: Callable[[], object]) -> None:
    """Check that `action()` raises exactly `kind`."""
    with pytest.raises(kind) as caught:
        action()
    assert caught.type is kind


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
