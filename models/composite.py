"""From the generator's drawing to pixels at any output size.

`out = mask * warp(source, flow) + (1 - mask) * rgb`: what the warp can show comes from the
source picture's own pixels at full resolution; only mouth, lids and what comes into view
are drawn. Runs on the render worker's thread.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from models.runtime.engine import Drawing

#: Bilinear sampling at a random offset passes 1 - (1 - cos w) / 3 of a detail's power at the
#: angular frequency w, on average. A source sharpened by this much before it is warped comes
#: out as sharp as it was (faces of bundled portraits: .78 of their Laplacian without, .95 with).
SHARPENING = 0.14


def warp_source(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A canonical crop (N, N, 3) uint8 RGB at the output's size, sharpened for `compose`.

    Once per portrait and size, never per frame.
    """
    if len(image) != size:
        method = cv2.INTER_AREA if size < len(image) else cv2.INTER_CUBIC
        image = np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)
    kernel = np.array([-SHARPENING, 1 + 2 * SHARPENING, -SHARPENING], np.float32)
    sharp = cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(sharp, np.uint8)


def compose(drawing: Drawing, source: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Draw one frame (size, size, 3) uint8 RGB; `source` is `warp_source` of the canonical crop.

    A source of another size is an error, so that nobody resizes it 25 times a second.
    """
    if source.shape != (size, size, 3):
        raise ValueError(f"source must be ({size}, {size}, 3), got {source.shape}")
    # Flow is in [0, 1]; a pixel's centre lies at +0.5. Scaled before it grows: 16 times fewer.
    coarse = drawing.flow * np.float32(size) - np.float32(0.5)
    positions = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
    warped = cv2.remap(source, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    # Saturating, to the nearest; nothing is negative.
    mask, drawn = drawing.mask, cv2.convertScaleAbs(drawing.rgb, alpha=255)
    if size != mask.shape[0]:
        mask = np.asarray(cv2.resize(mask, (size, size), interpolation=cv2.INTER_LINEAR))
        drawn = np.asarray(cv2.resize(drawn, (size, size), interpolation=cv2.INTER_CUBIC))
    return np.asarray(cv2.blendLinear(warped, drawn, mask, 1 - mask), np.uint8)
