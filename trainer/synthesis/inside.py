"""The generator's own mouth (`models.networks.mouth`): teeth, tongue and dark, from the front.

Teeth are drawn once by `synthesis.mouth`, whose arches are bent away here into a flat picture:
what stands further back is darker and narrower.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from models.networks.mouth import ASPECT, COLUMNS, PICTURES, ROWS
from trainer.synthesis.mouth import (
    ARCHES,
    F32,
    F64,
    LOWER,
    REACH_CM,
    TEXELS,
    TIP_CM,
    UPPER,
    depth_light,
    smooth_step,
    teeth_texture,
)

#: Half of the mouth's width at rest.
_HALF_CM = 2.6
#: How far below the line of the closed lips the tips stand.
_TIPS_CM = {"upper": 0.42, "lower": 0.24}
_TOOTH = np.array([0.98, 0.95, 0.90]) * 0.93
#: How far below that line the middle of the tongue's back is, for a jaw that is up.
_TONGUE_CM = -0.45
_TONGUE, _DARK = np.array([0.47, 0.22, 0.21]), np.array([0.13, 0.06, 0.055])
_SEED = 5
#: Texels of the picture that are drawn for each that is kept.
_FINE = 2


def mouth_pictures() -> Tensor:
    """(3, 4, ROWS, COLUMNS) float32 in [0, 1]: premultiplied RGB and alpha of each picture."""
    drawn = {
        "upper": _row("upper", _TOOTH), "lower": _row("lower", _TOOTH * 0.93), "behind": _behind()
    }  # fmt: skip
    stack = np.stack([drawn[name] for name in PICTURES])
    return torch.from_numpy(stack.transpose(0, 3, 1, 2).astype(np.float32).copy())


def _behind() -> F32:
    """A tongue that rises out of the dark behind the lower teeth; opaque everywhere."""
    x, down = np.meshgrid(_axis(COLUMNS) * _HALF_CM, _axis(ROWS) * ASPECT * _HALF_CM)
    # How far below the tongue's back, which bends down to the sides and is grooved.
    below = down - _TONGUE_CM - 0.30 * x**2 - 0.07 * np.exp(-((x / 0.22) ** 2))
    share = smooth_step(below, -0.3, 0.5)[..., None]
    # The throat swallows the light, a little is left towards the cheeks' flesh.
    lit = 0.35 + 0.65 * smooth_step(below, -0.1, 0.9)[..., None]
    rgb = _DARK + share * (_TONGUE * lit - _DARK)
    rgb = np.concatenate([rgb, np.ones_like(share)], 2).astype(np.float32)
    return np.asarray(cv2.resize(rgb, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA), np.float32)


def _row(kind: str, tooth: F64) -> F32:
    lower = kind == "lower"
    rng = np.random.default_rng(_SEED)
    texture = teeth_texture(rng, LOWER if lower else UPPER, np.ones(3), tooth, lower=lower)
    texture[..., :3] *= texture[..., 3:]
    wide, deep = ARCHES[kind]
    x = _axis(COLUMNS) * _HALF_CM
    down = _axis(ROWS) * ASPECT * _HALF_CM - _TIPS_CM[kind]
    # From where a place is seen to where it lies along the arch.
    angles = np.linspace(-1.35, 1.35, 800)
    path = np.hypot(wide * np.gradient(np.sin(angles)), deep * np.gradient(np.cos(angles)))
    along = np.cumsum(path) - path.sum() / 2
    seen = np.arcsin(np.clip(x / wide, -0.98, 0.98))
    columns = (np.interp(seen, angles, along) + REACH_CM) * TEXELS
    lines = ((down if lower else -down) + TIP_CM) * TEXELS
    at_x, at_y = np.meshgrid(columns.astype(np.float32), lines.astype(np.float32))
    flat = cv2.remap(
        texture, at_x - 0.5, at_y - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    flat[..., :3] *= depth_light(-deep * (1 - np.cos(seen)))[None, :, None].astype(np.float32)
    return np.asarray(cv2.resize(flat, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA), np.float32)


def _axis(count: int) -> F64:
    """Centres of `count` fine cells, from -1 to 1."""
    return np.asarray((np.arange(_FINE * count) + 0.5) / (_FINE * count / 2) - 1, np.float64)
