"""The living template: `out = a * x + y`. Copy this folder to add an operation.

What an operation consists of, each part being checked by the tests for all folders alike:

1. `kernel.cu`: one struct `Params`, the arithmetic as `template <class T> DEVICE`, and one
   `KERNEL` per type. Only `kernel.cuh` is included; read it first. Arithmetic in float, sizes
   from `Params`, loads and stores through `load` and `store`, which use the widest instruction
   that the address allows. Nothing is allocated, nothing is read outside the arrays.
2. `__init__.py`: `Params` again as a ctypes structure (the tests compare the sizes) and a
   function that checks arrays and returns a `Launch`. It imports no CUDA binding, so the host
   tests run it, too. What changes from frame to frame but not with the batch size (a session's
   pointers) belongs into a table in device memory, not into `Params`: a captured graph keeps
   its `Params` for ever.
3. `reference.py`: the same in plain numpy, written from the formula and not from the kernel,
   and `torch_reference` with the torch operations that a user would write.
4. `bench.py`: `cases(dtype)` for `python -m kernels.bench`.
5. A line in `kernels.operation.OPERATIONS`, a host test in `tests/kernels/`, a case in
   `tests/kernels/cases.py` (the GPU tests run all of them), and
   `python -m kernels.resources --write`.
"""

from __future__ import annotations

import ctypes

from kernels.operation import Launch, blocks
from kernels.view import Viewable, planes, suffix

THREADS = 256


class Params(ctypes.Structure):
    """Mirror of `Params` in kernel.cu."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("x_row", ctypes.c_int64),
        ("y_row", ctypes.c_int64),
        ("out_row", ctypes.c_int64),
        ("columns", ctypes.c_int),
        ("a", ctypes.c_float),
    )


def axpy(x: Viewable, y: Viewable, out: Viewable, a: float) -> Launch:
    """`out = a * x + y`, all (rows, columns) float32 or float16 with dense rows.

    Raises ValueError for shapes or types that differ.
    """
    seen = planes("x", x, (None, None))
    other = planes("y", y, seen.shape, seen.dtype)
    result = planes("out", out, seen.shape, seen.dtype)
    rows, columns = seen.shape
    params = Params(
        seen.pointer, other.pointer, result.pointer,
        seen.strides[0], other.strides[0], result.strides[0], columns, a,
    )  # fmt: skip
    per_block = THREADS * 16 // seen.dtype.itemsize
    entry = f"axpy_{suffix(seen.dtype)}"
    return Launch(entry, (blocks(columns, per_block), rows, 1), (THREADS, 1, 1), params)


__all__ = ["Params", "axpy"]
