"""Cases of `python -m kernels.bench`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.benching import Case, Maker, look, size_of
from kernels.window_mean import SESSION, window_mean
from kernels.window_mean.reference import torch_reference


def cases(make: Maker) -> Iterator[Case]:
    """Full rings of the live window: 7 codes of 30 numbers."""
    batch, length, dim = make.sizes.batch, 7, 30
    past = make.uniform(batch, length, dim).float()
    ring, theirs = past.clone(), past.clone()
    pushed = make.constant(np.full(batch, length, np.int32))
    code, mean = make.uniform(batch, dim), make.empty(batch, dim)
    table, raw = make.table([(slot, 0) for slot in range(batch)], SESSION)
    counts = look(pushed)
    counts = type(counts)(counts.pointer, counts.shape, counts.strides, np.dtype(np.uint32))
    launch = window_mean(table, look(code), look(mean), look(ring), counts)
    slots = make.constant(np.arange(batch))
    place, full = make.constant(np.zeros(batch, np.int64)), make.constant(np.full(batch, 7.0))
    inputs = (theirs, slots, place, code, full.float())
    moved = size_of(ring, code, code, mean)
    shape = f"{batch}x{length}x{dim}"
    keep = (raw, ring, pushed)
    yield Case("window_mean", shape, launch, moved, torch_reference, inputs, mean, keep, 2e-3)


__all__ = ["cases"]
