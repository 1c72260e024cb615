"""Arrays of any owner, and what launchers refuse before a kernel could read outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels import (
    log_mel,
    modulate_activate,
    rgb_to_i420,
    template,
    warp_composite,
    window_mean,
    yuv_to_tensor,
)
from kernels.modulate_activate import Epilogue
from kernels.view import PLANE_LIMIT, View, planes, view

pytestmark = pytest.mark.unit


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


class Cuda:
    """An array as torch and CuPy show theirs."""

    def __init__(self, strides: tuple[int, ...] | None) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3), "typestr": "<f2", "data": (4096, False), "strides": strides,
            "version": 3,
        }  # fmt: skip


def test_arrays_of_any_owner() -> None:
    array = zeros(4, 6)[:, ::2]
    assert view(array) == View(array.ctypes.data, (4, 3), (6, 2), np.dtype("f4"))
    assert view(Cuda(None)) == View(4096, (2, 3), (3, 1), np.dtype("f2"))
    assert view(Cuda((16, 2))).strides == (8, 1)
    with pytest.raises(TypeError, match="list is neither"):
        view([1.0])
    with pytest.raises(ValueError, match="whole elements"):
        view(Cuda((5, 2)))


def test_planes_are_checked_by_name() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(2, None\), got \(3, 4\)"):
        planes("x", zeros(3, 4), (2, None))
    with pytest.raises(ValueError, match="x must have shape"):
        planes("x", zeros(2, 0), (2, None))
    with pytest.raises(ValueError, match="must be float16"):
        planes("x", zeros(2, 2), (2, 2), np.float16)
    with pytest.raises(ValueError, match="last axis must be dense"):
        planes("x", zeros(2, 4)[:, ::2], (2, 2))
    large = View(0, (2, 8), (PLANE_LIMIT // 2 + 1, 1), np.dtype("f4"))
    with pytest.raises(ValueError, match="a plane may span"):
        planes("x", large, (2, 8))


I420 = (zeros(4, 6, dtype="u1"), zeros(2, 3, dtype="u1"), zeros(2, 3, dtype="u1"))
TABLE = zeros(2, dtype=warp_composite.SESSION)
X = zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (lambda: template.axpy(zeros(2, 3), zeros(2, 4), zeros(2, 3), 1), "y must have shape"),
        (lambda: template.axpy(*3 * [zeros(2, 3, dtype="f8")], 1), "float32 and float16"),
        (lambda: template.axpy(*3 * [zeros(70_000, 1)], 1), "too large"),
        (lambda: yuv_to_tensor.picture(I420[0], I420[1][:1], I420[2], np.eye(2, 3)), "u must be"),
        (lambda: yuv_to_tensor.picture(*I420, np.zeros((2, 3))), "to a line"),
        (lambda: yuv_to_tensor.yuv_to_tensor(zeros(3), zeros(2, 3, 4, 4)), "pictures must"),
        (lambda: warp_composite.session(zeros(4, 4, 3, dtype="u1"), zeros(5, 4, 3, dtype="u1")),
         "one size"),
        (lambda: warp_composite.session(zeros(4, 4, 3), zeros(4, 4, 3, dtype="u1")), "uint8"),
        (lambda: warp_composite.composite(TABLE, (4, 4), zeros(2, 2, 4, 4), zeros(2, 1, 4, 4),
                                          zeros(2, 3, 5, 5)), "mask must have shape"),
        (lambda: warp_composite.composite(TABLE, (4, 4), zeros(2, 2, 4, 4), zeros(2, 1, 4, 4),
                                          zeros(2, 3, 4, 4), 5), "3 or 4 bytes"),
        (lambda: warp_composite.features(X, zeros(2, 2, 3, 3), zeros(2, 4, 4, 4)), "x must"),
        (lambda: modulate_activate.modulate(X, X, Epilogue(gain=zeros(2, 4))), "gain must"),
        (lambda: modulate_activate.modulate(X, X, Epilogue(noise=zeros(3, 4, 5))), "noise must"),
        (lambda: modulate_activate.modulate(X, X, Epilogue(residual=zeros(2, 3, 4, 4))),
         "residual must"),
        (lambda: modulate_activate.fir(X, zeros(2, 3, 8, 10), up=3), "up must be"),
        (lambda: modulate_activate.demodulate(zeros(4, 5), zeros(2, 6), zeros(2, 4)), "style must"),
        (lambda: rgb_to_i420.session(zeros(4, 6, 2, dtype="u1"), I420), "3 or 4 bytes"),
        (lambda: rgb_to_i420.session(zeros(4, 8, 3, dtype="u1"), I420), "y must have shape"),
        (lambda: rgb_to_i420.i420_planes(zeros(9, 7, dtype="u1")), "even n and m"),
        (lambda: window_mean.window_mean(zeros(2, dtype=window_mean.SESSION), zeros(2, 3),
                                         zeros(2, 3), zeros(4, 7, 4), zeros(4, dtype="u4")),
         "ring must"),
        (lambda: log_mel.session(zeros(3000), 0, 0, zeros(2, 4096)), "do not fit"),
        (lambda: log_mel.session(zeros(10), 0, 2, zeros(2, 4096)), "slot 2 of 2"),
        (lambda: log_mel.tables(zeros(1280), zeros(640, 80)), "need"),
    ],
)  # fmt: skip
def test_launchers_refuse_what_does_not_fit(launch: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        launch()
