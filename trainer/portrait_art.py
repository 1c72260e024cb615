"""Draw characters: faces that no photograph went into.

Only the proportions are measured: a character is drawn over the mean of 152 landmarks, so
its eyes, brows and lips are where a face has them. Everything else is splines, fills and
soft shading, drawn at three times the final size and reduced.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.face import GROUPS
from trainer.paint import (
    F32,
    SIDE,
    SIZE,
    Canvas,
    Colour,
    arc,
    blur,
    dim,
    disc,
    fill,
    mirror,
    scratch,
    spline,
    stroke,
    xy,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """Colours (RGB, 0..255) and traits of one character."""

    skin: Colour
    skin_shade: Colour
    blush: Colour
    lip: Colour
    iris: Colour
    hair: Colour
    hair_light: Colour
    hair_dark: Colour
    cloth: Colour
    cloth_shade: Colour
    back_top: Colour
    back_bottom: Colour
    lashes: float = 1.0
    freckles: int = 0
    stubble: float = 0.0
    style: str = "bob"


def _body(c: Canvas, look: Look, lm: F32) -> None:
    """Neck, shoulders and collar."""
    chin = lm[18, 1]
    half = 0.118 if look.style == "bob" else 0.15
    neck = arc(
        (0.5 - half, chin - 0.13),
        (0.5 - half, chin + 0.03),
        (0.5 - half - 0.045, 0.99),
        (0.5, 1.12),
    )
    neck_mask = fill(np.concatenate([neck, mirror(neck)]))
    c.paint(neck_mask, look.skin)
    c.multiply(
        neck_mask * blur(fill(lm[GROUPS["oval"]] + xy(0.012, 0.045)), 9), look.skin_shade, 0.95
    )
    c.multiply(neck_mask * (1 - blur(neck_mask, 16)), look.skin_shade, 0.9)
    collar = arc(
        (0.5 - half - 0.028, chin + 0.075), (0.5 - half * 0.6, chin + 0.118), (0.5, chin + 0.134)
    )
    collar = np.concatenate([collar, mirror(collar)[1:]])
    shoulder = arc(
        (0.5 - half - 0.075, chin + 0.083), (0.2, chin + 0.115), (0.07, chin + 0.16), (-0.05, 1.2)
    )
    cloth = np.concatenate([collar, mirror(shoulder)[::-1], shoulder[::-1]])
    mask = fill(cloth)
    c.paint(mask, look.cloth)
    c.multiply(mask * (1 - blur(mask, 14)), look.cloth_shade, 0.8)
    c.multiply(stroke(collar + xy(0, 0.024), 4.0, 1.6) * mask, look.cloth_shade, 0.7)
    c.screen(stroke(collar + xy(0, 0.011), 4.0, 1.5) * mask, 0.2)


def _ear(c: Canvas, look: Look, lm: F32, side: int) -> None:
    edge = lm[29] if side < 0 else lm[7]
    x = edge[0] + side * 0.004
    y0, y1 = lm[GROUPS["brow_left"], 1].mean() + 0.025, lm[104, 1] + 0.035
    h = y1 - y0
    out = arc(
        (x - side * 0.03, y0 + 0.1 * h),
        (x + side * 0.022, y0),
        (x + side * 0.046, y0 + 0.22 * h),
        (x + side * 0.036, y0 + 0.6 * h),
        (x + side * 0.014, y1),
        (x - side * 0.02, y1 - 0.06 * h),
    )
    mask = fill(out)
    c.paint(mask, look.skin)
    c.multiply(mask * (1 - blur(mask, 5)), look.skin_shade, 0.8)
    inner = arc(
        (x + side * 0.008, y0 + 0.2 * h),
        (x + side * 0.03, y0 + 0.24 * h),
        (x + side * 0.022, y0 + 0.55 * h),
        (x + side * 0.006, y0 + 0.75 * h),
    )
    c.multiply(stroke(inner, np.array([1, 4, 5, 2.0]), 2.0) * mask, look.skin_shade, 0.9)


def _head(c: Canvas, look: Look, lm: F32) -> F32:
    """Skull and face with their shading; returns the mask of the face."""
    oval = lm[GROUPS["oval"]].copy()
    temple = lm[GROUPS["brow_left"], 1].min() + 0.02
    crown = oval[:, 1] < temple
    oval[crown, 1] -= (temple - oval[crown, 1]) * 0.9
    mask = fill(oval)
    c.paint(mask, look.skin)
    rim = mask * (1 - blur(mask, 26))
    c.multiply(rim, look.skin_shade, 0.85)
    right = mask * blur(fill(oval + xy(0.2, 0.05)), 34)
    c.multiply(right, look.skin_shade, 0.42)
    brow = lm[GROUPS["brow_left"]].mean(0), lm[GROUPS["brow_right"]].mean(0)
    for place in brow:
        socket = disc(place + xy(0, 0.045), 0.05)
        c.multiply(blur(socket, 10) * mask, look.skin_shade, 0.5)
    for eye, sign in ((lm[56:72].mean(0), -1), (lm[72:88].mean(0), 1)):
        cheek = eye + xy(sign * 0.032, 0.115)
        c.multiply(blur(disc(cheek, 0.05), 17) * mask, look.blush, 0.5)
        c.screen(blur(disc(eye + xy(sign * 0.02, 0.075), 0.03), 9) * mask, 0.16, (255, 235, 215))
    c.screen(blur(disc(arc((0.47, 0.3))[0], 0.09), 24) * mask, 0.2, (255, 238, 220))
    chin = lm[18] - xy(0, 0.045)
    c.screen(blur(disc(chin, 0.025), 8) * mask, 0.16, (255, 235, 215))
    c.multiply(blur(disc(lm[117] + xy(0, 0.022), 0.02), 6) * mask, look.skin_shade, 0.32)
    if look.stubble:
        jaw = lm[GROUPS["oval"]][5:32]
        inside = lm[18] + (jaw - lm[18]) * xy(0.66, 0.62) - xy(0, 0.1)
        beard = blur(fill(np.concatenate([jaw, inside[::-1]]), smooth=False), 10)
        lips = blur(fill(lm[GROUPS["lips_outer"]]), 2)
        lip, above = lm[[112, 131, 129, 127, 125, 123, 122]], lm[[122, 127, 112]]
        strip = np.concatenate([lip - xy(0, 0.006), above - xy(0, 0.036)])
        moustache = blur(fill(strip, smooth=False), 5)
        rng = np.random.default_rng(4)
        grain = blur(rng.random((SIDE, SIDE), dtype=np.float32), 0.6)
        grain = np.clip((grain - grain.mean()) / grain.std() * 0.13 + 0.8, 0.4, 1).astype(
            np.float32
        )
        area = np.clip(np.maximum(beard, moustache * 0.85) - lips, 0, 1) * mask
        c.multiply(area * grain, look.hair, look.stubble)
    return mask


def _nose(c: Canvas, look: Look, lm: F32) -> None:
    bridge, tip, base = lm[98], lm[103], lm[105]
    left, right = lm[110], lm[111]
    side = arc(
        (bridge[0] + 0.018, bridge[1]),
        (tip[0] + 0.021, (bridge[1] + tip[1]) / 2),
        (right[0] - 0.008, tip[1] + 0.004),
    )
    c.multiply(stroke(side, np.array([3, 9, 15.0]), 6.5), look.skin_shade, 0.55)
    c.multiply(stroke(mirror(side)[::-1], np.array([2, 5, 9.0]), 6.0), look.skin_shade, 0.3)
    c.screen(
        stroke(
            arc((bridge[0] - 0.004, bridge[1]), (tip[0] - 0.004, tip[1])), np.array([5, 9.0]), 4.0
        ),
        0.26,
        (255, 240, 225),
    )
    c.screen(blur(disc(tip + xy(-0.006, -0.002), 0.011), 3), 0.4, (255, 245, 235))
    under = arc(
        (left[0] + 0.004, left[1] + 0.008),
        (base[0] - 0.02, base[1] + 0.004),
        (base[0], base[1] + 0.009),
        (base[0] + 0.02, base[1] + 0.004),
        (right[0] - 0.004, right[1] + 0.008),
    )
    c.multiply(stroke(under, np.array([2, 6, 6, 6, 2.0]), 3.2), look.skin_shade, 0.95)
    for wing, sign in ((left, -1), (right, 1)):
        curl = arc(
            (wing[0] + sign * 0.001, wing[1] - 0.022),
            (wing[0] + sign * 0.009, wing[1] - 0.004),
            (wing[0] - sign * 0.002, wing[1] + 0.011),
        )
        c.multiply(stroke(curl, np.array([0.8, 2.6, 1.0]), 1.1), look.skin_shade, 0.95)
        hole = arc(
            (base[0] + sign * 0.012, base[1] + 0.001),
            (base[0] + sign * 0.024, base[1] - 0.003),
            (base[0] + sign * 0.034, base[1] + 0.002),
            (base[0] + sign * 0.022, base[1] + 0.005),
        )
        c.multiply(fill(hole, soft=0.9), dim(look.skin_shade, 0.45), 0.85)


def _mouth(c: Canvas, look: Look, lm: F32) -> None:
    outer, inner = lm[GROUPS["lips_outer"]], lm[GROUPS["lips_inner"]]
    line = (inner[[0, *range(1, 10), 10]] + inner[[0, *range(19, 10, -1), 10]]) / 2
    upper = np.concatenate([outer[:1], line, outer[10:11], outer[11:]])
    lower = np.concatenate([outer[:11], line[::-1]])
    both = fill(outer, soft=0.8)
    c.multiply(blur(both, 4), look.skin_shade, 0.25)
    c.paint(both, look.lip, 0.92)
    c.multiply(fill(upper, smooth=False, soft=1.2) * both, (226, 196, 200), 0.8)
    c.multiply(both * (1 - blur(both, 5)), (222, 190, 190), 0.55)
    shine = (lower.mean(0) + xy(-0.008, 0.004)).astype(np.float32)
    glow = stroke(
        arc(
            (shine[0] - 0.03, shine[1] - 0.001),
            (shine[0], shine[1] + 0.003),
            (shine[0] + 0.034, shine[1] - 0.001),
        ),
        np.array([1, 5, 1.0]),
        2.2,
    )
    c.screen(glow * both, 0.42)
    ends = np.concatenate(
        [
            outer[:1] - np.array([[0.003, -0.001]], np.float32),
            line,
            outer[10:11] + np.array([[0.003, 0.001]], np.float32),
        ]
    )
    dark = dim(look.lip, 0.36)
    c.paint(stroke(ends, np.array([0.8, 2.2, 2.6, 2.2, 0.8]), 0.5), dark, 0.9)
    for corner, sign in ((outer[0], -1), (outer[10], 1)):
        c.multiply(blur(disc(corner + xy(sign * 0.004, 0.001), 0.007), 2.4), look.skin_shade, 0.8)


def _eye(c: Canvas, look: Look, contour: F32, sign: int) -> None:
    """One eye; `contour` (16, 2) outer corner, lower lid, inner corner, upper lid."""
    centre = contour.mean(0)
    big = centre + (contour - centre) * xy(1.12, 1.36)
    mask = fill(big, soft=0.4)
    width = float(np.linalg.norm(big[0] - big[8]))
    c.paint(mask, (244, 241, 240))
    iris = centre + xy(0.0, -0.001)
    r = width * 0.245
    ring = disc(iris, r) * mask
    c.paint(ring, dim(look.iris, 0.42))
    c.paint(disc(iris, r * 0.9, 2.5) * mask, look.iris)
    c.screen(blur(disc(iris + xy(0, r * 0.42), r * 0.5), 2.4) * ring, 0.5, (255, 240, 200))
    c.paint(disc(iris, r * 0.43, 1.4) * mask, (18, 14, 18))
    lid = big[[8, *range(9, 16), 0]]
    c.multiply(stroke(lid + xy(0, 0.012), 13.0, 3.5) * mask, (120, 105, 125), 0.75)
    for corner in (big[0], big[8]):
        c.multiply(blur(disc(corner, width * 0.12), 2.5) * mask, (210, 180, 180), 0.6)
    c.paint(disc(iris + xy(-r * 0.34, -r * 0.36), r * 0.23, 0.9) * mask, (255, 255, 255), 0.96)
    c.paint(disc(iris + xy(r * 0.36, r * 0.36), r * 0.1, 1.2) * mask, (255, 255, 255), 0.55)
    ink = dim(look.hair_dark, 0.45)
    tail = big[0] + xy(sign * 0.011, -0.006) * look.lashes
    edge = np.concatenate([big[8:9], lid[1:-1], tail[None]])
    thick = np.array([0.8, 2.0, 3.0, 3.6, 0.6], np.float32) * np.float32(0.6 + 0.5 * look.lashes)
    c.paint(stroke(edge, thick, 0.45), ink)
    low = big[[0, *range(1, 8), 8]]
    c.multiply(stroke(low + xy(0, 0.001), np.array([1.8, 1.4, 0.7]), 0.7), look.skin_shade, 0.95)
    crease = lid[1:-1] + xy(sign * 0.002, -0.0165)
    c.multiply(stroke(crease, np.array([0.5, 2.0, 2.2, 0.8]), 1.1), look.skin_shade, 1.0)
    c.multiply(
        stroke(low[1:-1] + xy(0, 0.018), np.array([0.5, 3, 0.5]), 2.5), look.skin_shade, 0.45
    )


def _brow(c: Canvas, look: Look, points: F32, sign: int) -> None:
    """One brow; `points` (10, 2): upper then lower edge, both from the outer end inwards."""
    middle = np.asarray((points[:5] + points[5:]) / 2 - xy(0, 0.004), np.float32)
    middle[0] += xy(sign * 0.004, 0.006)
    thick = np.array([0.8, 5.5, 8.0, 8.5, 5.5], np.float32) * (0.95 if look.lashes >= 1 else 1.25)
    c.paint(stroke(middle, thick, 1.5), look.hair_dark, 0.72)
    curve = spline(middle, closed=False)
    widths = np.interp(np.linspace(0, 1, len(curve)), np.linspace(0, 1, 5), thick) / SIZE
    rng = np.random.default_rng(8)
    hairs = np.zeros((SIDE, SIDE), np.float32)
    for k in range(1, len(curve) - 1):
        for _ in range(2):
            down = np.array([sign * 0.001, rng.uniform(0.1, 0.5) * widths[k]])
            up = np.array(
                [sign * (0.002 + 0.006 * (1 - k / len(curve))), -rng.uniform(0.45, 0.7) * widths[k]]
            )
            hair = np.stack([curve[k] + down, curve[k] + up]).astype(np.float32)
            scratch(hairs, hair, xy(1.1, 0.3), rng.uniform(0.4, 1))
    c.paint(blur(hairs, 0.3), look.hair_dark, 0.6)


def _strands(c: Canvas, look: Look, mask: F32, locks: list[F32], count: int, seed: int) -> None:
    """Light and dark strands between neighbouring guide curves, clipped to the hair's mask."""
    rng = np.random.default_rng(seed)
    dark, light = np.zeros_like(mask), np.zeros_like(mask)
    guides = [spline(lock, closed=False) for lock in locks]
    for _ in range(count):
        k = rng.integers(len(guides) - 1)
        a, b = guides[k], guides[k + 1]
        n = min(len(a), len(b))
        t = rng.random()
        curve = a[:n] * (1 - t) + b[:n] * t + rng.normal(0, 0.0012, (1, 2))
        lo, hi = sorted(rng.integers(0, n, 2))
        if hi - lo < n // 3:
            lo, hi = 0, n - 1
        target = light if rng.random() < 0.5 else dark
        width = np.array([0.2, rng.uniform(0.8, 2.6), 0.2], np.float32)
        scratch(target, curve[lo : hi + 1 : 4].astype(np.float32), width, rng.uniform(0.3, 1))
    c.paint(blur(dark, 0.5) * mask, look.hair_dark, 0.55)
    c.paint(blur(light, 0.5) * mask, look.hair_light, 0.5)


def _hair_body(c: Canvas, look: Look, shape: F32, shadow_on: F32 | None = None) -> F32:
    mask = fill(shape)
    if shadow_on is not None:
        drop = blur(fill(shape + xy(0.006, 0.016)), 6)
        c.multiply(np.clip(drop - mask, 0, 1) * shadow_on, look.skin_shade, 0.95)
    c.paint(mask, look.hair)
    c.multiply(mask * (1 - blur(mask, 14)), dim(look.hair_dark, 1.25), 0.8)
    return mask


def _bob(c: Canvas, look: Look, lm: F32, face: F32) -> None:
    """Front of a shoulder-length bob parted at the image left, falling to both sides."""
    top, part = 0.035, 0.435
    right = arc(
        (part, 0.155), (0.50, 0.195), (0.60, 0.255), (0.69, 0.335), (0.745, 0.42),
        (0.742, 0.58), (0.75, 0.74), (0.725, 0.845), (0.79, 0.83), (0.855, 0.74), (0.862, 0.55),
        (0.845, 0.36), (0.77, 0.17), (0.65, 0.065), (0.53, top), (0.45, 0.05),
    )  # fmt: skip
    left = arc(
        (part, 0.155), (0.385, 0.20), (0.325, 0.265), (0.282, 0.355), (0.258, 0.47),
        (0.262, 0.62), (0.25, 0.75), (0.275, 0.845), (0.2, 0.825), (0.142, 0.73), (0.14, 0.54),
        (0.16, 0.36), (0.235, 0.17), (0.34, 0.07), (0.44, 0.048),
    )  # fmt: skip
    for shape, locks, seed in (
        (left, [left[[0, 1, 2, 3, 4, 5, 6, 7]], left[[14, 13, 12, 11, 10, 9, 8, 8]]], 3),
        (right, [right[[0, 1, 2, 3, 4, 5, 6, 7]], right[[15, 13, 12, 11, 10, 9, 8, 8]]], 5),
    ):
        mask = _hair_body(c, look, shape, face)
        _strands(c, look, mask, locks, 150, seed)
        shine = stroke(
            locks[0][1:5] * 0.5 + locks[1][1:5] * 0.5 + xy(0, -0.01), np.array([8, 26, 30, 6.0]), 9
        )
        c.screen(shine * mask, 0.2, look.hair_light)


def _swept(c: Canvas, look: Look, lm: F32, face: F32) -> None:
    """Short sides and a swept quiff."""
    for sign in (-1, 1):
        edge = lm[27] if sign < 0 else lm[9]
        x = float(edge[0])
        side = arc(
            (x + sign * 0.004, 0.475), (x - sign * 0.018, 0.42), (x - sign * 0.026, 0.33),
            (x - sign * 0.06, 0.24), (0.5 - sign * -0.1, 0.1), (x + sign * 0.0, 0.15),
            (x + sign * 0.035, 0.25), (x + sign * 0.03, 0.4),
        )  # fmt: skip
        mask = _hair_body(c, look, side, face)
        c.multiply(mask, (205, 195, 195), 0.55)
    quiff = arc(
        (0.262, 0.295), (0.33, 0.232), (0.43, 0.208), (0.54, 0.222), (0.63, 0.218),
        (0.70, 0.242), (0.742, 0.305), (0.772, 0.21), (0.765, 0.115), (0.70, 0.04), (0.59, 0.0),
        (0.46, -0.012), (0.345, 0.02), (0.262, 0.09), (0.232, 0.18),
    )  # fmt: skip
    mask = _hair_body(c, look, quiff, face)
    locks = [
        arc((0.25, 0.27), (0.33, 0.222), (0.45, 0.202), (0.58, 0.214), (0.74, 0.295)),
        arc((0.245, 0.22), (0.32, 0.12), (0.45, 0.085), (0.6, 0.10), (0.76, 0.22)),
        arc((0.245, 0.18), (0.31, 0.06), (0.45, 0.03), (0.6, 0.05), (0.765, 0.17)),
        arc((0.24, 0.16), (0.32, 0.02), (0.45, -0.02), (0.6, 0.0), (0.76, 0.11)),
    ]
    _strands(c, look, mask, locks, 240, 7)
    c.screen(stroke(locks[1], np.array([4, 22, 30, 20, 3.0]), 9) * mask, 0.26, look.hair_light)


def draw(lm: F32, look: Look) -> NDArray[np.uint8]:
    """(152, 2) landmarks of a canonical crop -> (512, 512, 3) uint8 RGB character."""
    c = Canvas(look.back_top, look.back_bottom)
    if look.style == "bob":
        back = arc(
            (0.5, 0.05), (0.25, 0.13), (0.155, 0.38), (0.15, 0.7), (0.215, 0.835), (0.33, 0.86),
            (0.5, 0.8),
        )  # fmt: skip
        mask = fill(np.concatenate([back, mirror(back[1:-1])]))
        c.paint(mask, look.hair_dark)
        _body(c, look, lm)
    else:
        _body(c, look, lm)
    for side in (-1, 1):
        _ear(c, look, lm, side)
    face = _head(c, look, lm)
    _nose(c, look, lm)
    _mouth(c, look, lm)
    for contour, brow, sign in ((lm[56:72], lm[36:46], -1), (lm[72:88], lm[46:56], 1)):
        _eye(c, look, contour, sign)
        _brow(c, look, brow, sign)
    rng = np.random.default_rng(11)
    for _ in range(look.freckles):
        place = np.array([rng.normal(0.5, 0.085), rng.normal(0.545, 0.022)], np.float32)
        c.multiply(
            disc(place, rng.uniform(0.0012, 0.0028), 1.2) * face,
            look.skin_shade,
            rng.uniform(0.3, 0.8),
        )
    if look.style == "bob":
        _bob(c, look, lm, face)
    else:
        _swept(c, look, lm, face)
    small = cv2.resize(c.rgb, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    paper = np.random.default_rng(2).normal(0, 1.3, (SIZE, SIZE, 1)).astype(np.float32)
    return np.asarray(np.clip(small + paper + 0.5, 0, 255), np.uint8)


LOOKS: dict[str, Look] = {
    "nova": Look(
        skin=(226, 170, 138), skin_shade=(196, 128, 112), blush=(232, 140, 128), lip=(196, 92, 98),
        iris=(86, 148, 132), hair=(72, 58, 112), hair_light=(150, 122, 196), hair_dark=(44, 34, 74),
        cloth=(240, 196, 92), cloth_shade=(206, 140, 60),
        back_top=(172, 214, 210), back_bottom=(110, 168, 178), freckles=46,
    ),
    "felix": Look(
        skin=(240, 196, 168), skin_shade=(210, 150, 130), blush=(242, 160, 146),
        lip=(206, 124, 116), iris=(96, 136, 176), hair=(176, 92, 44), hair_light=(232, 152, 84),
        hair_dark=(116, 56, 30), cloth=(58, 104, 92), cloth_shade=(40, 70, 66),
        back_top=(246, 220, 184), back_bottom=(226, 172, 138), lashes=0.45, stubble=0.42,
        style="swept",
    ),
}  # fmt: skip
