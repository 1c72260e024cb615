"""Where an array lies, whoever owns it: ours, numpy's, torch's or CuPy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

#: What launchers take: a View, a DeviceArray, a CUDA tensor, or numpy memory for the host tests.
Viewable: TypeAlias = Any
PLANE_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class View:
    """Memory by address. `strides` count elements; the address is not kept alive."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def view(array: Viewable) -> View:
    """Look at an array without copying it.

    Raises TypeError for what is no array, ValueError for strides that are not whole elements.
    """
    if isinstance(array, View):
        return array
    if isinstance(array, np.ndarray):
        pointer, shape, dtype = array.ctypes.data, array.shape, array.dtype
        in_bytes: tuple[int, ...] | None = array.strides
    else:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            raise TypeError(f"{type(array).__name__} is neither numpy nor CUDA memory")
        pointer, shape = interface["data"][0], tuple(interface["shape"])
        dtype, in_bytes = np.dtype(interface["typestr"]), interface.get("strides")
    if in_bytes is None:
        return View(pointer, shape, _dense(shape), dtype)
    if any(step % dtype.itemsize for step in in_bytes):
        raise ValueError(f"strides {in_bytes} are not whole elements of {dtype}")
    return View(pointer, shape, tuple(step // dtype.itemsize for step in in_bytes), dtype)


def planes(name: str, array: Viewable, shape: tuple[int | None, ...], dtype: Any = None) -> View:
    """Return the view of an array whose last axis is dense and whose shape is `shape`.

    None in `shape` allows any size but 0. Raises ValueError that names the array.
    """
    seen = view(array)
    fits = len(seen.shape) == len(shape) and all(
        have == want or (want is None and have > 0)
        for have, want in zip(seen.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {shape}, got {seen.shape}")
    if dtype is not None and seen.dtype != np.dtype(dtype):
        raise ValueError(f"{name} must be {np.dtype(dtype)}, got {seen.dtype}")
    if seen.shape and seen.shape[-1] > 1 and seen.strides[-1] != 1:
        raise ValueError(f"{name}: the last axis must be dense, its stride is {seen.strides[-1]}")
    # Kernels count within a plane in 32 bits.
    if len(seen.shape) > 1 and seen.shape[-2] * abs(seen.strides[-2]) > PLANE_LIMIT:
        raise ValueError(f"{name}: a plane may span {PLANE_LIMIT} elements at most")
    return seen


def suffix(dtype: np.dtype[Any]) -> str:
    """`f32` or `f16`, as entries are called. Raises ValueError for other types."""
    names = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}
    if dtype not in names:
        raise ValueError(f"kernels take float32 and float16, got {dtype}")
    return names[dtype]


__all__ = ["View", "Viewable", "planes", "suffix", "view"]
