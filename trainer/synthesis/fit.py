"""Fit the head to one picture's landmarks (SYNTHETIC recipe: Gauss-Newton, priors, residuals).

Scaled orthographic camera; identity and expression coefficients with a Gaussian prior; what
landmarks still miss is spread smoothly over the skin, so that the mesh meets them exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csc_matrix, eye
from scipy.sparse.linalg import splu

from models.face import GROUPS, LANDMARKS, euler, rotation
from trainer.synthesis.head import SKIN, Head, place_landmarks

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """A person: neutral head (V, 3) cm with identity and residual, the still's shapes, camera.

    Image point = scale * (R v)_xy * (1, -1) + shift, in pixels. `error_px` is the mean landmark
    distance before the residual was spread.
    """

    neutral: F64
    expression: F64
    pose: F64
    scale: float
    shift: F64
    error_px: float
    missed: F64
    """(142, 3) cm in the head's frame: what was spread, at the skin landmarks."""


class Spreader:
    """Spreads displacements known at some points over the skin; factored once per head.

    Minimises .6 |L d|^2 + |G d - r|^2 + 2e-4 |d|^2, L the graph Laplacian, G the landmarks.
    Lips and lids do not touch in the graph, so they stay apart.
    """

    def __init__(self, head: Head) -> None:
        first, stop = head.parts.skin
        count = stop - first
        facets = head.part(head.parts.skin) - first
        a = np.concatenate([facets[:, [0, 1]], facets[:, [1, 2]], facets[:, [2, 0]]])
        a = np.unique(np.sort(a, 1), axis=0)
        ones = np.ones(len(a))
        near = coo_matrix((ones, (a[:, 0], a[:, 1])), (count, count))
        near = (near + near.T).tocsr()
        degree = np.maximum(np.asarray(near.sum(1)).ravel(), 1)
        laplacian = (
            eye(count)
            - coo_matrix((1 / degree, (np.arange(count), np.arange(count))), (count, count)) @ near
        )
        rows = np.repeat(np.arange(len(SKIN)), 3)
        columns = (head.corner[SKIN] - first).ravel()
        gather = coo_matrix((head.share[SKIN].ravel(), (rows, columns)), (len(SKIN), count))
        system = 0.6 * laplacian.T @ laplacian + gather.T @ gather + 2e-4 * eye(count)
        self._gather = gather.tocsr()
        self._solve: Callable[[F64], F64] = splu(csc_matrix(system)).solve

    def __call__(self, residual: F64) -> F64:
        """Displacements (S, 3) of the skin for wanted ones (142, 3) at the skin landmarks."""
        return np.asarray(self._solve(np.asarray(self._gather.T @ residual)))


def _point_weights() -> F64:
    weight = np.ones(LANDMARKS)
    weight[GROUPS["oval"]] = 0.3
    for name in ("eye_left", "eye_right", "lips_outer", "lips_inner"):
        weight[GROUPS[name]] = 2.0
    return np.asarray(weight[SKIN])


def _camera(points: F64, seen: F64) -> tuple[F64, float, F64]:
    """Rotation, scale and shift of the nearest scaled orthographic camera (linear, then SVD)."""
    design = np.concatenate([points, np.ones((len(points), 1))], 1)
    affine = np.linalg.lstsq(design, seen * (1, -1), rcond=None)[0].T
    u, s, vt = np.linalg.svd(affine[:, :3], full_matrices=False)
    two = u @ vt
    turn = np.stack([two[0], two[1], np.cross(two[0], two[1])])
    return turn, float(s.mean()), affine[:, 3] * (1, -1)


def fit(
    head: Head,
    spread: Spreader,
    landmarks: F64,
    prior: F64,
    *,
    steps: int = 5,
    sigma_px: float = 1.0,
) -> Fit:
    """Fit to landmarks (152, 2) in pixels with expected shape coefficients `prior` (E,).

    Gauss-Newton over camera, identity and shapes together, Huber at three sigma, shapes kept in
    0..1.
    """
    base = head.at_landmarks(head.neutral)[SKIN]
    modes = head.at_landmarks(head.identity)[:, SKIN].astype(np.float64)
    shapes = head.at_landmarks(head.shapes)[:, SKIN].astype(np.float64)
    both = np.concatenate([modes, shapes])
    count = len(modes)
    seen = landmarks[SKIN]
    value = np.concatenate([np.zeros(count), np.clip(prior, 0, 1)])
    strength = np.concatenate([np.full(count, 2.0), np.full(len(shapes), 12.0)])
    centre = np.concatenate([np.zeros(count), prior])
    weights = _point_weights()
    turn, scale, shift = _camera(base + np.tensordot(value, both, 1), seen)
    for _ in range(steps):
        points = base + np.tensordot(value, both, 1)
        turned = points @ turn.T
        found = scale * turned[:, :2] * (1, -1) + shift
        residual = seen - found
        size = np.linalg.norm(residual, axis=1)
        w = weights * np.minimum(1, 3 * sigma_px / np.maximum(size, 1e-9)) / sigma_px**2
        # Columns: small turns about x, y, z, log scale, shift x and y, then the coefficients.
        columns = [np.cross(axis, turned)[:, :2] * scale * (1, -1) for axis in np.eye(3)]
        columns += [turned[:, :2] * scale * (1, -1)]
        columns += [np.tile(axis, (len(seen), 1)) for axis in np.eye(2)]
        linear = np.einsum("ac,rkc->rka", turn[:2] * scale * np.array([[1], [-1]]), both)
        jacobian = np.concatenate([np.stack(columns), linear]).reshape(6 + len(both), -1)
        row_weight = np.repeat(w, 2)
        left = (jacobian * row_weight) @ jacobian.T
        right = jacobian @ (row_weight * residual.ravel())
        left[6:, 6:] += np.diag(strength)
        right[6:] += strength * (centre - value)
        step = np.linalg.solve(left + 1e-9 * np.eye(len(left)), right)
        value = value + step[6:]
        value[count:] = np.clip(value[count:], 0, 1)
        turn = rotation(euler(_small_turn(step[:3]) @ turn))
        scale *= float(np.exp(step[3]))
        shift = shift + step[4:6]
    return _finish(head, spread, seen, value, count, turn, scale, shift)


def _small_turn(vector: F64) -> F64:
    """Rotation matrix of a rotation vector (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew)


def _finish(
    head: Head,
    spread: Spreader,
    seen: F64,
    value: F64,
    count: int,
    turn: F64,
    scale: float,
    shift: F64,
) -> Fit:
    """Spread what the landmarks still miss over the skin, and take eyes and teeth along."""
    expression = value[count:]
    neutral = head.neutral + np.tensordot(value[:count], head.identity, 1)
    whole = neutral + np.tensordot(expression, head.shapes, 1)
    turned = head.at_landmarks(whole)[SKIN] @ turn.T
    residual = (seen - (scale * turned[:, :2] * (1, -1) + shift)) / scale * (1, -1)
    error = float(np.linalg.norm(residual, axis=1).mean() * scale)
    lifted = np.concatenate([residual, np.zeros((len(residual), 1))], 1) @ turn
    first, stop = head.parts.skin
    moved = spread(lifted)
    neutral[first:stop] += moved
    whole_at = np.zeros((LANDMARKS, 3))
    whole_at[SKIN] = lifted
    for part, group in (
        (head.parts.eye_left, GROUPS["eye_left"]), (head.parts.eye_right, GROUPS["eye_right"]),
        (head.parts.gums, GROUPS["lips_outer"]), (head.parts.teeth, GROUPS["lips_outer"]),
    ):  # fmt: skip
        neutral[part[0] : part[1]] += whole_at[group].mean(0)
    return Fit(neutral, expression, euler(turn), scale, shift, error, lifted)


def blendshape_prior(head: Head, names: list[str], scores: NDArray[np.floating]) -> F64:
    """Scores (52,) by name -> expected shape coefficients (E,); ARKit's Left is our _L."""
    out = np.zeros(len(head.names))
    table = dict(zip(names, np.asarray(scores, np.float64).tolist(), strict=True))
    for i, name in enumerate(head.names):
        plain = name.replace("_L", "Left").replace("_R", "Right")
        both = name.rsplit("_", 1)[0]
        out[i] = table.get(plain, table.get(name, table.get(both, 0.0)))
    return out


def refine(
    head: Head, pictures: list[tuple[F64, F64]], *, rounds: int = 2, worst_px: float = 4.0
) -> Head:
    """Move the landmarks on the mesh to where pictures (landmarks, prior) say they are.

    What fits of many people miss in common is the placement's error: average it in the head's
    frame, add it, look for the nearest points again.
    """
    for _ in range(rounds):
        spread = Spreader(head)
        missed = []
        for landmarks, prior in pictures:
            one = fit(head, spread, landmarks, prior)
            if one.error_px < worst_px:
                missed.append(one.missed)
        points = head.at_landmarks(head.neutral)
        points[SKIN] += np.median(missed, 0)
        head = place_landmarks(head, points)
    return head
