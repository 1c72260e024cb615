"""Cases of `python -m kernels.bench`."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.benching import Case, Maker, look, size_of
from kernels.template import axpy
from kernels.template.reference import torch_reference


def cases(make: Maker) -> Iterator[Case]:
    """One dense multiply-add over a batch of RGB pictures."""
    rows, columns = make.sizes.batch * 3, make.sizes.picture**2
    x, y, out = make.uniform(rows, columns), make.uniform(rows, columns), make.empty(rows, columns)
    launch = axpy(look(x), look(y), look(out), 1.5)
    moved = size_of(x, y, out)
    yield Case("axpy", f"{rows}x{columns}", launch, moved, torch_reference, (x, y, 1.5), out)


__all__ = ["cases"]
