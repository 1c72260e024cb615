"""Cases of `python -m kernels.bench`."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.benching import Case, Maker, look, size_of
from kernels.rgb_to_i420 import SESSION, rgb_to_i420, session
from kernels.rgb_to_i420.reference import WEIGHTS, torch_reference
from kernels.view import View


def cases(make: Maker) -> Iterator[Case]:
    """Conversion alone, into device memory: the card's part without the bus."""
    batch, size = make.sizes.batch, make.sizes.picture
    planar = make.bytes(batch, 3, size, size)
    rgb = make.empty_bytes(batch, size, size, 4)
    rgb[..., :3] = planar.permute(0, 2, 3, 1)
    out = make.empty_bytes(batch, size * size * 3 // 2)
    half, rows = size // 2, []
    for b in range(batch):
        whole = look(out[b])
        start = whole.pointer + size * size
        y = View(whole.pointer, (size, size), (size, 1), whole.dtype)
        u = View(start, (half, half), (half, 1), whole.dtype)
        v = View(start + half * half, (half, half), (half, 1), whole.dtype)
        rows.append(session(look(rgb[b]), (y, u, v)))
    table, raw = make.table(rows, SESSION)
    launch = rgb_to_i420(table, (size, size))
    weights = make.constant(WEIGHTS)
    inputs = (planar, weights)
    moved = size_of(rgb, out)
    shape = f"{batch}x{size}x{size}"
    keep = (raw, rgb)
    yield Case("rgb_to_i420", shape, launch, moved, torch_reference, inputs, out, keep, 1.0)


__all__ = ["cases"]
