"""Draw an actor under a motion code, with flow, validity and landmarks of the same geometry.

Four layers from back to front: a still background without the person; a sheet with hair, neck
and shoulders at the depth of the head's outline, filled in behind the face; eyes and mouth; the
face's skin. Every pixel of sheet and skin knows where in the source it comes from, so the picture
is the source warped by the flow wherever the validity map is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS, MotionCode
from models.face import GROUPS, LANDMARKS, rotation
from trainer.face_fit import GAZE_UNIT_DEG, PIVOT_CM
from trainer.synthesis.actor import OVERSAMPLING, SIZE, Actor, Eye, Rig, at_skin, pose_code
from trainer.synthesis.head import SKIN
from trainer.synthesis.mouth import draw_band
from trainer.synthesis.raster import rasterise
from trainer.synthesis.shading import NOTHING, shade_sheet, shade_skin

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Drive:
    """Motion relative to the still: yaw, pitch, roll in radians, shift in cm, and the codes.

    lip (16,), eye (6,) and exp (30,) are as in `models.codes`; gaze is absolute, lids and
    expressions are added to the still's.
    """

    turn: F64
    shift_cm: F64
    lip: F64
    eye: F64
    exp: F64


@dataclass(frozen=True, slots=True)
class Frame:
    """pixels (256, 256, 3) uint8; landmarks (152, 2) crop units; code (58,);
    flow (256, 256, 2) float32 source pixels; validity (256, 256) float32: 1 shown by the source,
    0 made up (eye, mouth, filled in).
    """

    pixels: U8
    landmarks: F32
    code: F32
    flow: F32
    validity: F32


def neck_weight(y_cm: F64, x_cm: F64) -> F64:
    """How far a point follows the head: 1 above the chin, 0 at the shoulders."""

    def step(v: F64) -> F64:
        v = np.clip(v, 0, 1)
        return np.asarray(v * v * (3 - 2 * v))

    low = step((y_cm + 16) / 7.0)
    side = step((np.abs(x_cm) - 8) / 5) * step((-4 - y_cm) / 5)
    return np.asarray(low * (1 - side))


class _Motion:
    """Camera of one frame: neck-weighted turn about the pivot on top of the still's pose."""

    def __init__(self, actor: Actor, drive: Drive) -> None:
        self.fit = actor.fit
        self.ypr = actor.fit.pose + drive.turn
        self.rest, self.turn = rotation(actor.fit.pose), rotation(self.ypr)
        self.pivot = self.rest @ PIVOT_CM + np.array([*drive.shift_cm, 0.0])

    def __call__(self, points: F64, weight: F64) -> F64:
        """Head points (N, 3) -> x, y in pixels and depth in cm."""
        full = (points - PIVOT_CM) @ self.turn.T + self.pivot
        still = points @ self.rest.T
        placed = still + weight[:, None] * (full - still)
        flat = self.fit.scale * placed[:, :2] * (1, -1) + self.fit.shift
        return np.concatenate([flat, placed[:, 2:]], 1)


def deform(rig: Rig, actor: Actor, drive: Drive) -> F64:
    """Active vertices (A, 3) cm in the head's frame."""
    weights = np.concatenate([drive.lip, drive.eye, drive.exp]).astype(np.float32)
    weights[DIMS["lip"] + 2 : DIMS["lip"] + 4] = 0
    used = np.flatnonzero(np.abs(weights) > 1e-4)
    moved = actor.base.astype(np.float32)
    if len(used):
        moved = moved + np.tensordot(weights[used], rig.moves[used], 1)
    for side in range(2):
        closure = float(np.clip(drive.eye[side], 0, 1))
        if closure > 0:
            moved = moved + np.float32(closure**2) * actor.lids[side]
    return moved.astype(np.float64)


def render(rig: Rig, actor: Actor, drive: Drive) -> Frame:
    """One frame; the tests record how long it takes."""
    motion = _Motion(actor, drive)
    big = round(SIZE * OVERSAMPLING)
    points = deform(rig, actor, drive)
    # The neck's share is taken from the still, so that an opening jaw stays rigid with the head.
    seen = motion(points, neck_weight(actor.base[:, 1], actor.base[:, 0]))
    xy = (seen[:, :2] * OVERSAMPLING).astype(np.float32)
    canvas, flow, valid = _back(actor, motion, big)
    landmarks = _landmarks(rig, actor, motion, points)
    for side, eye in enumerate(actor.eyes):
        _draw_eye(canvas, actor, motion, eye, drive, landmarks, side)
    _draw_mouth(canvas, rig, actor, motion, points, landmarks)
    _draw_skin(canvas, flow, valid, actor, drive, xy, seen[:, 2], big)
    _draw_lashes(canvas, landmarks, drive)
    pixels = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    code = MotionCode(
        drive.lip.astype(np.float32), pose_code(actor.fit, motion.ypr, motion.pivot),
        drive.eye.astype(np.float32), drive.exp.astype(np.float32),
    )  # fmt: skip
    return Frame(
        np.clip(pixels + 0.5, 0, 255).astype(np.uint8),
        (landmarks / SIZE).astype(np.float32),
        code.concat(),
        np.asarray(cv2.resize(flow, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR), np.float32),
        (cv2.resize(valid, (SIZE, SIZE), interpolation=cv2.INTER_AREA) > 0.999).astype(np.float32),
    )


def _sample(image: F32, at: F32) -> F32:
    """Bilinear samples of (256, 256, C) at pixel coordinates (H, W, 2), centres at +.5."""
    out = cv2.remap(
        image, at[..., 0] - 0.5, at[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(out, np.float32)


def _back(actor: Actor, motion: _Motion, big: int) -> tuple[F32, F32, F32]:
    """Background and sheet: canvas (H, W, 3), flow (H, W, 2), validity (H, W)."""
    placed = motion(actor.sheet, neck_weight(actor.sheet[:, 1], actor.sheet[:, 0]))
    at, near = rasterise(
        placed[:, :2] * OVERSAMPLING, placed[:, 2], actor.sheet_cells, actor.sheet_uv, big
    )
    canvas, flow = actor.backdrop[..., :3].copy(), _places(big).copy()
    valid = np.empty((big, big), np.float32)
    shade_sheet(at, near, actor.layers, actor.backdrop[..., 3], canvas, flow, valid)
    return canvas, flow, valid


@cache
def _places(big: int) -> F32:
    """(big, big, 2): where every drawn pixel lies in the crop."""
    step = (np.arange(big, dtype=np.float32) + 0.5) * SIZE / big
    return np.stack(np.meshgrid(step, step), -1).astype(np.float32)


def _landmarks(rig: Rig, actor: Actor, motion: _Motion, points: F64) -> F64:
    """(152, 2) pixels: skin by the mesh, irises as points of the turned balls (`_iris_points`)."""
    base = at_skin(rig, actor.base)
    out = np.zeros((LANDMARKS, 2))
    out[SKIN] = motion(at_skin(rig, points), neck_weight(base[:, 1], base[:, 0]))[:, :2]
    return out


def gaze_ray(yaw_pitch: F64) -> F64:
    """Unit vector in the head's frame of a gaze (yaw, pitch) in radians."""
    yaw, pitch = yaw_pitch
    return np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])


def _between(start: F64, end: F64) -> F64:
    """The smallest rotation that turns one unit vector into another."""
    axis = np.cross(start, end)
    cosine = float(start @ end)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.asarray(np.eye(3) + skew + skew @ skew / (1 + cosine))


def _draw_eye(
    canvas: F32, actor: Actor, motion: _Motion, eye: Eye, drive: Drive, landmarks: F64, side: int
) -> None:
    """White and iris of one eye under the lids, and the iris's landmarks."""
    wanted = np.radians(GAZE_UNIT_DEG) * drive.eye[2:4]
    source_ray = gaze_ray(eye.gaze)
    both = np.mean([e.gaze for e in actor.eyes], 0)
    target_ray = gaze_ray(wanted + (eye.gaze - both))
    centre = motion(eye.centre[None], np.ones(1))[0]
    scale = motion.fit.scale
    iris_rows = GROUPS["iris_left" if side == 0 else "iris_right"]
    middle = eye.radius * (motion.turn @ target_ray)
    landmarks[iris_rows.start] = centre[:2] + scale * middle[:2] * (1, -1)
    normal = motion.turn @ target_ray
    for k, direction in enumerate(((1, 0), (0, -1), (-1, 0), (0, 1))):
        flat = np.array([*direction, 0.0]) * (1, -1, 1)
        rim = middle + eye.iris_radius * (flat - normal * (flat @ normal))
        landmarks[iris_rows.start + 1 + k] = centre[:2] + scale * rim[:2] * (1, -1)
    low = np.floor((landmarks[GROUPS[eye.group]].min(0) - 5) * OVERSAMPLING).astype(int)
    high = np.ceil((landmarks[GROUPS[eye.group]].max(0) + 5) * OVERSAMPLING).astype(int)
    low, high = np.clip(low, 0, len(canvas)), np.clip(high, 0, len(canvas))
    if (high <= low).any():
        return
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]] + 0.5
    px, py = x / OVERSAMPLING, y / OVERSAMPLING
    u, v = (px - centre[0]) / scale, -(py - centre[1]) / scale
    w = np.sqrt(np.maximum(eye.radius**2 - u * u - v * v, (0.25 * eye.radius) ** 2))
    ball = np.stack([u, v, w], -1) @ motion.turn
    home_centre = actor.fit.scale * (motion.rest @ eye.centre)[:2] * (1, -1) + actor.fit.shift

    def source_of(points: F64) -> F32:
        flat = (points @ motion.rest.T)[..., :2] * (1, -1)
        return np.asarray(actor.fit.scale * flat + home_centre, np.float32)

    white = _sample(actor.sclera, source_of(ball))
    away = np.linalg.norm(ball / eye.radius - target_ray, axis=-1) * eye.radius / eye.iris_radius
    iris = _sample(actor.iris, source_of(ball @ _between(target_ray, source_ray).T))
    edge = np.clip((1.14 - away) / 0.17, 0, 1)[..., None]
    canvas[low[1] : high[1], low[0] : high[0]] = edge * iris + (1 - edge) * white


def _draw_mouth(
    canvas: F32, rig: Rig, actor: Actor, motion: _Motion, points: F64, landmarks: F64
) -> None:
    """Darkness, tongue and teeth between the lips."""
    ring = landmarks[GROUPS["lips_inner"]]
    gap = (ring[1:10, 1] - ring[19:10:-1, 1]).max()
    if gap < 0.4:
        return
    low = np.clip(np.floor((ring.min(0) - 4) * OVERSAMPLING).astype(int), 0, len(canvas))
    high = np.clip(np.ceil((ring.max(0) + 4) * OVERSAMPLING).astype(int), 0, len(canvas))
    if (high - low < 2).any():
        return
    width, height = (high - low).tolist()
    drawn = np.empty((height, width, 3), np.float32)
    drawn[:] = actor.mouth.dark
    jaw = jaw_motion(actor.base[rig.jaw], points[rig.jaw])
    for band, move in (
        (actor.mouth.tongue, jaw), (actor.mouth.lower, jaw), (actor.mouth.upper, None)
    ):  # fmt: skip
        at = band.points if move is None else band.points + to_affine(band.points) @ move
        seen = motion(at, np.ones(len(at)))
        seen[:, :2] *= OVERSAMPLING
        draw_band(drawn, band, seen, low)
    shape = np.zeros((height, width), np.uint8)
    grown = ring + 1.5 * np.sign(ring - ring.mean(0))
    path = np.round((grown * OVERSAMPLING - low) * 16).astype(np.int32)
    cv2.fillPoly(shape, [path], (255,), shift=4)
    # Lips and cheeks take light away near the rim, most under the upper lip.
    inside = cv2.distanceTransform(shape, cv2.DIST_L2, 3) / (actor.fit.scale * OVERSAMPLING)
    top = np.interp(
        np.arange(width) + low[0], ring[10:20][::-1, 0] * OVERSAMPLING,
        ring[10:20][::-1, 1] * OVERSAMPLING,
    )  # fmt: skip
    below = (np.arange(height)[:, None] + low[1] - top) / (0.35 * actor.fit.scale * OVERSAMPLING)
    shade = np.clip(0.62 + 0.38 * below, 0.62, 1) * np.clip(0.75 + 0.9 * inside, 0.75, 1)
    drawn *= shade[..., None].astype(np.float32)
    box = np.s_[low[1] : high[1], low[0] : high[0]]
    canvas[box] = np.where(shape[..., None] > 0, drawn, canvas[box])


def to_affine(points: F64) -> F64:
    """(N, 3) -> (N, 4) with ones, for an affine motion (4, 3)."""
    return np.concatenate([points, np.ones((len(points), 1))], 1)


def jaw_motion(rest: F64, now: F64) -> F64:
    """(4, 3): the affine displacement that the lower teeth (J, 3) have made; a jaw is stiff."""
    middle = rest.mean(0)
    design = to_affine(rest - middle)
    # A little ridge keeps teeth that lie in a plane from being torn out of it.
    gram = design.T @ design + np.diag([1e-3, 1e-3, 1e-3, 0]) * len(rest)
    found = np.linalg.solve(gram, design.T @ (now - rest))
    found[3] -= middle @ found[:3]
    return np.asarray(found)


def _draw_skin(
    canvas: F32, flow: F32, valid: F32, actor: Actor, drive: Drive, xy: F32, depth: F64, big: int
) -> None:
    """The face over everything; lids are sampled a little away from the eye as they close."""
    uv = actor.uv.copy()
    for side, eye in enumerate(actor.eyes):
        closure = float(np.clip(drive.eye[side], 0, 1))
        rim = actor.landmarks[GROUPS[eye.group]]
        mine = np.abs(uv[:, 0] - rim[:, 0].mean()) < 0.8 * np.ptp(rim[:, 0])
        width = float(np.ptp(rim[:, 0]))
        uv[mine] += actor.lid_away[mine] * np.float32(
            0.075 * closure + 0.8 / width * min(1.0, 3 * closure)
        )
    value = np.concatenate([uv, actor.rim[:, None], actor.shown[:, None]], 1)
    at, near = rasterise(xy, depth, actor.skin, value, big)
    shade_skin(at, near, actor.source, canvas, flow, valid)
    # What shows through the mesh's holes is eye or mouth, not the sheet behind.
    drawn = (near > NOTHING).astype(np.uint8)
    half = cv2.resize(drawn, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_NEAREST)
    filled = cv2.morphologyEx(half, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    filled = cv2.resize(filled, drawn.shape[::-1], interpolation=cv2.INTER_NEAREST)
    valid[(filled > 0) & (drawn == 0)] = 0


def _draw_lashes(canvas: F32, landmarks: F64, drive: Drive) -> None:
    """A soft dark line where closed lids meet."""
    for side, group in enumerate(("eye_left", "eye_right")):
        closure = float(np.clip(drive.eye[side], 0, 1))
        if closure < 0.3:
            continue
        first = GROUPS[group].start
        line = np.concatenate([landmarks[first + 8 : first + 16], landmarks[first : first + 1]])
        low = np.clip(((line.min(0) - 4) * OVERSAMPLING).astype(int), 0, len(canvas))
        high = np.clip(((line.max(0) + 4) * OVERSAMPLING).astype(int), 0, len(canvas))
        if (high - low < 2).any():
            continue
        patch = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        path = np.round((line * OVERSAMPLING - low) * 16).astype(np.int32)
        cv2.polylines(patch, [path], False, 255, 2, cv2.LINE_AA, shift=4)
        soft = cv2.GaussianBlur(patch.astype(np.float32) / 255, (0, 0), 0.8)
        dark = 1 - 0.7 * (closure - 0.3) / 0.7 * soft
        canvas[low[1] : high[1], low[0] : high[0]] *= dark[..., None]
