"""Damage to a driving frame, so that motion cannot carry appearance (METHOD.md section 3)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.frames import degrade
from trainer.recipes.config import Augment

U8 = NDArray[np.uint8]


def augment(rng: np.random.Generator, image: U8, spec: Augment) -> U8:
    """(S, S, 3) uint8 RGB -> the same, moved and damaged as `spec` says.

    Brightness, contrast, saturation, hue, blur, sharpness, noise and JPEG always; perspective,
    elastic and anisotropic distortion and shifts only where `spec` has them.
    """
    if spec.perspective or spec.elastic or spec.anisotropic or spec.shift:
        image = distort(rng, image, spec)
    if spec.light <= 0:
        return image
    if rng.random() < 0.3 * spec.light:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(rng.integers(-8, 9))) % 180
        image = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.uint8)
    if rng.random() < 0.2 * spec.light:
        soft = cv2.GaussianBlur(image, (0, 0), 1.2)
        amount = float(rng.uniform(0.3, 1.2))
        image = np.asarray(cv2.addWeighted(image, 1 + amount, soft, -amount, 0), np.uint8)
    return degrade(rng, image) if rng.random() < spec.light else image


def distort(rng: np.random.Generator, image: U8, spec: Augment) -> U8:
    """One resampling with all geometric distortions; borders are replicated."""
    size = image.shape[0]
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    x, y = np.meshgrid(axis, axis)
    sx, sy = 1 + rng.uniform(-spec.anisotropic, spec.anisotropic, 2)
    tilt_x, tilt_y = rng.uniform(-spec.perspective, spec.perspective, 2) * 4
    depth = 1 + tilt_x * x + tilt_y * y
    dx, dy = rng.uniform(-spec.shift, spec.shift, 2)
    at_x, at_y = x / sx / depth + dx, y / sy / depth + dy
    if spec.elastic:
        coarse = rng.normal(0, spec.elastic, (2, 5, 5)).astype(np.float32)
        wave = [cv2.resize(c, (size, size), interpolation=cv2.INTER_CUBIC) for c in coarse]
        at_x, at_y = at_x + wave[0], at_y + wave[1]
    to_x, to_y = (((m + 0.5) * size - 0.5).astype(np.float32) for m in (at_x, at_y))
    moved = cv2.remap(image, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)
