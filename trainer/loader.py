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
    part: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, Tensor]]:
    """Endless batches of `make(rng)`; sample j of batch i depends on (seed, i, j) only.

    So runs can resume, and process k of n (`part` = (k, n)) makes just its own share of the same
    batch, `size` / n samples.

    Raises:
        ValueError: `size` does not divide by the number of processes.
    """
    mine, parts = part
    if size % parts:
        raise ValueError(f"a batch of {size} does not divide into {parts} equal parts")
    share = range(mine * size // parts, (mine + 1) * size // parts)

    def one(index: int) -> dict[str, Tensor]:
        samples = [make(np.random.default_rng((seed, index, j))) for j in share]
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
