"""Cases of `python -m kernels.bench`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kernels.benching import Case, Maker, look, size_of
from kernels.log_mel import BINS, HOP, SESSION, WINDOW, log_mel, session, tables
from kernels.log_mel.reference import torch_reference

FRAMES = 4


def cases(make: Maker) -> Iterator[Case]:
    """One video frame of sound, 4 hops, for every session; any triangles will do."""
    batch = make.sizes.batch
    window = np.hanning(WINDOW).astype(np.float32)
    edges = np.linspace(10, 600, 82)
    bins = np.arange(BINS)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    waves, weights, bands = (make.constant(table) for table in tables(window, filters))
    # All samples come at once, so that torch's windows are slices of them.
    count = WINDOW + (FRAMES - 1) * HOP
    samples = make.uniform(batch, count, low=-0.1, high=0.1).float()
    ring = make.constant(np.zeros((batch, 4096), np.float32))
    # After a window of silence the first frames reach into it: only the last ones are compared.
    first = WINDOW // HOP - 1
    out = make.empty(batch, first + FRAMES, 80)
    rows = [session(look(samples[b]), 0, b, look(ring)) for b in range(batch)]
    table, raw = make.table(rows, SESSION)
    constants = (look(waves), look(weights), look(bands))
    launch = log_mel(table, look(ring), *constants, look(out))
    frames = samples.unfold(1, WINDOW, HOP).contiguous()
    inputs = (frames, make.constant(window), make.constant(filters))
    moved = size_of(samples, waves, out)
    keep = (raw, samples, ring, waves, weights, bands, out)
    shape = f"{batch}x{count}"
    yield Case("log_mel", shape, launch, moved, torch_reference, inputs, out[:, first:], keep, 2e-3)


__all__ = ["cases"]
