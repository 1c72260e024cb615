"""Which stills of a pack can be moved, and the measured reasons why the others cannot."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.face import (
    GROUPS,
    FaceModel,
    apply_transform,
    canonical_transform,
    crop_points,
    lip_gap,
    warp_crop,
)
from trainer.packs import Arrays
from trainer.synthesis.actor import SIZE, Actor, Rig, make_actor
from trainer.synthesis.fit import blendshape_prior, refine
from trainer.synthesis.head import Head, read_head

F64 = NDArray[np.float64]
_LID_PAIRS = ((59, 69), (75, 85))


@dataclass(frozen=True, slots=True)
class Limits:
    """A still beyond any of these is left out."""

    yaw_deg: float = 20.0
    pitch_deg: float = 16.0
    roll_deg: float = 14.0
    lip_gap: float = 0.02
    smile: float = 0.4
    aperture: float = 0.14
    fit_px: float = 3.0
    solidity: float = 0.93
    """Share of its convex hull that the head's outline must fill: bites are hair taken for
    background."""
    crown: float = 0.18
    """How far the outline must reach above the hairline, in face heights: hair that stays behind
    when the head turns is worse than no picture."""


def read_stills(root: Path) -> Arrays:
    """Labels of the stills alone: blendshapes 0..1, pose in radians, landmarks in pixels."""
    with np.load(root / "labels" / "stills.npz", allow_pickle=False) as z:
        out: Arrays = {k: z[k] for k in z.files}
    out["blendshapes"] = out["blendshapes"].astype(np.float32) / 255
    out["pose"] = np.radians(out.pop("pose_ypr_deg").astype(np.float32))
    out["landmarks"] = out.pop("landmarks_xy").astype(np.float32) / float(out["xy_scale"])
    return out


def reject(stills: Arrays, row: int, limits: Limits) -> str | None:
    """Why a still cannot be used, from its labels alone; None if it can."""
    names = [str(n) for n in stills["blendshape_names"]]
    yaw, pitch, roll = np.abs(np.degrees(stills["pose"][row]))
    points = stills["landmarks"][row]
    smile = [stills["blendshapes"][row, names.index(f"mouthSmile{s}")] for s in ("Left", "Right")]
    if not stills["valid"][row]:
        return "no face"
    if yaw > limits.yaw_deg or pitch > limits.pitch_deg or roll > limits.roll_deg:
        return "turned away"
    if float(lip_gap(points)) > limits.lip_gap:
        return "mouth open"
    if max(smile) > limits.smile:
        return "smiling"
    for (low, high), eye in zip(_LID_PAIRS, (slice(56, 72), slice(72, 88)), strict=True):
        width = float(np.ptp(points[eye, 0]))
        if abs(float(points[low, 1] - points[high, 1])) < limits.aperture * width:
            return "eyes shut"
    return None


def crop_still(path: Path, landmarks: NDArray[np.float32]) -> tuple[NDArray[np.uint8], F64]:
    """Canonical crop (256, 256, 3) RGB of a still and its landmarks (152, 2) in that crop."""
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"{path} is not a picture")
    transform = canonical_transform(crop_points(landmarks), SIZE)
    crop = warp_crop(np.ascontiguousarray(image[..., ::-1]), transform, SIZE)
    return crop, apply_transform(transform, landmarks).astype(np.float64)


def calibrated_head(root: Path, stills: Arrays, face: FaceModel, *, count: int = 60) -> Head:
    """The pack's head with its landmarks placed by `count` near-frontal stills; half a minute."""
    head = read_head(root / "ict" / "ict_facekit.npz", face)
    names = [str(n) for n in stills["blendshape_names"]]
    rows = np.flatnonzero((np.abs(np.degrees(stills["pose"][:, 0])) < 15) & stills["valid"])
    chosen = np.random.default_rng(0).choice(rows, min(count, len(rows)), replace=False)
    pictures = [
        (stills["landmarks"][i].astype(np.float64),
         blendshape_prior(head, names, stills["blendshapes"][i]))
        for i in chosen
    ]  # fmt: skip
    return refine(head, pictures)


def solidity(actor: Actor) -> float:
    """How much of its convex hull the person's outline fills from the mouth upwards."""
    mouth = int(np.clip(actor.landmarks[GROUPS["lips_inner"], 1].mean(), 8, SIZE))
    shape = (actor.mask[:mouth] > 0.5).astype(np.uint8)
    outlines, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(outlines))
    return float(shape.sum() / max(cv2.contourArea(hull), 1.0))


def crown(actor: Actor) -> float:
    """How far the outline reaches above the face's oval, in face heights; 1 where hair leaves the
    picture.
    """
    oval = actor.landmarks[GROUPS["oval"]]
    middle, width = float(oval[:, 0].mean()), float(np.ptp(oval[:, 0]))
    columns = slice(max(int(middle - 0.25 * width), 0), max(int(middle + 0.25 * width), 1))
    mask = actor.mask[:, columns] > 0.5
    top = float(np.median(np.where(mask.any(0), mask.argmax(0), SIZE)))
    return 1.0 if top <= 2 else float((oval[:, 1].min() - top) / np.ptp(oval[:, 1]))


def actors(
    root: Path, stills: Arrays, rig: Rig, rows: list[int], limits: Limits, dropped: Counter[str]
) -> Iterator[tuple[str, Actor]]:
    """Usable stills of `rows` as (path in the pack, actor); `dropped` counts the reasons."""
    names = [str(n) for n in stills["blendshape_names"]]
    for row in rows:
        path = root / str(stills["still"][row])
        reason = None if path.exists() else "no picture"
        reason = reason or reject(stills, row, limits)
        if reason is None:
            crop, points = crop_still(path, stills["landmarks"][row])
            prior = blendshape_prior(rig.head, names, stills["blendshapes"][row])
            seed = zlib.crc32(str(stills["still"][row]).encode())
            actor = make_actor(rig, crop, points, prior, seed)
            if actor.fit.error_px >= limits.fit_px:
                reason = "bad fit"
            elif solidity(actor) < limits.solidity or crown(actor) < limits.crown:
                reason = "bad outline"
            else:
                yield str(stills["still"][row]), actor
                continue
        dropped[reason] += 1
