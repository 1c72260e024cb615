"""The 3-D head that stills are fitted with: ICT-FaceKit's mesh, and where our landmarks lie on it.

Units are centimetres, +x the subject's left (image right), +y up, +z to the camera. The mesh is
read from the pack's `ict/ict_facekit.npz`; anything with the same fields works, which is how the
tests run on a toy. Vertex ranges are those of ICT-FaceKit's README.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from models.codes import DIMS
from models.face import GROUPS, LANDMARKS, FaceModel
from trainer.face_fit import CM, PIVOT_CM

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
IDENTITY_MODES = 60
IRIS = np.r_[GROUPS["iris_left"], GROUPS["iris_right"]]
#: Landmarks that lie on skin; irises do not.
SKIN = np.setdiff1d(np.arange(LANDMARKS), IRIS)
_MOUTH = ("jaw", "mouth")
#: Number among the 68 Multi-PIE points -> row of ours.
_MULTI_PIE = {
    0: 29, 4: 24, 8: 18, 12: 12, 16: 7, 17: 36, 18: 37, 19: 38, 20: 39, 21: 40, 22: 50, 23: 49,
    24: 48, 25: 47, 26: 46, 27: 98, 28: 100, 29: 102, 30: 103, 32: 107, 33: 105, 34: 108, 36: 56,
    37: 69, 38: 67, 39: 64, 40: 61, 41: 59, 42: 80, 43: 83, 44: 85, 45: 72, 46: 75, 47: 77, 48: 112,
    49: 129, 50: 128, 51: 127, 52: 126, 53: 125, 54: 122, 55: 119, 56: 118, 57: 117, 58: 116,
    59: 115, 60: 132, 61: 148, 62: 147, 63: 146, 64: 142, 65: 138, 66: 137, 67: 136,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parts:
    """First and one-past-last vertex of every part of the mesh."""

    skin: tuple[int, int] = (0, 9409)
    face: tuple[int, int] = (0, 6706)
    """The part of the skin that is drawn: no ears, scalp or neck, which no still shows well."""
    gums: tuple[int, int] = (14062, 17039)
    teeth: tuple[int, int] = (17039, 21451)
    eye_left: tuple[int, int] = (23021, 24591)
    """The ball at the image's left: the subject's right."""
    eye_right: tuple[int, int] = (21451, 23021)


@dataclass(frozen=True, slots=True)
class Head:
    """Mesh, identity modes, expression shapes and landmarks.

    neutral (V, 3), identity (60, V, 3), shapes (E, V, 3) cm, float64/float32; triangles (T, 3);
    landmarks are corner (152, 3) vertex numbers and share (152, 3) barycentric weights.
    """

    neutral: F64
    identity: NDArray[np.float32]
    shapes: NDArray[np.float32]
    names: tuple[str, ...]
    triangles: I32
    parts: Parts
    corner: I32
    share: F64

    def at_landmarks(self, field: NDArray[np.floating]) -> F64:
        """Values (..., V, C) of the vertices, taken at the landmarks (..., 152, C)."""
        return np.asarray(np.einsum("...kvc,kv->...kc", field[..., self.corner, :], self.share))

    def part(self, span: tuple[int, int]) -> I32:
        """Triangles whose corners all lie in one range of vertices."""
        inside = ((self.triangles >= span[0]) & (self.triangles < span[1])).all(1)
        return self.triangles[inside]

    @property
    def mouth(self) -> NDArray[np.int64]:
        """Numbers of the shapes of mouth and jaw: speech drives them absolutely."""
        return np.array([i for i, n in enumerate(self.names) if n.startswith(_MOUTH)])


def read_head(path: Path, face: FaceModel, *, parts: Parts | None = None) -> Head:
    """Load the mesh and place the landmarks of `face` on it.

    `vertex_indices.json` beside the file, where there is one, holds the 68 usual landmarks'
    vertices that the placement starts from; without it the two heads must agree already.

    Raises:
        KeyError: the file lacks a field.
    """
    parts = parts or Parts()
    with np.load(path, allow_pickle=False) as z:
        neutral = z["neutral"].astype(np.float64)
        identity = z["identity"][:IDENTITY_MODES].astype(np.float32)
        shapes = z["expression"].astype(np.float32)
        names = [str(n) for n in z["expression_names"]]
        quads = z["quads"]
    keep = [i for i, n in enumerate(names) if "pupil" not in n.lower()]
    shapes, names = shapes[keep], [names[i] for i in keep]
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
    points = face.mean.astype(np.float64) / CM + PIVOT_CM
    known = path.parent / "vertex_indices.json"
    if known.exists():
        vertices = json.loads(known.read_text())["idx_to_landmark_verts"]
        ours, theirs = np.array(list(_MULTI_PIE.values())), [vertices[i] for i in _MULTI_PIE]
        warp = RBFInterpolator(
            points[ours], neutral[theirs], kernel="thin_plate_spline", smoothing=0.3
        )
        points = warp(points)
    head = Head(
        neutral, identity, shapes, tuple(names), triangles, parts,
        np.zeros((LANDMARKS, 3), np.int32), np.zeros((LANDMARKS, 3)),
    )  # fmt: skip
    return place_landmarks(head, points)


def place_landmarks(head: Head, points: F64) -> Head:
    """The head with its landmarks at the mesh's points nearest to `points` (152, 3) cm.

    Depth counts half. Rims of lips and lids look for their own side only, which the jaw's and
    the blink's shapes tell: place alone would put the upper lip on the lower one.
    """
    facets = head.part(head.parts.skin)
    edge = head.neutral[facets]
    normal = np.cross(edge[:, 1] - edge[:, 0], edge[:, 2] - edge[:, 0])
    facets = facets[normal[:, 2] > 0]
    used = np.unique(facets)
    weight = np.array([1, 1, 0.5])
    away = (points[:, None] - head.neutral[used]) * weight
    cost = (away**2).sum(2) + 1e4 * _wrong_side(head, used)
    corner = np.zeros((LANDMARKS, 3), np.int32)
    share = np.zeros((LANDMARKS, 3))
    for k in range(LANDMARKS):
        best = used[cost[k].argmin()]
        corner[k], share[k] = _nearest_on(
            facets[(facets == best).any(1)], head.neutral * weight, points[k] * weight
        )
    return replace(head, corner=corner, share=share)


def _wrong_side(head: Head, used: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(152, U): vertices a rim landmark must not sit on."""
    wrong = np.zeros((LANDMARKS, len(used)), bool)
    if "jawOpen" in head.names:
        drop = -head.shapes[head.names.index("jawOpen"), used, 1]
        limit = 0.5 * float(drop.max())
        for name in ("lips_outer", "lips_inner"):
            first = GROUPS[name].start
            wrong[first + 1 : first + 10] |= drop < limit
            wrong[first + 11 : first + 20] |= drop > limit
    for name, blink in (("eye_left", "eyeBlink_R"), ("eye_right", "eyeBlink_L")):
        if blink in head.names:
            drop = -head.shapes[head.names.index(blink), used, 1]
            first = GROUPS[name].start
            wrong[first + 1 : first + 8] |= drop > 0.25 * drop.max()
            wrong[first + 9 : first + 16] |= drop < 0.25 * drop.max()
    return wrong


def _nearest_on(facets: I32, vertices: F64, point: F64) -> tuple[I32, F64]:
    """The nearest of some triangles (N, 3) to a point: its corners and barycentric weights."""
    best, corners, share = np.inf, facets[0], np.array([1.0, 0.0, 0.0])
    for facet in facets:
        a, b, c = vertices[facet]
        uv = np.linalg.lstsq(np.stack([b - a, c - a], 1), point - a, rcond=None)[0]
        weight = np.clip([1 - uv.sum(), *uv], 0, None)
        weight /= weight.sum()
        gap = float(((weight @ vertices[facet] - point) ** 2).sum())
        if gap < best:
            best, corners, share = gap, facet, weight
    return corners, share


def lip_to_shapes(head: Head, face: FaceModel) -> F64:
    """Matrix (16, E): shapes of mouth and jaw that move the landmarks as each lip dimension does.

    Ridge least squares over all landmarks; other shapes get zeros. The landmark model's depth
    is known up to a constant only, so means of depth are left out.
    """
    level = np.array([0.0, 0.0, 1.0])
    moves = head.at_landmarks(head.shapes[head.mouth])[:, SKIN]
    moves = (moves - moves.mean(1, keepdims=True) * level).reshape(len(head.mouth), -1)
    wanted = face.basis[: DIMS["lip"], SKIN] / CM
    wanted = (wanted - wanted.mean(1, keepdims=True) * level).reshape(DIMS["lip"], -1)
    gram = moves @ moves.T
    ridge = 1e-5 * np.trace(gram) / len(gram) * np.eye(len(gram))
    out = np.zeros((DIMS["lip"], len(head.names)))
    out[:, head.mouth] = np.linalg.solve(gram + ridge, moves @ wanted.T).T
    return out
