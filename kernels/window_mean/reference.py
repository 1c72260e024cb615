"""Trailing means in numpy, and in torch for the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def window_means(codes: NDArray[Any], length: int) -> NDArray[np.float64]:
    """All codes of one session since its reset (n, dim) -> their trailing means (n, dim)."""
    rows = [codes[max(0, i + 1 - length) : i + 1] for i in range(len(codes))]
    return np.stack([row.astype(np.float64).mean(0) for row in rows])


def torch_reference(ring: Any, slots: Any, place: Any, code: Any, count: Any) -> Any:
    """Full or filling rings (S, L, D), `slots`, `place`, `count` (B,), `code` (B, D)."""
    ring[slots, place] = code.float()
    return (ring[slots].sum(1) / count[:, None]).to(code.dtype)


__all__ = ["torch_reference", "window_means"]
