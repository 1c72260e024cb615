"""The inside of a mouth: two rows of teeth with gums, a tongue, and the dark behind them.

A still with closed lips says nothing about it, so it is made up: arches of anatomical size, drawn
as textures on curved bands. Every person gets teeth of their own (shape, gaps, colour, how much
of them the lips show), in the light that falls on their eyes and cheeks. The upper row is fixed
to the skull, the lower one and the tongue move with the jaw; lips reveal them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.face import GROUPS
from trainer.synthesis.raster import rasterise

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
#: Texels per centimetre of the teeth's textures.
TEXELS = 30
#: Half length of an arch and height of a band in cm.
REACH_CM, TALL_CM = 4.4, 1.7
#: Room above the tips in a texture, for the longest tooth.
TIP_CM = 0.25
#: Mean crown widths and heights in cm from the middle outwards (textbook anatomy).
UPPER = ((0.85, 0.66, 0.77, 0.70, 0.67, 1.0), (1.04, 0.90, 1.02, 0.84, 0.78, 0.75))
LOWER = ((0.53, 0.59, 0.69, 0.70, 0.71, 1.1), (0.88, 0.92, 1.04, 0.86, 0.78, 0.75))
#: Half width and depth in cm of the ellipse an arch lies on.
ARCHES = {"upper": (2.75, 3.6), "lower": (2.55, 3.4)}
_COLUMNS = 27
_FLESH = np.array([0.74, 0.40, 0.39])
_TONGUE = np.array([0.72, 0.40, 0.39])


@dataclass(frozen=True, slots=True)
class Band:
    """A curved strip: points (N, 3) cm in the head's frame, value (N, 3): texel x, y and light,
    triangles, and its texture (H, W, 4): RGB 0..255 and how opaque it is, 0..1.
    """

    points: F64
    value: F32
    triangles: I32
    texture: F32


@dataclass(frozen=True, slots=True)
class Mouth:
    """What lies behind one person's lips; `dark` (3,) is the colour of the depth."""

    upper: Band
    lower: Band
    tongue: Band
    dark: F32


def light_of(source: F32, landmarks: F64) -> F64:
    """Colour (3,) that something white has in this picture, from the eyes' whites and the cheek."""
    spots = []
    for eye, iris in (("eye_left", "iris_left"), ("eye_right", "iris_right")):
        rim, ring = landmarks[GROUPS[eye]], landmarks[GROUPS[iris]]
        shape = np.zeros(source.shape[:2], np.uint8)
        cv2.fillPoly(shape, [np.round(rim).astype(np.int32)], (1,))
        radius = 1.2 * np.linalg.norm(ring[1:] - ring[0], axis=1).mean()
        cv2.circle(shape, tuple(np.round(ring[0]).astype(int)), round(float(radius)), (0,), -1)
        spots.append(source[shape > 0])
    white = np.concatenate(spots)
    corner = landmarks[GROUPS["lips_inner"]][0].astype(int)
    x = np.clip(corner[0] - np.arange(3, 14), 0, len(source) - 1)
    cheek = source[np.clip(corner[1], 0, len(source) - 1), x]
    skin = np.percentile(cheek.mean(1), 80)
    if len(white) < 6:
        base = np.full(3, skin * 1.15)
    else:
        bright = white[white.mean(1) >= np.percentile(white.mean(1), 70)]
        base = bright.mean(0)
    # Half of the eye's tint: small eyes bring skin along.
    base = 0.5 * base + 0.5 * base.mean()
    wanted = np.clip(max(1.08 * base.mean(), 1.02 * skin), 70, 232)
    return np.asarray(base * wanted / base.mean())


def smooth_step(x: NDArray[np.floating], low: float, high: float) -> F64:
    """0 up to `low`, 1 from `high` on, without a corner between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def teeth_texture(
    rng: np.random.Generator, sizes: tuple[tuple[float, ...], tuple[float, ...]], white: F64,
    tooth_rgb: F64, *, lower: bool,
) -> F32:  # fmt: skip
    """Texture (H, W, 4) of a row; y runs from the tips to the gums."""
    count = len(sizes[0])
    long, worn = rng.uniform(0.88, 1.1), rng.uniform(0.02, 0.10)
    crooked = 0.5 * rng.beta(1.2, 3.0)
    gap_cm, gap_dark = rng.uniform(0.008, 0.025), rng.uniform(0.15, 0.5) + 0.1 * lower
    y, x = np.mgrid[0 : round((TALL_CM + TIP_CM) * TEXELS), 0 : round(2 * REACH_CM * TEXELS)]
    s = (x + 0.5) / TEXELS - REACH_CM
    v = (y + 0.5) / TEXELS - TIP_CM
    colour = np.zeros((*s.shape, 3))
    alpha = np.zeros(s.shape)
    # Canines stand out, upper laterals are a little shorter.
    off_line = (2,) if lower else (1, 2)
    gum = _FLESH * rng.uniform([0.9, 0.88, 0.88], [1.06, 1.1, 1.1])
    for side in (-1, 1):
        start = 0.0
        for i in range(count):
            half = sizes[0][i] / 2 * rng.normal(1, 0.03)
            middle = side * (start + half)
            start += 2 * half
            d = (s - middle + crooked * rng.normal(0, 0.04) * v) / half
            # The last one reaches to the band's end.
            reach = half if i < count - 1 else REACH_CM
            mine = (side * s >= start - 2 * half) & (side * s <= start - half + reach)
            off = crooked * rng.normal(0, 0.10) + (-0.06, 0.05)[i == 1] * (i in off_line)
            point = (0.13 if i == 2 else 0.03) * np.abs(d)
            edge = off + point + worn * np.abs(d) ** 4 + 0.02 * i
            tall = sizes[1][i] * long * rng.normal(1, 0.03)
            neck = tall * (1 - 0.16 * d**2 - 0.10 * np.abs(d) ** 6)
            # A crown: round across, greyish and clear at the tip, warmer to the neck.
            bulge = 1 - (0.13 + crooked * 0.1) * np.abs(d) ** 2.5
            tip = 1 - smooth_step(v - edge, 0.0, 0.22)
            warm = smooth_step(v, 0.35 * tall, tall)[..., None] * np.array([0.0, 0.025, 0.07])
            crown = tooth_rgb * rng.normal(1, 0.015 + 0.03 * crooked) - warm
            crown = crown * bulge[..., None] * (1 - tip[..., None] * np.array([0.13, 0.10, 0.07]))
            shine = np.exp(-(((d + 0.25) / 0.3) ** 2) - ((v - 0.45 * tall) / 0.2) ** 2)
            crown += 0.05 * shine[..., None]
            border = (1 - np.abs(d)) * half
            seam = 1 - gap_dark * np.exp(-((border / (gap_cm + 0.01)) ** 2)) * (v < neck)
            crown = crown * seam[..., None] + (1 - seam[..., None]) * 0.12 * _FLESH
            flesh = gum * (1 - 0.25 * np.exp(-(((v - neck) / 0.06) ** 2)))[..., None]
            flesh = flesh * (1 - 0.25 * smooth_step(v, neck.max(), TALL_CM))[..., None]
            top = smooth_step(v - neck, -0.03, 0.03)[..., None]
            # Between the tips of two teeth one sees the dark.
            notch = 0.05 * np.exp(-((border / 0.05) ** 2))
            opaque = smooth_step(v - edge - notch, -0.02, 0.03)
            colour[mine] = ((1 - top) * crown + top * flesh)[mine]
            alpha[mine] = opaque[mine]
    out = np.concatenate([np.clip(colour, 0, 1.05) * white, alpha[..., None]], 2)
    return np.asarray(cv2.GaussianBlur(out.astype(np.float32), (0, 0), 0.6), np.float32)


def depth_light(z: F64) -> F64:
    """How much light reaches teeth at depth z (cm, negative to the back)."""
    return np.asarray(1 - 0.82 * smooth_step(-z, 0.15, 3.0) ** 0.8)


def _grid(rows: int, columns: int) -> I32:
    """Triangles of a regular grid whose rows go down and columns to the image's right."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = (r * columns + c).ravel()
    b, d, e = a + 1, a + columns, a + columns + 1
    return np.concatenate([np.stack([a, d, b], 1), np.stack([b, d, e], 1)]).astype(np.int32)


def _band(texture: F32, front: F64, kind: str, size: float, lean: float) -> Band:
    """Bend a row of teeth around the arch whose middle tips are at `front` (3,) cm."""
    up = 1.0 if kind == "upper" else -1.0
    wide, deep = ARCHES[kind]
    t = np.linspace(-1.35, 1.35, 400)
    x, z = wide * np.sin(t), -deep * (1 - np.cos(t))
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    length -= length[-1] / 2
    s = np.linspace(-REACH_CM, REACH_CM, _COLUMNS) * 0.98
    x, z = np.interp(s, length, x), np.interp(s, length, z)
    # Tips lie on a gentle bowl: the row rises to the back.
    bowl = 0.016 * s**2
    rows = []
    light = depth_light(z)
    for v in (TALL_CM, 0.5 * TALL_CM, -TIP_CM):
        y = up * v + bowl * (1 if up > 0 else 0.6)
        pull = -lean * (v / TALL_CM) ** 2
        rows.append(np.stack([x, y, z + pull], 1) * size + front)
    values = [
        np.stack([(s + REACH_CM) * TEXELS, np.full_like(s, (v + TIP_CM) * TEXELS), light], 1)
        for v in (TALL_CM, 0.5 * TALL_CM, -TIP_CM)
    ]
    if up < 0:
        rows, values = rows[::-1], values[::-1]
    return Band(
        np.concatenate(rows), np.concatenate(values).astype(np.float32),
        _grid(3, _COLUMNS), texture,
    )  # fmt: skip


def _tongue(rng: np.random.Generator, front: F64, white: F64, size: float) -> Band:
    """A hump behind the lower teeth, `front` (3,) cm being the middle of their tips."""
    lift, flat = rng.uniform(-0.05, 0.35), rng.uniform(0.5, 0.8)
    back, side = np.meshgrid(np.linspace(1, 0, 9), np.linspace(-1, 1, 11), indexing="ij")
    x = 2.0 * side * (0.75 + 0.25 * back)
    rise = np.sin(np.pi * np.clip(0.12 + 0.75 * back, 0, 1))
    y = lift - 0.7 + 1.0 * rise - flat * side**2 - 0.12 * np.exp(-((side / 0.12) ** 2))
    z = -0.55 - 3.4 * back + 0.35 * (1 - side**2) * (1 - back)
    points = np.stack([x, y, z], -1).reshape(-1, 3) * size + front
    light = (0.9 - 0.6 * smooth_step(back, 0.0, 0.85)) * (1 - 0.25 * side**2)
    tint = _TONGUE * rng.uniform([0.92, 0.88, 0.88], [1.06, 1.1, 1.1])
    texture = np.ones((16, 16, 4), np.float32)
    texture[..., :3] = tint * white * np.exp(rng.normal(0, 0.03, (16, 16, 1)))
    texture[..., :3] = cv2.GaussianBlur(texture[..., :3], (0, 0), 0.8)
    value = np.stack([(side + 1) * 7.5, back * 15, light], -1).reshape(-1, 3)
    return Band(points, value.astype(np.float32), _grid(9, 11), texture)


def make_mouth(seed: int, source: F32, landmarks: F64, lips: F64) -> Mouth:
    """The mouth of a person: `lips` (20, 3) cm is the inner rim of the closed lips in the head's
    frame, `source` and `landmarks` the still in pixels. Same seed and still, same teeth.
    """
    rng = np.random.default_rng((seed, 0x7EE7))
    white = light_of(source, landmarks)
    # From bleached to smoker's yellow; the mouth lies in some shade.
    yellow = rng.beta(1.5, 2.5)
    tooth = np.array([1.0, 0.97, 0.90]) - yellow * np.array([0.04, 0.08, 0.20])
    tooth = tooth * rng.uniform(0.82, 1.02)
    size = float(np.clip(np.ptp(lips[:, 0]) / 5.0, 0.88, 1.1) * rng.uniform(0.94, 1.06))
    middle = lips[[5, 15]].mean(0)
    behind = rng.uniform(0.35, 0.55)
    # How far the tips stand below the closed upper lip and above the lower one.
    shown, low = rng.uniform(0.2, 0.6), rng.uniform(0.0, 0.4)
    upper_at = middle + np.array([rng.normal(0, 0.04), -shown, -behind])
    lower_at = middle + np.array([rng.normal(0, 0.04), low, -behind - rng.uniform(0.1, 0.3)])
    upper = teeth_texture(rng, UPPER, white, tooth, lower=False)
    lower = teeth_texture(rng, LOWER, white, tooth * 0.95, lower=True)
    return Mouth(
        _band(upper, upper_at, "upper", size, rng.uniform(0.1, 0.4)),
        _band(lower, lower_at, "lower", size, rng.uniform(0.0, 0.3)),
        _tongue(rng, lower_at, white * 0.9, size),
        (white * np.array([0.25, 0.095, 0.09])).astype(np.float32),
    )  # fmt: skip


def draw_band(canvas: F32, band: Band, seen: F64, low: NDArray[np.int_]) -> None:
    """Lay a band over part of a picture (H, W, 3) whose left top corner is at `low` (2,);
    `seen` (N, 3): x, y in the picture's pixels and depth.
    """
    height, width = canvas.shape[:2]
    at, _ = rasterise(seen[:, :2] - low, seen[:, 2], band.triangles, band.value, (height, width))
    found = cv2.remap(
        band.texture, at[..., 0] - 0.5, at[..., 1] - 0.5, cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    alpha = found[..., 3:] * (at[..., 2:] > 0)
    canvas += alpha * (found[..., :3] * at[..., 2:] - canvas)
