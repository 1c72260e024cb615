"""Batches prepared ahead by threads: OpenCV releases the interpreter lock while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Sample = dict[str, NDArray[np.float32] | NDArray[np.uint8]]
#: What a stage's `sampler` returns: one augmented sample per call, by this generator alone.
Make = Callable[[np.random.Generator], Sample]


def batches(
    make: Make,
    *,
    size: int,
    seed: int,
    start: int = 0,
    ahead: int = 4,
    threads: int = 2,
) -> Iterator[dict[str, Tensor]]:
    """Endless batches of `make(rng)`; batch i depends on (seed, i) only, so runs can resume."""

    def one(index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, index))
        samples = [make(rng) for _ in range(size)]
        return {k: torch.from_numpy(np.stack([s[k] for s in samples])) for k in samples[0]}

    with ThreadPoolExecutor(threads) as pool:
        pending: list[Future[dict[str, Tensor]]] = [
            pool.submit(one, start + i) for i in range(ahead)
        ]
        index = start + ahead
        while True:
            batch = pending.pop(0).result()
            pending.append(pool.submit(one, index))
            index += 1
            yield batch


def to_unit(pixels_BHWC: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [0, 1]."""
    return pixels_BHWC.permute(0, 3, 1, 2).float() / 255
