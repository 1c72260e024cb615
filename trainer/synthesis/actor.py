"""A still made ready to be moved: fitted head, texture coordinates, layers, eyes, teeth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.codes import DIMS, EXPRESSION_NAMES, MotionCode
from models.face import CANONICAL_ORIGIN, GROUPS, LANDMARKS, FaceModel, rotation
from trainer.face_fit import CM, PIVOT_CM
from trainer.synthesis.fit import Fit, Spreader, fit
from trainer.synthesis.head import SKIN, Head, lip_to_shapes
from trainer.synthesis.layers import fill_in, person_mask, spread_depth
from trainer.synthesis.mouth import Mouth, make_mouth
from trainer.synthesis.raster import rasterise

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
#: Pixels of the canonical crop that everything is drawn in.
SIZE = 256
#: Drawn larger by this, then averaged down.
OVERSAMPLING = 1.5
#: Cells of the sheet that carries hair, neck and shoulders.
CELLS = 56
#: Skin below this height (cm) belongs to the sheet: neck and shoulders do not turn rigidly.
NECK_CM = -9.5
#: Row of every landmark among the skin landmarks; irises have none.
SKIN_ROW = np.full(LANDMARKS, -1)
SKIN_ROW[SKIN] = np.arange(len(SKIN))
_UPPER_LIDS = {"eye_left": "eyeBlink_R", "eye_right": "eyeBlink_L"}


@dataclass(frozen=True, slots=True)
class Rig:
    """What is the same for all people: head, landmark model, and how codes move the mesh.

    moves (52, A, 3) cm per unit of lip, eye and expression code at the active vertices `active`
    (A,): the drawn skin, the landmarks' corners and some lower teeth. Gaze rows are zero (eyes
    are drawn apart). corner (142, 3) are the landmarks' corners among the active vertices, jaw
    (J,) the lower teeth.
    """

    head: Head
    face: FaceModel
    spread: Spreader
    active: NDArray[np.int64]
    moves: F32
    skin: I32
    corner: NDArray[np.int64]
    jaw: NDArray[np.int64]


def make_rig(head: Head, face: FaceModel) -> Rig:
    """Combine the mesh's shapes into one motion per code dimension; a second."""
    parts = head.parts
    drawn = head.part(parts.face)
    jaw = _lower_teeth(head)
    active = np.unique(np.concatenate([drawn.ravel(), head.corner[SKIN].ravel(), jaw]))
    number = np.zeros(len(head.neutral), np.int64)
    number[active] = np.arange(len(active))
    weights = np.zeros((DIMS["lip"] + DIMS["eye"] + DIMS["exp"], len(head.names)))
    weights[: DIMS["lip"]] = lip_to_shapes(head, face)
    eye = DIMS["lip"]
    sides = {0: "eyeBlink_R", 1: "eyeBlink_L", 4: "eyeWide_R", 5: "eyeWide_L"}
    for row, name in sides.items():
        weights[eye + row, head.names.index(name)] = 1
    for i, name in enumerate(EXPRESSION_NAMES):
        if name in head.names:
            weights[eye + DIMS["eye"] + i, head.names.index(name)] = 1
    moves = np.tensordot(weights, head.shapes[:, active].astype(np.float64), 1)
    return Rig(
        head, face, Spreader(head), active, moves.astype(np.float32),
        number[drawn].astype(np.int32), number[head.corner[SKIN]], number[jaw],
    )  # fmt: skip


def _lower_teeth(head: Head, count: int = 60) -> NDArray[np.int64]:
    """Some vertices of the teeth that go down with the jaw."""
    teeth = np.arange(*head.parts.teeth)
    if "jawOpen" in head.names:
        drop = -head.shapes[head.names.index("jawOpen"), teeth, 1]
        if drop.max() > 1e-3:
            teeth = teeth[drop > 0.6 * drop.max()]
    return np.asarray(teeth[:: max(1, len(teeth) // count)], np.int64)


@dataclass(frozen=True, slots=True)
class Eye:
    """A ball at `centre` (3,) cm in the head's frame; `gaze` (yaw, pitch) in radians."""

    centre: F64
    radius: float
    iris_radius: float
    gaze: F64
    group: str


@dataclass(frozen=True, slots=True)
class Actor:
    """One person; see `make_actor`. Pixels are of the canonical crop.

    layers (256, 256, 5) is what the sheet shows: RGB with the face filled in, the person's mask,
    and 1 where the face covered it; backdrop (384, 384, 4) the background without the person, and
    the mask again. base (A, 3) cm is the mesh as in the still; uv (A, 2) where every vertex is
    in the source; rim (A,) 0 at the border of the drawn skin .. 1 inside; shown (A,) 1 where the
    still shows it; lids (2, A, 3) the extra motion that
    brings each eye's lids together at closure 1; lid_away (A, 2) the direction in which lid skin
    is sampled away from the eye; sheet (N, 3) cm and sheet_uv (N, 2) the layer of hair and
    shoulders.
    """

    source: F32
    layers: F32
    backdrop: F32
    mask: F32
    fit: Fit
    landmarks: F64
    base: F64
    uv: F32
    rim: F32
    shown: F32
    skin: I32
    lids: F32
    lid_away: F32
    sheet: F64
    sheet_uv: F32
    sheet_cells: I32
    eyes: tuple[Eye, Eye]
    sclera: F32
    iris: F32
    mouth: Mouth
    shape: F32


def project(fitted: Fit, points: F64, turn: F64) -> F64:
    """Head points (N, 3) cm -> (N, 3): x, y in pixels, depth in cm, of the whole head turned."""
    turned = points @ turn.T
    return np.concatenate([fitted.scale * turned[:, :2] * (1, -1) + fitted.shift, turned[:, 2:]], 1)


def pose_code(fitted: Fit, turn_ypr: F64, pivot_cm: F64) -> F32:
    """Pose code (6,) of a head turned by `turn_ypr` whose pivot is at `pivot_cm` on the camera."""
    at = (fitted.scale * pivot_cm[:2] * (1, -1) + fitted.shift) / SIZE - CANONICAL_ORIGIN
    zoom = np.log(fitted.scale / SIZE / CM)
    return np.concatenate([turn_ypr, at, [zoom]]).astype(np.float32)


def make_actor(rig: Rig, image: U8, landmarks: F64, prior: F64, seed: int = 0) -> Actor:
    """Prepare a canonical crop (256, 256, 3) with its landmarks (152, 2) in pixels; about a second.

    `prior` (E,) are expected shape coefficients; `seed` gives the person teeth.
    """
    head = rig.head
    fitted = fit(head, rig.spread, landmarks, prior)
    whole = fitted.neutral + np.tensordot(fitted.expression, head.shapes, 1)
    turn = rotation(fitted.pose)
    base = whole[rig.active]
    seen = project(fitted, base, turn)
    skin = _front(rig.skin, seen, base, landmarks)
    covered, depth = rasterise(
        seen[:, :2], seen[:, 2], skin, np.ones((len(base), 1), np.float32), SIZE
    )
    cover = covered[..., 0] > 0
    filled = cv2.morphologyEx(cover.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((25, 25), np.uint8))
    mask = person_mask(image, filled > 0, float(landmarks[18, 1]))
    mask = np.maximum(mask, cv2.GaussianBlur(filled.astype(np.float32), (0, 0), 1.0))
    source = image.astype(np.float32)
    # Under the soft border of the skin the sheet keeps the still's own pixels.
    inside = cv2.erode(filled, np.ones((15, 15), np.uint8)).astype(np.float32)
    # The mask's edge holds background, which must not bleed into hair and neck.
    body = cv2.erode((mask > 0.9).astype(np.float32), np.ones((7, 7), np.uint8))
    own = ((mask > 0.5) & (inside == 0))[..., None]
    behind = np.where(own, source, fill_in(source, body * (1 - inside)))
    outside = 1 - cv2.dilate((mask > 0.05).astype(np.uint8), np.ones((9, 9), np.uint8))
    filled_in = fill_in(source, outside.astype(np.float32))
    plate = np.where((mask < 0.02)[..., None], source, filled_in)
    sheet_depth = spread_depth(depth, cover, SIZE / 28) - 0.1
    grid = np.linspace(-0.1 * SIZE, 1.1 * SIZE, CELLS + 1)
    uv = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    at = np.clip(uv, 0, SIZE - 1).astype(int)
    flat = (uv - fitted.shift) / fitted.scale * (1, -1)
    sheet = np.concatenate([flat, sheet_depth[at[:, 1], at[:, 0]][:, None]], 1) @ turn
    eyes = (_eye(rig, whole, fitted, landmarks, "eye_left"),
            _eye(rig, whole, fitted, landmarks, "eye_right"))  # fmt: skip
    sclera, iris = _eye_textures(source, landmarks, eyes, fitted)
    code = source_code(fitted)
    shape = rig.face.lift((landmarks / SIZE).astype(np.float32), MotionCode(pose=code))
    return Actor(
        source, np.dstack([behind, mask, inside]).astype(np.float32),
        _enlarged(np.dstack([plate, mask])), mask, fitted, landmarks, base,
        seen[:, :2].astype(np.float32), _rim(skin, len(base), seen, landmarks),
        _shown(skin, seen), skin,
        _closing(rig, base), _lid_directions(seen, landmarks),
        sheet, uv.astype(np.float32), _cells(), eyes, sclera, iris,
        make_mouth(seed, source, landmarks, at_skin(rig, base)[SKIN_ROW[GROUPS["lips_inner"]]]),
        shape,
    )  # fmt: skip


def _enlarged(image: NDArray[np.floating]) -> F32:
    """An image (256, 256, C) at the size that frames are drawn at."""
    big = round(SIZE * OVERSAMPLING)
    return np.asarray(cv2.resize(image.astype(np.float32), (big, big)), np.float32)


def source_code(fitted: Fit) -> F32:
    """Pose code (6,) of the still itself; its other codes are zero by definition."""
    return pose_code(fitted, fitted.pose, rotation(fitted.pose) @ PIVOT_CM)


def _inside(points: F64, landmarks: F64, grow: float) -> NDArray[np.bool_]:
    """Which points (N, 2) lie inside the face's oval, grown about its middle."""
    oval = landmarks[GROUPS["oval"]]
    middle = oval.mean(0)
    shape = _polygon(middle + grow * (oval - middle) + SIZE / 2, 2 * SIZE)
    return np.asarray(_at(shape, points + SIZE / 2) > 0)


def _polygon(path: F64, size: int) -> U8:
    """(size, size) with 1 inside a closed path (N, 2) in pixels."""
    out = np.zeros((size, size), np.uint8)
    cv2.fillPoly(out, [np.round(path * 16).astype(np.int32)], (1,), shift=4)
    return out


def _at(image: NDArray[Any], points: F64) -> NDArray[Any]:
    """Pixels (N,) under points (N, 2); beyond the border the nearest."""
    at = np.clip(points.astype(int), 0, len(image) - 1)
    return np.asarray(image[at[:, 1], at[:, 0]])


def _facing(triangles: I32, seen: F64) -> F64:
    """How squarely triangles face the camera, -1..1; depth in cm is taken to pixels."""
    cm = np.ptp(seen[:, 1]) / 20.0
    a, b, c = (seen[triangles[:, i]] * (1, -1, cm) for i in range(3))
    normal = np.cross(b - a, c - a)
    return np.asarray(normal[:, 2] / (np.linalg.norm(normal, axis=1) + 1e-12))


def at_skin(rig: Rig, points: F64) -> F64:
    """Active vertices (A, 3) taken at the skin landmarks (142, 3)."""
    return np.asarray(np.einsum("kvc,kv->kc", points[rig.corner], rig.head.share[SKIN]))


def _front(triangles: I32, seen: F64, base: F64, landmarks: F64) -> I32:
    """Triangles to draw: above the neck, facing the camera in the still or well inside the face.

    The nose hides some that a turned head shows; at the outline the sheet takes over.
    """
    inner = _inside(seen[triangles].mean(1)[:, :2], landmarks, 0.8)
    low = base[triangles][:, :, 1].min(1) < NECK_CM
    keep = (inner | (_facing(triangles, seen) > 0.12)) & ~low
    return np.ascontiguousarray(triangles[keep])


def _shown(triangles: I32, seen: F64) -> F32:
    """(A,) 1 for vertices that the still shows, 0 for those that face away or lie behind others."""
    out = np.ones(len(seen), np.float32)
    out[np.unique(triangles[_facing(triangles, seen) < 0.05])] = 0
    _, depth = rasterise(
        seen[:, :2], seen[:, 2], triangles, np.ones((len(seen), 1), np.float32), SIZE
    )
    out[_at(depth, seen[:, :2]) > seen[:, 2] + 0.4] = 0
    return out


def _rim(skin: I32, count: int, seen: F64, landmarks: F64) -> F32:
    """0 on the outer border of the drawn skin, 1 four pixels inside."""
    edges = np.sort(np.concatenate([skin[:, [0, 1]], skin[:, [1, 2]], skin[:, [2, 0]]]), 1)
    unique, uses = np.unique(edges, axis=0, return_counts=True)
    border = np.unique(unique[uses == 1])
    border = border[~_inside(seen[border, :2], landmarks, 0.8)]
    out = np.ones(count, np.float32)
    if len(border):
        used = np.unique(skin)
        near = cKDTree(seen[border, :2]).query(seen[used, :2])[0]
        out[used] = np.clip(near / 4, 0, 1)
    return out


def _closing(rig: Rig, base: F64) -> F32:
    """(2, A, 3): what a full blink shape still lacks to bring upper lids on to the lower ones."""
    first_skin, stop = rig.head.parts.skin
    on_skin = (rig.active >= first_skin) & (rig.active < stop)
    out = np.zeros((2, *base.shape), np.float32)
    for side, group in enumerate(_UPPER_LIDS):
        at = at_skin(rig, base + rig.moves[DIMS["lip"] + side])
        first = GROUPS[group].start
        wanted = np.zeros((len(SKIN), 3))
        for i in range(7):
            upper, lower = SKIN_ROW[first + 15 - i], SKIN_ROW[first + 1 + i]
            wanted[upper] = at[lower] - at[upper] + (0, -0.03, 0.02)
        out[side, on_skin] = rig.spread(wanted)[rig.active[on_skin] - first_skin]
    return out


def _lid_directions(seen: F64, landmarks: F64) -> F32:
    """(A, 2): away from the eye, its width at the rim falling to 0 at a fifth of it outside."""
    out = np.zeros((len(seen), 2), np.float32)
    for group in ("eye_left", "eye_right"):
        rim = landmarks[GROUPS[group]]
        width = float(np.ptp(rim[:, 0]))
        distance = cKDTree(rim).query(seen[:, :2])[0]
        weight = np.clip(1 - distance / (0.19 * width), 0, 1)
        side = np.sign(seen[:, 1] - rim[:, 1].mean())
        out[:, 1] += (weight * side * width).astype(np.float32)
    return out


def _cells() -> I32:
    """Triangles of the sheet's regular grid, facing the camera (image y down)."""
    row, column = np.meshgrid(np.arange(CELLS), np.arange(CELLS), indexing="ij")
    a = (row * (CELLS + 1) + column).ravel()
    b, c, d = a + 1, a + CELLS + 1, a + CELLS + 2
    return np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)]).astype(np.int32)


def _eye(rig: Rig, whole: F64, fitted: Fit, landmarks: F64, group: str) -> Eye:
    """Sphere of one eye and where it looks in the still, from the iris landmarks."""
    parts = rig.head.parts
    span = parts.eye_left if group == "eye_left" else parts.eye_right
    ball = whole[span[0] : span[1]]
    centre = (ball.max(0) + ball.min(0)) / 2
    radius = float(np.ptp(ball[:, 1]) / 2)
    iris = landmarks[GROUPS["iris_left" if group == "eye_left" else "iris_right"]]
    turn = rotation(fitted.pose)
    middle = project(fitted, centre[None], turn)[0]
    offset = (iris[0] - middle[:2]) / fitted.scale * (1, -1)
    reach = float(np.linalg.norm(offset))
    if reach > 0.7 * radius:
        offset = offset * 0.7 * radius / reach
    ray = turn.T @ np.array([*offset, np.sqrt(radius**2 - (offset**2).sum())])
    gaze = np.array([np.arctan2(ray[0], ray[2]), np.arcsin(np.clip(ray[1] / radius, -1, 1))])
    size = float(np.linalg.norm(iris[1:] - iris[0], axis=1).mean() / fitted.scale)
    return Eye(centre, radius, size, gaze, group)


def _eye_textures(
    source: F32, landmarks: F64, eyes: tuple[Eye, Eye], fitted: Fit
) -> tuple[F32, F32]:
    """Two pictures like the source: eye whites without iris, and whole irises without lids."""
    sclera, iris = source.copy(), source.copy()
    y, x = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    for eye in eyes:
        rim = landmarks[GROUPS[eye.group]]
        iris_group = "iris_left" if eye.group == "eye_left" else "iris_right"
        at = landmarks[GROUPS[iris_group]][0]
        radius = eye.iris_radius * fitted.scale
        open_eye = np.zeros((SIZE, SIZE), np.uint8)
        cv2.fillPoly(open_eye, [np.round(rim * 16).astype(np.int32)], 1, shift=4)
        inside = cv2.erode(open_eye, np.ones((3, 3), np.uint8)) > 0
        away = np.hypot(x - at[0], y - at[1])
        white = fill_in(source, (inside & (away > 1.15 * radius)).astype(np.float32))
        low, high = np.floor(rim.min(0)).astype(int) - 6, np.ceil(rim.max(0)).astype(int) + 6
        box = np.s_[max(low[1], 0) : high[1], max(low[0], 0) : high[0]]
        sclera[box] = cv2.GaussianBlur(white[box], (0, 0), 0.7)
        # Under the lids every ring of the iris looks like its visible part.
        ring = np.minimum((away / radius * 8).astype(int), 12)
        full = source.copy()
        for r in range(10):
            mine = ring == r
            visible = mine & inside
            if visible.any():
                full[mine & ~inside] = np.median(source[visible], 0)
            elif r:
                full[mine] = np.median(full[ring == r - 1], 0)
        around = away < 1.25 * radius
        iris[around] = full[around]
    return sclera, iris
