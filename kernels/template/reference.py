"""`out = a * x + y` in numpy, and in torch for the benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def axpy(x: NDArray[Any], y: NDArray[Any], a: float) -> NDArray[np.float64]:
    """(rows, columns) each -> (rows, columns) float64."""
    return np.float64(a) * x.astype(np.float64) + y.astype(np.float64)


def torch_reference(x: Any, y: Any, a: float) -> Any:
    """The same on torch tensors of any type."""
    return a * x + y


__all__ = ["axpy", "torch_reference"]
