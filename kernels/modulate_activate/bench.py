"""Cases of `python -m kernels.bench`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.benching import Case, Maker, look, size_of
from kernels.modulate_activate import Epilogue, demodulate, fir, modulate
from kernels.modulate_activate.reference import torch_fir, torch_reference


def cases(make: Maker) -> Iterator[Case]:
    """The `live` block's end, the `paper` doubling, the demodulation factors."""
    s = make.sizes
    batch, channels, size = s.batch, s.channels, s.flow
    x, residual = (make.uniform(batch, channels, size, size, low=-1.0) for _ in range(2))
    bias = make.uniform(channels)
    scale, shift = make.uniform(batch, channels), make.uniform(batch, channels)
    out = make.empty(batch, channels, size, size)
    live = Epilogue(look(scale), look(shift), residual=look(residual), gain_add=1, slope=0.2)
    launch = modulate(look(x), look(out), live, look(bias))
    shape = f"{batch}x{channels}x{size}x{size}"
    inputs = (x, bias, scale, shift, residual)
    moved = size_of(x, residual, out)
    yield Case("modulate_activate", shape, launch, moved, torch_reference, inputs, out, (), 2e-2)

    double = make.empty(batch, channels, 2 * size, 2 * size)
    noise = make.uniform(1, 2 * size, 2 * size)
    paper = Epilogue(gain=look(scale), noise=look(noise), bias=look(bias), slope=0.2, scale=2**0.5)
    k = np.array([1, 3, 3, 1]) / 4
    taps = make.constant(np.outer(k, k)).to(make.dtype).expand(channels, 1, 4, 4)
    launch = fir(look(x), look(double), paper)
    inputs = (x, taps, scale, noise, bias)
    moved = size_of(x, double, noise)
    yield Case("fir_activate", shape, launch, moved, torch_fir, inputs, double, (), 2e-2)

    inner = 512
    squares, style = make.uniform(inner, inner, high=0.1), make.uniform(batch, inner, low=0.5)
    factors = make.empty(batch, inner)
    launch = demodulate(look(squares), look(style), look(factors))

    def reference(squares: object, style: object) -> object:
        return (style**2 @ squares.T + 1e-8).rsqrt()  # type: ignore[operator,attr-defined]

    moved = size_of(squares, style, factors)
    shape = f"{batch}x{inner}x{inner}"
    yield Case("demodulate", shape, launch, moved, reference, (squares, style), factors, (), 2e-2)


__all__ = ["cases"]
