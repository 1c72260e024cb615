"""Style, noise, bias, leaky ReLU and residual around a convolution, in one pass.

    out = clamp(leaky_relu(v * gain + shift + strength * noise + bias) * scale) + residual

with `v` the convolution's output plus its own bias. The `live` networks (style after the
convolution, `models.networks.blocks.ModulatedConv`) use gain = 1 + scale and shift; StyleGAN2
(Karras et al. 2020) uses gain = the demodulation factors of `demodulate`, fixed noise, bias,
slope .2 and scale sqrt(2). `fir` is the same behind StyleGAN2's [1, 3, 3, 1] filter, for a skip
connection (up 2) or behind a transposed convolution (up 1); `modulate` without an epilogue but
a gain scales a convolution's input.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from kernels.operation import Launch, blocks
from kernels.view import PLANE_LIMIT, View, Viewable, planes, suffix, view

THREADS, PACKS, LANES = 256, 2, 128
FIR_TAPS = 4


class EpilogueParams(ctypes.Structure):
    """Mirror of `Epilogue` in kernel.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gain", "shift", "bias", "noise", "strength",
                                               "residual")),
        *((name, ctypes.c_int64) for name in ("gain_batch", "shift_batch", "noise_batch",
                                              "noise_row", "residual_batch", "residual_plane",
                                              "residual_row")),
        *((name, ctypes.c_float) for name in ("gain_add", "slope", "scale", "limit")),
    )  # fmt: skip


_STRIDES = ("x_batch", "x_plane", "x_row", "out_batch", "out_plane", "out_row")


class ModulateParams(ctypes.Structure):
    """Mirror of `ModulateParams` in kernel.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "bias", "out")),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int) for name in ("channels", "height", "width")),
        ("e", EpilogueParams),
    )


class FirParams(ctypes.Structure):
    """Mirror of `FirParams` in kernel.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "out")),
        *((name, ctypes.c_int64) for name in _STRIDES),
        *((name, ctypes.c_int) for name in ("channels", "in_height", "in_width", "height",
                                            "width", "up", "pad")),
        ("e", EpilogueParams),
    )  # fmt: skip


class DemodulateParams(ctypes.Structure):
    """Mirror of `DemodulateParams` in kernel.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("squares", "style", "out")),
        *((name, ctypes.c_int64) for name in ("squares_row", "style_row", "out_row")),
        ("inputs", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    )


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What happens after the convolution; None leaves a term out.

    `gain`, `shift` (batch, channels); `bias` (channels,); `noise` (1 or batch, height, width)
    times `strength` (1,); `residual` like the output. All of the output's type. The channel is
    multiplied by `gain_add + gain`, by 1 without gain. `limit` 0 clamps nothing.
    """

    gain: Viewable | None = None
    shift: Viewable | None = None
    bias: Viewable | None = None
    noise: Viewable | None = None
    strength: Viewable | None = None
    residual: Viewable | None = None
    gain_add: float = 0.0
    slope: float = 1.0
    scale: float = 1.0
    limit: float = 0.0


NOTHING = Epilogue()


def _fill(e: Epilogue, out: View) -> EpilogueParams:
    """Check an epilogue against its output."""
    batch, channels, height, width = out.shape
    params = EpilogueParams(gain_add=e.gain_add, slope=e.slope, scale=e.scale, limit=e.limit)
    for name, array in (("gain", e.gain), ("shift", e.shift)):
        if array is not None:
            seen = planes(name, array, (batch, channels), out.dtype)
            setattr(params, name, seen.pointer)
            setattr(params, f"{name}_batch", seen.strides[0])
    if e.bias is not None:
        params.bias = planes("bias", e.bias, (channels,), out.dtype).pointer
    if e.strength is not None:
        params.strength = planes("strength", e.strength, (1,), out.dtype).pointer
    if e.noise is not None:
        items = view(e.noise).shape[0]
        noise = planes("noise", e.noise, (1 if items == 1 else batch, height, width), out.dtype)
        params.noise = noise.pointer
        params.noise_batch = 0 if items == 1 else noise.strides[0]
        params.noise_row = noise.strides[1]
    if e.residual is not None:
        residual = planes("residual", e.residual, out.shape, out.dtype)
        params.residual = residual.pointer
        params.residual_batch, params.residual_plane, params.residual_row = residual.strides[:3]
    return params


def modulate(
    x: Viewable, out: Viewable, epilogue: Epilogue, bias: Viewable | None = None
) -> Launch:
    """`out = activate(x + bias)`; in place where `out` is `x`.

    `x`, `out` (batch, channels, height, width) float32 or float16 with dense rows; `bias`
    (channels,). Raises ValueError.
    """
    into = planes("out", out, (None, None, None, None))
    batch, channels, height, width = into.shape
    seen = planes("x", x, into.shape, into.dtype)
    e = _fill(epilogue, into)
    # Dense planes are one long row, so that loads need not stop at every line's end.
    rows = [seen.strides[2], into.strides[2]]
    rows += [e.noise_row] if epilogue.noise is not None else []
    rows += [e.residual_row] if epilogue.residual is not None else []
    if all(row == width for row in rows):
        height, width = 1, height * width
    first = planes("bias", bias, (channels,), into.dtype).pointer if bias is not None else None
    params = ModulateParams(
        seen.pointer, first, into.pointer, *seen.strides[:3], *into.strides[:3],
        channels, height, width, e,
    )  # fmt: skip
    per_block = THREADS * PACKS * 16 // into.dtype.itemsize
    grid = (blocks(width, per_block), height, batch * channels)
    entry = f"modulate_activate_{suffix(into.dtype)}"
    return Launch(entry, grid, (THREADS, 1, 1), params)


def fir(
    x: Viewable, out: Viewable, epilogue: Epilogue = NOTHING, *, up: int = 2, pad: int = 2
) -> Launch:
    """`out = activate(filter(x))` with the filter [1, 3, 3, 1] on both axes.

    up 2, pad 2: (h, w) -> (2h, 2w), brightness kept. up 1, pad 1: what follows a transposed
    convolution of stride 2, (2h + 1, 2w + 1) -> (2h, 2w), times 4 for its zeros. Outside is 0.
    Raises ValueError.
    """
    into = planes("out", out, (None, None, None, None))
    batch, channels, height, width = into.shape
    seen = planes("x", x, (batch, channels, None, None), into.dtype)
    if up not in (1, 2) or not 0 <= pad < FIR_TAPS:
        raise ValueError(f"up must be 1 or 2 and pad 0 to 3, got {up} and {pad}")
    params = FirParams(
        seen.pointer, into.pointer, *seen.strides[:3], *into.strides[:3],
        channels, *seen.shape[2:], height, width, up, pad, _fill(epilogue, into),
    )  # fmt: skip
    packs = height * blocks(width, 16 // into.dtype.itemsize)
    if packs > PLANE_LIMIT - THREADS:
        raise ValueError(f"out: a plane of {height} x {width} is too large")
    grid = (blocks(packs, THREADS), 1, batch * channels)
    return Launch(f"fir_activate_{suffix(into.dtype)}", grid, (THREADS, 1, 1), params)


def demodulate(squares: Viewable, style: Viewable, out: Viewable, epsilon: float = 1e-8) -> Launch:
    """`out[b, o] = 1 / sqrt(sum_i squares[o, i] style[b, i]^2 + epsilon)`.

    `squares` (outputs, inputs): the weights squared and summed over their taps; `style`
    (batch, inputs); `out` (batch, outputs); all of one type. Raises ValueError.
    """
    into = planes("out", out, (None, None))
    batch, outputs = into.shape
    weights = planes("squares", squares, (outputs, None), into.dtype)
    styles = planes("style", style, (batch, weights.shape[1]), into.dtype)
    params = DemodulateParams(
        weights.pointer, styles.pointer, into.pointer,
        weights.strides[0], styles.strides[0], into.strides[0], weights.shape[1], epsilon,
    )  # fmt: skip
    return Launch(f"demodulate_{suffix(into.dtype)}", (outputs, batch, 1), (LANES, 1, 1), params)


__all__: list[str] = [
    "DemodulateParams",
    "Epilogue",
    "EpilogueParams",
    "FirParams",
    "ModulateParams",
    "demodulate",
    "fir",
    "modulate",
]
