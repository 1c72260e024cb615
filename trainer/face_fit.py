"""Fit `models.face.FaceModel` and give every labelled frame its motion code.

Synthetic clips know their motion exactly, so the basis is a linear least-squares fit to
them (alternating with one neutral head per clip). Measured clips (GRID) and stills only
have landmarks: their codes are found by fitting the same model to those landmarks, with
the blendshape scores as a weak prior. Geometry is the common currency; blendshape values
of real and synthetic faces are never mixed as one target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.codes import CODE_DIM, DIMS, EXPRESSION_NAMES, FACTOR_SLICES, MotionCode
from models.face import (
    CANONICAL_ORIGIN,
    GROUPS,
    FaceModel,
    canonical_transform,
    crop_points,
    euler,
    rotation,
)
from trainer.packs import Arrays, Pack

F64 = NDArray[np.float64]
CM = 0.03481
"""Crop widths per centimetre of the mean head, so that its eyes and mouth are canonical."""
PIVOT_CM = np.array([0.0, -5.0, -1.0])
GAZE_UNIT_DEG = 20.0
_LIP, _EYE, _EXP = FACTOR_SLICES["lip"], FACTOR_SLICES["eye"], FACTOR_SLICES["exp"]
_MOUTH_PREFIXES = ("jaw", "mouth")


@dataclass(frozen=True, slots=True)
class LipBasis:
    """Speech coefficients (25 mouth and jaw shapes) -> lip code: code = coefficients @ matrix."""

    names: list[str]
    matrix: F64


@dataclass(frozen=True, slots=True)
class Labelled:
    """Frames in canonical crops.

    transform (C, 2, 3) maps pixels of clip c to crop units; landmarks (F, 152, 2) in crop
    units; code (F, 58); shape (C, 152, 3) neutral head of each clip.
    """

    transform: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    code: NDArray[np.float32]
    shape: NDArray[np.float32]


def speech_coefficients(synth: Arrays) -> tuple[list[str], F64]:
    """Mouth and jaw coefficients of the synthetic frames without the expression's part."""
    names = [str(n) for n in synth["expression_names"]]
    mouth = [i for i, n in enumerate(names) if n.startswith(_MOUTH_PREFIXES)]
    expression = synth["expression_macro"].astype(np.float64) @ synth["macro_to_expression"].astype(
        np.float64
    )
    speech = synth["expression"].astype(np.float64) - expression
    return [names[i] for i in mouth], speech[:, mouth]


def _swap_side(name: str) -> str:
    swaps = {"jawLeft": "jawRight", "mouthLeft": "mouthRight"}
    swaps |= {v: k for k, v in swaps.items()}
    if name in swaps:
        return swaps[name]
    return name[:-1] + {"L": "R", "R": "L"}[name[-1]] if name[-2:] in ("_L", "_R") else name


def fit_synth(pack: Pack) -> tuple[FaceModel, LipBasis, Labelled]:
    """Fit the model to the synthetic clips; returns it with their labels in canonical crops."""
    synth = pack.synth
    clip_of = synth["clip_of_frame"]
    seen, view = _head_plane(synth)
    names, speech = speech_coefficients(synth)
    code = np.zeros((len(seen), CODE_DIM))
    code[:, _EYE] = _eye_codes(synth)
    code[:, _EXP] = _expression_codes(synth)

    # First pass on the raw speech coefficients: their landmark basis defines the lip code.
    regressors = np.concatenate([speech, code[:, _EYE], code[:, _EXP]], 1)
    raw_basis, _ = _alternate(seen, view, clip_of, regressors, synth["offset"])
    lip = _lip_basis(names, speech, raw_basis[: len(names)], synth["landmark_mirror_perm"])
    code[:, _LIP] = speech @ lip.matrix

    columns = np.r_[_LIP, _EYE, _EXP]
    basis, shapes = _alternate(seen, view, clip_of, code[:, columns], synth["offset"])
    basis = _one_sided(basis, shapes.mean(0))
    model = FaceModel((shapes.mean(0) * CM).astype(np.float32), (basis * CM).astype(np.float32))
    return model, lip, _canonical_synth(synth, model, code, shapes * CM, view)


def _head_plane(synth: Arrays) -> tuple[F64, F64]:
    """Landmarks (F, 152, 2) on the camera plane in cm about the pivot, and view rows (F, 2, 3)."""
    clip_of = synth["clip_of_frame"]
    scale = synth["scale_px_per_cm"].astype(np.float64)[clip_of, None]
    shift = synth["translation_px"].astype(np.float64)
    landmarks = synth["landmarks"].astype(np.float64)
    view = rotation(synth["pose"])[:, :2]
    seen = np.stack(
        [
            (landmarks[..., 0] - shift[:, None, 0]) / scale,
            -(landmarks[..., 1] - shift[:, None, 1]) / scale,
        ],
        -1,
    )
    return seen - (view @ PIVOT_CM)[:, None], view


def _eye_codes(synth: Arrays) -> F64:
    names = [str(n) for n in synth["expression_names"]]
    macro = synth["expression_macro"].astype(np.float64) @ synth["macro_to_expression"]
    wide = macro[:, [names.index("eyeWide_R"), names.index("eyeWide_L")]]
    closure = synth["closure"].astype(np.float64)
    gaze = synth["gaze_deg"].astype(np.float64) / GAZE_UNIT_DEG
    return np.concatenate([closure, gaze, wide], 1)


def _expression_codes(synth: Arrays) -> F64:
    names = [str(n) for n in synth["expression_names"]]
    macro = synth["expression_macro"].astype(np.float64) @ synth["macro_to_expression"]
    return macro[:, [names.index(n) for n in EXPRESSION_NAMES]]


def _alternate(
    seen: F64, view: F64, clip_of: NDArray[np.int64], codes: F64, offset: NDArray[np.int32]
) -> tuple[F64, F64]:
    """Least squares for basis (R, 152, 3) and neutral heads (C, 152, 3), eight rounds."""
    dims = codes.shape[1]
    basis = np.zeros((dims, seen.shape[1], 3))
    shapes = np.zeros((len(offset) - 1, seen.shape[1], 3))
    # Depth is the weak direction of one clip: hold it near the mean of all clips.
    prior_weight = np.diag([0.05, 0.05, 5.0])
    normal = np.zeros((dims * 3, dims * 3))
    rows = [(codes[:, :, None] * view[:, axis, None, :]).reshape(len(codes), -1) for axis in (0, 1)]
    for row in rows:
        normal += row.T @ row
    normal += np.eye(dims * 3) * 20.0
    for step in range(8):
        moved = np.einsum("fr,rkc->fkc", codes, basis)
        still = seen - np.einsum("fac,fkc->fka", view, moved)
        mean = shapes.mean(0)
        for i in range(len(shapes)):
            part = slice(offset[i], offset[i + 1])
            view_rows = view[part].reshape(-1, 3)
            observed = still[part].transpose(0, 2, 1).reshape(len(view_rows), -1)
            weight = prior_weight if step else np.eye(3) * 1e-3
            left = view_rows.T @ view_rows + weight
            shapes[i] = np.linalg.solve(left, view_rows.T @ observed + weight @ mean.T).T
        residual = seen - np.einsum("fac,fkc->fka", view, shapes[clip_of])
        right = sum(row.T @ residual[:, :, axis] for axis, row in enumerate(rows))
        basis = np.linalg.solve(normal, right).reshape(dims, 3, -1).transpose(0, 2, 1)
    return basis, shapes


def _lip_basis(names: list[str], speech: F64, basis: F64, mirror: NDArray[np.int16]) -> LipBasis:
    """Principal directions of speech geometry, each symmetric or antisymmetric, unit variance."""
    perm = [names.index(_swap_side(n)) for n in names]
    flipped = basis[:, mirror] * (-1.0, 1.0, 1.0)
    basis = (basis + flipped[perm]) / 2
    both = np.concatenate([speech, speech[:, perm]])
    lips = np.r_[GROUPS["oval"], GROUPS["lips_outer"], GROUPS["lips_inner"]]
    spread = (basis[:, lips] * 1.0).reshape(len(names), -1)
    covariance = both.T @ both / len(both)
    values, vectors = np.linalg.eigh(spread.T @ covariance @ spread)
    top = vectors[:, ::-1][:, : DIMS["lip"]]
    matrix = spread @ top / np.sqrt(np.maximum(values[::-1][: DIMS["lip"]], 1e-9))
    return LipBasis(names, matrix)


def _one_sided(basis: F64, mean: F64) -> F64:
    """Left and right shapes that were always driven together are split at the face's middle."""
    out = basis.copy()
    at_right = 1 / (1 + np.exp(-mean[:, 0] / 0.4))[:, None]
    eye = DIMS["lip"]
    pairs = [(eye + 1, eye), (eye + 5, eye + 4)]
    exp = eye + DIMS["eye"]
    for i, name in enumerate(EXPRESSION_NAMES):
        if name.endswith("_L"):
            pairs.append((exp + i, exp + EXPRESSION_NAMES.index(_swap_side(name))))
    for right, left in pairs:
        both = basis[right] + basis[left]
        out[right], out[left] = both * at_right, both * (1 - at_right)
    return out


def _canonical_synth(
    synth: Arrays, model: FaceModel, code: F64, shapes: F64, view: F64
) -> Labelled:
    clip_of, offset = synth["clip_of_frame"], synth["offset"]
    clips = len(offset) - 1
    transform = np.zeros((clips, 2, 3), np.float32)
    for i in range(clips):
        mean = synth["landmarks"][offset[i] : offset[i + 1]].mean(0)
        transform[i] = canonical_transform(crop_points(mean), 1)
    landmarks = _map_landmarks(transform[clip_of], synth["landmarks"])
    linear = transform[:, :, :2].astype(np.float64)
    zoom = np.sqrt(np.linalg.det(linear))
    # The crop turns the image plane; y is down there, hence the sign.
    angle = -np.arctan2(linear[:, 1, 0], linear[:, 0, 0])
    plane = rotation(np.stack([np.zeros(clips), np.zeros(clips), angle], -1))
    turned = plane[clip_of] @ rotation(synth["pose"])
    code[:, 0 + DIMS["lip"] : 3 + DIMS["lip"]] = euler(turned)
    scale = zoom * synth["scale_px_per_cm"] / CM
    code[:, FACTOR_SLICES["pose"]][:, 5] = np.log(scale)[clip_of]
    pivot = (view @ PIVOT_CM) * (1, -1) * synth["scale_px_per_cm"][clip_of, None]
    pivot = pivot + synth["translation_px"]
    mapped = (
        np.einsum("fab,fb->fa", transform[clip_of][:, :, :2], pivot) + transform[clip_of][:, :, 2]
    )
    code[:, FACTOR_SLICES["pose"]][:, 3:5] = mapped - CANONICAL_ORIGIN
    return Labelled(transform, landmarks, code.astype(np.float32), shapes.astype(np.float32))


def _map_landmarks(
    transform: NDArray[np.float32], landmarks: NDArray[np.float32]
) -> NDArray[np.float32]:
    mapped = np.einsum("fab,fkb->fka", transform[:, :, :2], landmarks) + transform[:, None, :, 2]
    return np.asarray(mapped, np.float32)


# --- measured clips -----------------------------------------------------------------


def blendshape_prior(names: list[str], scores: F64, lip: LipBasis, *, rest: F64) -> F64:
    """Measured blendshapes (F, 52) -> rough codes (F, 58) without pose; `rest` (52) is neutral."""
    column = {n: i for i, n in enumerate(names)}

    def measured(name: str) -> F64:
        arkit = name.replace("_L", "Left").replace("_R", "Right")
        if arkit.startswith(("browInnerUp", "cheekPuff")):
            arkit = arkit.removesuffix("Left").removesuffix("Right")
        if arkit not in column:
            return np.zeros(len(scores))
        return np.asarray(np.clip(scores[:, column[arkit]] - rest[column[arkit]], 0, 1))

    code = np.zeros((len(scores), CODE_DIM))
    gain = [1.3 if n == "jawOpen" else 1.0 for n in lip.names]
    speech = np.stack([measured(n) * g for n, g in zip(lip.names, gain, strict=True)], 1)
    code[:, _LIP] = speech @ lip.matrix
    eye = code[:, _EYE]
    eye[:, 0] = np.clip(measured("eyeBlink_R") * 1.6, 0, 1)
    eye[:, 1] = np.clip(measured("eyeBlink_L") * 1.6, 0, 1)
    return code


def solve_pose(model: FaceModel, landmarks: F64, shape: F64, start: F64 | None = None) -> F64:
    """Pose (F, 6) of deformed heads (F, 152, 3) seen at `landmarks` (F, 152, 2); Gauss-Newton."""
    count = len(landmarks)
    pose = np.zeros((count, 6)) if start is None else start.copy()
    target = (landmarks - CANONICAL_ORIGIN) * (1, -1)
    rigid = np.r_[GROUPS["nose"], GROUPS["eye_left"], GROUPS["eye_right"], 0:6, 12:25, 31:36]
    target, shape = target[:, rigid], shape[:, rigid]

    def seen(p: F64) -> F64:
        turned = np.einsum("fac,fkc->fka", rotation(p)[:, :2], shape) * np.exp(p[:, None, 5:6])
        return np.asarray(turned + p[:, None, 3:5] * (1, -1))

    for _ in range(6):
        base = seen(pose)
        jacobian = np.zeros((count, base[0].size, 6))
        for j in range(6):
            step = np.zeros(6)
            step[j] = 1e-4
            jacobian[:, :, j] = ((seen(pose + step) - base) / 1e-4).reshape(count, -1)
        left = np.einsum("fni,fnj->fij", jacobian, jacobian) + np.eye(6) * 1e-6
        right = np.einsum("fni,fn->fi", jacobian, (target - base).reshape(count, -1))
        pose = pose + np.linalg.solve(left, right[..., None])[..., 0]
    return pose


#: How much the inner lips' opening counts, in landmarks: 152 points share one ridge, and in a
#: short b, p or m the lips would stay apart.
CLOSURE = 12.0
_LOWER, _UPPER = (GROUPS["lips_inner"].start + np.array(k) for k in ((4, 5, 6), (14, 15, 16)))


def fit_codes(
    model: FaceModel, landmarks: F64, shape: F64, prior: F64, pose: F64, weight: F64,
    *, closure: float = CLOSURE,
) -> F64:  # fmt: skip
    """Ridge fit of lip, eye and expression codes (F, 52) to landmarks, given pose and head.

    The opening between the inner lips is one more measurement, with weight `closure` squared.
    """
    basis = model.basis.astype(np.float64)
    out = np.zeros((len(landmarks), basis.shape[0]))
    for begin in range(0, len(landmarks), 2000):
        part = slice(begin, begin + 2000)
        view = rotation(pose[part])[:, :2] * np.exp(pose[part, 5])[:, None, None]
        seen = (landmarks[part] - CANONICAL_ORIGIN - pose[part, None, 3:5]) * (1, -1)
        residual = (seen - np.einsum("fac,fkc->fka", view, shape[part])).reshape(len(seen), -1)
        design = np.einsum("fac,rkc->fkar", view, basis).reshape(len(seen), -1, basis.shape[0])
        left = np.matmul(design.transpose(0, 2, 1), design) + np.diag(weight)
        right = np.einsum("fnr,fn->fr", design, residual) + prior[part] * weight
        points = residual.reshape(len(seen), -1, 2)[..., 1]
        shapes = design.reshape(len(seen), -1, 2, basis.shape[0])[:, :, 1]
        gap = points[:, _UPPER].mean(1) - points[:, _LOWER].mean(1)
        opens = shapes[:, _UPPER].mean(1) - shapes[:, _LOWER].mean(1)
        left += closure**2 * opens[:, :, None] * opens[:, None]
        right += closure**2 * opens * gap[:, None]
        out[part] = np.linalg.solve(left, right[..., None])[..., 0]
    return out


#: Ridge weights of a code fit: landmark noise is about 1 px of 256, codes have these spreads.
_NOISE = (1.0 / 256) ** 2
_WEIGHTS = np.concatenate(
    [np.full(16, _NOISE / 1.0), np.full(2, _NOISE / 0.15), np.full(2, _NOISE / 0.25),
     np.full(2, _NOISE / 0.02), np.full(30, _NOISE / 0.02)]
)  # fmt: skip


def fit_clips(pack: Pack, model: FaceModel, lip: LipBasis) -> Labelled:
    """Codes of the measured clips; one neutral head per identity (the s1 folder is one person)."""
    clips = pack.clips
    offset = clips["offset"]
    count = len(offset) - 1
    clip_of = np.repeat(np.arange(count), np.diff(offset))
    person = [str(c).split("/")[1] if "/s1/" in str(c) else str(c) for c in clips["clip"]]
    names = [str(n) for n in clips["blendshape_names"]]
    scores = clips["blendshapes"].astype(np.float64)
    prior = np.zeros((len(scores), CODE_DIM))
    transform = np.zeros((count, 2, 3), np.float32)
    for i in range(count):
        part = slice(offset[i], offset[i + 1])
        rest = np.percentile(scores[part], 10, axis=0)
        prior[part] = blendshape_prior(names, scores[part], lip, rest=rest)
        mean = clips["landmarks"][part].mean(0)
        transform[i] = canonical_transform(crop_points(mean), 1)
    landmarks = _map_landmarks(transform[clip_of], clips["landmarks"])
    code, shapes = prior.copy(), np.zeros((count, *model.mean.shape))
    for who in sorted(set(person)):
        mine = [i for i in range(count) if person[i] == who]
        frames = np.concatenate([np.arange(offset[i], offset[i + 1]) for i in mine])
        code[frames], shapes[mine] = fit_person(model, landmarks[frames], prior[frames])
    return Labelled(transform, landmarks, code.astype(np.float32), shapes.astype(np.float32))


def fit_person(model: FaceModel, landmarks: NDArray[np.float32], prior: F64) -> tuple[F64, F64]:
    """All frames of one person: neutral head by averaging, then pose and codes per frame."""
    seen = landmarks.astype(np.float64)
    basis = model.basis.astype(np.float64)
    columns = np.r_[_LIP, _EYE, _EXP]
    code = prior.copy()
    shape = model.mean.astype(np.float64)
    pose = np.zeros((len(seen), 6))
    for _ in range(4):
        offsets = np.einsum("fr,rkc->fkc", code[:, columns], basis)
        pose = solve_pose(model, seen, shape + offsets)
        turn = rotation(pose)
        plane = (seen - CANONICAL_ORIGIN - pose[:, None, 3:5]) * (1, -1)
        plane /= np.exp(pose[:, 5])[:, None, None]
        depth = np.einsum("fc,fkc->fk", turn[:, 2], model.mean + offsets)[..., None]
        lifted = np.einsum("fkc,fcd->fkd", np.concatenate([plane, depth], -1), turn) - offsets
        shape = lifted.mean(0)
        shape[:, 2] = model.mean[:, 2]
    many = np.broadcast_to(shape, (len(seen), *shape.shape))
    for _ in range(2):
        code[:, columns] = fit_codes(model, seen, many, prior[:, columns], pose, _WEIGHTS)
        offsets = np.einsum("fr,rkc->fkc", code[:, columns], basis)
        pose = solve_pose(model, seen, shape + offsets, pose)
    code[:, FACTOR_SLICES["pose"]] = pose
    code[:, _EYE][:, [0, 1, 4, 5]] = np.clip(code[:, _EYE][:, [0, 1, 4, 5]], 0, 1.2)
    code[:, _EXP] = np.clip(code[:, _EXP], -0.2, 1.2)
    return code, shape


def fit_stills(pack: Pack, model: FaceModel, lip: LipBasis) -> Labelled:
    """Codes of the stills: a rough expression from the scores, pose from the landmarks."""
    stills = pack.stills
    names = [str(n) for n in stills["blendshape_names"]]
    scores = stills["blendshapes"].astype(np.float64)
    rest = np.percentile(scores, 10, axis=0)
    code = blendshape_prior(names, scores, lip, rest=rest)
    transform = np.stack([canonical_transform(crop_points(lm), 1) for lm in stills["landmarks"]])
    landmarks = _map_landmarks(transform, stills["landmarks"])
    columns = np.r_[_LIP, _EYE, _EXP]
    offsets = np.einsum("fr,rkc->fkc", code[:, columns], model.basis.astype(np.float64))
    pose = solve_pose(model, landmarks.astype(np.float64), model.mean + offsets)
    code[:, FACTOR_SLICES["pose"]] = pose
    code32 = code.astype(np.float32)
    shapes = np.zeros((len(code), *model.mean.shape), np.float32)
    for i in range(len(code)):
        shapes[i] = model.lift(landmarks[i], MotionCode.split(code32[i]))
    return Labelled(transform, landmarks, code32, shapes)
