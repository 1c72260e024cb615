"""Stage 2b's anchors: the eyes of one person in the face of another (METHOD.md section 3).

Each eye is moved by the similarity that brings its corners onto the other's, matched in
colour around the seam, and feathered in. Brows stay: they belong to the expression.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import FACTOR_SLICES
from models.config import ModelConfig
from models.face import GROUPS
from trainer.frames import KINDS, Pool, augmented, random_similarity, rarity
from trainer.loader import Make, Sample
from trainer.recipes.config import Stage2b
from trainer.stages.augment import augment
from trainer.stages.sampling import Data, crop_to

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
_EYE = FACTOR_SLICES["eye"]
_YAW = FACTOR_SLICES["pose"].start
#: Beyond this turn (radians) the far eye is too narrow to be moved to another face.
MAX_YAW = 0.45
#: How far the patch reaches beyond the lids, in halves of the eye's width.
REACH_X, REACH_UP, REACH_DOWN = 1.35, 0.8, 0.75
_TRIES = 12


def corner_similarity(origin_22: F32, target_22: F32) -> F32:
    """Similarity (2, 3) that maps two points onto two points."""
    a = complex(*(origin_22[1] - origin_22[0]))
    b = complex(*(target_22[1] - target_22[0]))
    turn = b / a
    linear = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return np.concatenate([linear, (target_22[0] - linear @ origin_22[0])[:, None]], 1).astype(
        np.float32
    )


def eye_mask(landmarks: F32, name: str, size: int) -> F32:
    """Soft mask (size, size) of one eye's surroundings, brows cut out."""
    ring = landmarks[GROUPS[name]] * size
    left, right = ring[:, 0].argmin(), ring[:, 0].argmax()
    centre = (ring[left] + ring[right]) / 2
    half = max(float(np.linalg.norm(ring[right] - ring[left])) / 2, 3.0)
    tilt = float(np.degrees(np.arctan2(*(ring[right] - ring[left])[::-1])))
    mask = np.zeros((size, size), np.uint8)
    middle = (float(centre[0]), float(centre[1] + half * (REACH_DOWN - REACH_UP) / 2))
    axes = (2 * half * REACH_X, half * (REACH_UP + REACH_DOWN))
    cv2.ellipse(mask, (middle, axes, tilt), 255, -1)
    brow = landmarks[GROUPS[name.replace("eye", "brow")]] * size
    hull = cv2.convexHull(np.round(brow).astype(np.int32))
    cut = np.zeros_like(mask)
    cv2.fillConvexPoly(cut, hull, 255)
    mask[cv2.dilate(cut, np.ones((3, 3), np.uint8)) > 0] = 0
    inner = cv2.erode(mask, np.ones((5, 5), np.uint8))
    soft = cv2.GaussianBlur(inner, (0, 0), max(half * 0.14, 1.5))
    return np.asarray(soft, np.float32) / np.float32(255)


def match_colour(patch: F32, face: F32, ring: F32) -> F32:
    """`patch` with the face's mean and contrast per channel, measured on the ring's weights."""
    total = float(ring.sum()) + 1e-6
    weight = ring[..., None] / total
    mean_p, mean_f = (patch * weight).sum((0, 1)), (face * weight).sum((0, 1))
    dev_p = np.sqrt(((patch - mean_p) ** 2 * weight).sum((0, 1))) + 4
    dev_f = np.sqrt(((face - mean_f) ** 2 * weight).sum((0, 1))) + 4
    gain = np.clip(dev_f / dev_p, 0.6, 1.6)
    return np.asarray((patch - mean_p) * gain + mean_f, np.float32)


def compose_eyes(donor: U8, donor_points: F32, face: U8, face_points: F32) -> U8:
    """The face with the donor's eyes; pictures (S, S, 3), landmarks (152, 2) in crop units."""
    size = face.shape[0]
    out = face.astype(np.float32)
    for name in ("eye_left", "eye_right"):
        ring = GROUPS[name]
        corners = [
            points[ring][[points[ring][:, 0].argmin(), points[ring][:, 0].argmax()]] * size
            for points in (donor_points, face_points)
        ]
        move = corner_similarity(corners[0], corners[1])
        moved = cv2.warpAffine(
            donor, move, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ).astype(np.float32)
        mask = eye_mask(face_points, name, size)
        # The ring where both pictures meet: there they must agree.
        ring_weight = mask * (1 - mask)
        matched = match_colour(moved, out, ring_weight)
        out += mask[..., None] * (matched - out)
    return np.asarray(np.clip(out + 0.5, 0, 255), np.uint8)


def eye_triples(data: Data, recipe: Stage2b, config: ModelConfig) -> Make:
    """A function rng -> frame 1, frame 2 of another person, and 2 with the eyes of 1.

    Their eye codes differ by at least `apart`, otherwise there would be nothing to tell.
    """
    frames = data.frames
    weight = rarity(frames)
    pools = {
        kind: Pool.weighted(rows, weight)
        for kind in KINDS
        if len(rows := data.train[frames.kind[data.train] == kind])
    }
    kinds = list(pools)
    share = np.array([{"synth": 0.65, "grid": 0.2, "still": 0.15}[k] for k in kinds])
    share /= share.sum()
    out = crop_to(config.image_size)

    def draw(rng: np.random.Generator) -> int:
        return pools[str(rng.choice(kinds, p=share))].draw(rng)

    def make(rng: np.random.Generator) -> Sample:
        one, two = draw(rng), draw(rng)
        for _ in range(_TRIES):
            gap = np.abs(frames.code[one][_EYE][:4] - frames.code[two][_EYE][:4]).sum()
            turned = np.abs(frames.code[[one, two], _YAW]).max() > MAX_YAW
            apart = gap >= recipe.apart and frames.person[one] != frames.person[two]
            if apart and not turned:
                break
            one, two = draw(rng), draw(rng)
        zoom, angle, shift = recipe.augment.similarity
        seen = []
        for row in (one, two):
            move = random_similarity(rng, zoom=zoom, angle=angle, shift=shift)
            flip = bool(rng.random() < 0.5)
            seen.append(augmented(frames, row, move, flip=flip, out=out, size=config.image_size))
        anchor = compose_eyes(seen[0][0], seen[0][1], seen[1][0], seen[1][1])
        trust = [{"synth": 1.0, "grid": 0.5, "still": 0.0}[str(frames.kind[r])] for r in (one, two)]
        pictures = [augment(rng, p, recipe.augment) for p in (seen[0][0], seen[1][0], anchor)]
        return {
            "face": np.stack(pictures),
            "eye": np.stack([s[2][_EYE] for s in seen]),
            "trust": np.array(trust, np.float32),
        }

    return make
