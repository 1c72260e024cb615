"""From drawing to pixels: the warp keeps the picture as sharp as it was."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from models.composite import compose, warp_source
from models.runtime.engine import Drawing

pytestmark = pytest.mark.unit

SIZE = 128


def picture(size: int) -> NDArray[np.uint8]:
    """Detail at every scale, far from black and white."""
    rng = np.random.default_rng(5)
    total = np.zeros((size, size, 3), np.float32)
    for side in (size // 8, size // 4, size // 2, size):
        total += cv2.resize(rng.normal(0, 10, (side, side, 3)).astype(np.float32), (size, size))
    return np.clip(128 + total, 0, 255).astype(np.uint8)


def shifted(source: NDArray[np.uint8], dx: float, dy: float) -> NDArray[np.uint8]:
    """Everything from the warp, `dx`, `dy` output pixels away."""
    axis = (np.arange(64, dtype=np.float32) + 0.5) / 64
    x, y = np.meshgrid(axis + dx / SIZE, axis + dy / SIZE)
    drawing = Drawing(
        np.stack([x, y], -1).astype(np.float32),
        np.ones((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE, 3), np.float32),
    )  # fmt: skip
    return compose(drawing, source, SIZE)[8:-8, 8:-8]


def detail(image: NDArray[np.uint8]) -> float:
    """Mean Laplacian."""
    return float(np.abs(cv2.Laplacian(image.astype(np.float32), cv2.CV_32F)).mean())


def test_a_warped_picture_is_about_as_sharp_as_its_source() -> None:
    plain = picture(SIZE)
    rng = np.random.default_rng(1)
    offsets = rng.uniform(0, 1, (40, 2))
    sharp = warp_source(plain, SIZE)
    ready, raw = (
        np.mean([detail(shifted(source, *o)) for o in offsets]) for source in (sharp, plain)
    )
    wanted = detail(plain[8:-8, 8:-8])
    assert abs(ready / wanted - 1) < abs(raw / wanted - 1) / 2


def test_the_source_is_resized_and_its_mean_kept() -> None:
    large = picture(2 * SIZE)
    ready = warp_source(large, SIZE)
    assert ready.shape == (SIZE, SIZE, 3)
    assert ready.dtype == np.uint8
    assert ready.mean() == pytest.approx(large.mean(), abs=0.5)


def test_a_source_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        shifted(picture(64), 0, 0)
