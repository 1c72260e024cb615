"""Brushes of `trainer.portrait_art`: splines, soft masks and a canvas painted back to front.

Points are in units of the picture, [0, 1], x right, y down; widths and softness are in
pixels of the final picture. Masks are (SIDE, SIDE) float32 in [0, 1].
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 512
SCALE = 3
SIDE = SIZE * SCALE
F32 = NDArray[np.float32]
Colour = tuple[float, float, float]


def spline(points: F32, closed: bool = True, steps: int = 14) -> F32:
    """Catmull-Rom curve through (n, 2) points -> (m, 2)."""
    p = np.asarray(points, np.float32)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False, dtype=np.float32)[:, None]
    parts = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        parts.append(
            0.5
            * (
                2 * b
                + (c - a) * t
                + (2 * a - 5 * b + 4 * c - d) * t**2
                + (3 * b - a - 3 * c + d) * t**3
            )
        )
    return np.concatenate(parts if closed else [*parts, p[-2:-1]]).astype(np.float32)


def blur(image: F32, px: float) -> F32:
    """Gaussian of `px` final pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), px * SCALE), np.float32)


def fill(points: F32, smooth: bool = True, soft: float = 0.0) -> F32:
    """(SIDE, SIDE) mask of a closed curve through points in [0, 1]."""
    curve = spline(points) if smooth else points
    mask = np.zeros((SIDE, SIDE), np.float32)
    cv2.fillPoly(mask, [np.round(curve * SIDE * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    return blur(mask, soft) if soft else mask


def ribbon(points: F32, width: F32 | float) -> F32:
    """Outline of an open curve; `width` in final pixels, one number or one per point (tapered)."""
    curve = spline(points, closed=False)
    along, at = np.linspace(0, 1, len(curve)), np.linspace(0, 1, np.size(width))
    half = np.interp(along, at, np.atleast_1d(width)) / SIZE / 2
    tangent = np.gradient(curve, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], -1)
    normal *= half[:, None] / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9)
    return np.concatenate([curve + normal, (curve - normal)[::-1]]).astype(np.float32)


def stroke(points: F32, width: F32 | float, soft: float = 0.0) -> F32:
    """Mask of an open curve, see `ribbon`."""
    return fill(ribbon(points, width), smooth=False, soft=soft)


def scratch(mask: F32, points: F32, width: F32 | float, value: float) -> None:
    """Draw one more stroke of strength `value` into `mask`."""
    outline = np.round(ribbon(points, width) * SIDE * 16).astype(np.int32)
    cv2.fillPoly(mask, [outline], value, cv2.LINE_AA, 4)


def disc(centre: F32, radius: float, soft: float = 0.0) -> F32:
    """Mask of a circle; radius in units of the picture."""
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
    distance = np.hypot(axis[None, :] - centre[0], axis[:, None] - centre[1])
    edge = max(soft, 0.6) / SIZE
    return np.asarray(np.clip((radius - distance) / edge + 0.5, 0, 1), np.float32)


class Canvas:
    """(SIDE, SIDE, 3) float32 RGB 0..255, painted from back to front."""

    def __init__(self, top: Colour, bottom: Colour) -> None:
        axis = np.linspace(0, 1, SIDE, dtype=np.float32)
        glow = np.exp(-(((axis[None, :] - 0.5) / 0.55) ** 2) - ((axis[:, None] - 0.42) / 0.5) ** 2)
        ramp = axis[:, None, None]
        self.rgb: F32 = (np.array(top) * (1 - ramp) + np.array(bottom) * ramp).astype(np.float32)
        self.rgb = self.rgb + glow[..., None].astype(np.float32) * 18
        self.rgb = np.broadcast_to(self.rgb, (SIDE, SIDE, 3)).astype(np.float32)

    def paint(self, mask: F32, colour: Colour, opacity: float = 1.0) -> None:
        """Cover with one colour."""
        weight = (mask * opacity)[..., None]
        self.rgb += (np.array(colour, np.float32) - self.rgb) * weight

    def multiply(self, mask: F32, colour: Colour, opacity: float = 1.0) -> None:
        """Darken towards `colour`, as a glaze."""
        weight = (mask * opacity)[..., None]
        self.rgb *= 1 + (np.array(colour, np.float32) / 255 - 1) * weight

    def screen(self, mask: F32, opacity: float, colour: Colour = (255, 255, 255)) -> None:
        """Lighten towards `colour`."""
        weight = (mask * opacity)[..., None]
        self.rgb += (255 - self.rgb) * (np.array(colour, np.float32) / 255) * weight


def dim(colour: Colour, factor: float) -> Colour:
    """The colour times a factor, at most white."""
    r, g, b = colour
    return (min(255.0, r * factor), min(255.0, g * factor), min(255.0, b * factor))


def arc(*pairs: tuple[float, float]) -> F32:
    """Points as an (n, 2) array."""
    return np.array(pairs, np.float32)


def xy(x: float, y: float) -> F32:
    """One point or offset, (2,)."""
    return np.array([x, y], np.float32)


def mirror(points: F32) -> F32:
    """Points reflected at the picture's vertical axis, in reverse order."""
    return (points * np.array([-1, 1], np.float32) + np.array([1, 0], np.float32))[::-1]
