"""The generator's own teeth (`models.networks.teeth`): one tidy set of rows, seen from the front.

Drawn once by `synthesis.mouth`, whose arches are bent away here into a flat picture: what
stands further back is darker and narrower.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from models.networks.teeth import ASPECT, COLUMNS, ROWS
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
    teeth_texture,
)

#: Half of the mouth's width at rest.
_HALF_CM = 2.6
#: How far below the line of the closed lips the tips stand.
_TIPS_CM = {"upper": 0.42, "lower": 0.24}
_TOOTH = np.array([0.98, 0.95, 0.90]) * 0.93
_SEED = 5
#: Texels of the picture that are drawn for each that is kept.
_FINE = 2


def teeth_picture() -> Tensor:
    """(2, 4, ROWS, COLUMNS) float32 in [0, 1]: upper and lower row, premultiplied RGB and alpha."""
    rows = [_row("upper", _TOOTH), _row("lower", _TOOTH * 0.93)]
    return torch.from_numpy(np.stack(rows).transpose(0, 3, 1, 2).astype(np.float32).copy())


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
