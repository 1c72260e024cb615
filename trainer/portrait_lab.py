"""Make the bundled portraits: faces of nobody, morphed from several AI-generated stills.

Each new face takes its shape from the weighted mean of its parents' landmarks and its
skin, eyes and lips from their average after every parent was warped to that shape and
brought to the first parent's colours. Hair, clothes and background come from the first
parent alone (averaged hair is a ghost), warped to the new shape. The finest detail is the
first parent's, because averaging skin makes wax.

    python -m trainer.portrait_lab runs/cache web/portraits
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from models.face import GROUPS
from trainer.frames import FrameCache

SIZE = 512
BASE_WEIGHT = 0.34
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One portrait: its name and the stills it is made of, the first giving hair and clothes."""

    id: str
    name: str
    parents: tuple[str, ...]
    illustrated: bool = False


def recipes() -> list[Recipe]:
    """The portraits that ship, listed beside this file."""
    entries = json.loads((Path(__file__).parent / "portraits.json").read_text())
    return [Recipe(e["id"], e["name"], tuple(e["parents"]), e.get("illustrated", False)) for e in entries]


def dense_map(target: F32, source: F32) -> F32:
    """Thin-plate map (SIZE, SIZE, 2): for every pixel of the new face, where it comes from.

    Landmarks (152, 2) in [0, 1]; the frame's rim stays where it is.
    """
    side = np.linspace(0, 1, 9)
    rim = np.array([(x, y) for x in side for y in side if x in (0, 1) or y in (0, 1)])
    keep = np.r_[0:88, 98:152]
    places = np.concatenate([target[keep], rim])
    offsets = np.concatenate([source[keep] - target[keep], np.zeros_like(rim)])
    spline = RBFInterpolator(places, offsets, smoothing=1e-5)
    axis = (np.arange(128) + 0.5) / 128
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    coarse = spline(grid).reshape(128, 128, 2).astype(np.float32)
    fine = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.asarray((np.stack(np.meshgrid(axis, axis), -1) + fine) * SIZE - 0.5, np.float32)


def face_mask(landmarks: F32, feather: float) -> F32:
    """(SIZE, SIZE, 1) soft mask of the face inside its oval, a little below the hairline."""
    oval = landmarks[GROUPS["oval"]]
    centre = oval.mean(0)
    inner = centre + (oval - centre) * np.array([0.86, 0.86])
    inner[:, 1] = np.maximum(inner[:, 1], landmarks[GROUPS["brow_left"], 1].min() - 0.045)
    mask = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(mask, [np.round(inner * SIZE).astype(np.int32)], 1.0, lineType=cv2.LINE_AA)
    mask = np.asarray(cv2.GaussianBlur(mask, (0, 0), feather), np.float32)
    return mask[..., None]


def match_colours(image: F32, reference: F32, mask: F32) -> F32:
    """Give `image` (Lab) the mean and spread of `reference` inside the mask, and its shading."""
    weight = mask / mask.sum()
    out = image.copy()
    for channel in range(3):
        a, b = image[..., channel : channel + 1], reference[..., channel : channel + 1]
        ma, mb = (a * weight).sum(), (b * weight).sum()
        sa = np.sqrt((((a - ma) ** 2) * weight).sum()) + 1e-3
        sb = np.sqrt((((b - mb) ** 2) * weight).sum())
        out[..., channel : channel + 1] = (a - ma) * np.clip(sb / sa, 0.6, 1.6) + mb
    low = [cv2.GaussianBlur(x, (0, 0), 26) for x in (reference, out)]
    return np.asarray(out + 0.8 * (low[0] - low[1]), np.float32)


def blend(images: list[NDArray[np.uint8]], landmarks: list[F32]) -> NDArray[np.uint8]:
    """Morph parents (256, 256, 3) RGB into one new face (512, 512, 3) RGB."""
    share = np.array([BASE_WEIGHT] + [(1 - BASE_WEIGHT) / (len(images) - 1)] * (len(images) - 1))
    # The new shape leans on all parents; its outline stays near the hair that frames it.
    mean = np.einsum("p,pkc->kc", share, np.stack(landmarks)).astype(np.float32)
    lean = np.full((152, 1), 1.0, np.float32)
    lean[GROUPS["oval"]] = 0.35
    target = landmarks[0] + (mean - landmarks[0]) * lean
    warped = []
    for image, points in zip(images, landmarks, strict=True):
        large = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LANCZOS4)
        moved = cv2.remap(large, dense_map(target, points), None, cv2.INTER_CUBIC,
                          borderMode=cv2.BORDER_REFLECT_101)  # fmt: skip
        warped.append(cv2.cvtColor(moved.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    mask = face_mask(target, 14)
    matched = [warped[0]] + [match_colours(w, warped[0], mask) for w in warped[1:]]
    average = sum(s * w for s, w in zip(share, matched, strict=True))
    detail = warped[0] - cv2.GaussianBlur(warped[0], (0, 0), 2.2)
    smooth = cv2.GaussianBlur(average, (0, 0), 1.0)
    face = smooth + 0.75 * detail
    lab = warped[0] * (1 - mask) + face * mask
    lab[..., 0:1] += 0.45 * (lab[..., 0:1] - cv2.GaussianBlur(lab[..., 0:1], (0, 0), 1.6)[..., None])
    rgb = cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB)
    grain = np.random.default_rng(0).normal(0, 0.006, (SIZE, SIZE, 1)).astype(np.float32)
    return np.asarray(np.clip((rgb + grain) * 255 + 0.5, 0, 255), np.uint8)


def illustrate(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw a face (512, 512, 3) RGB as a poster: flat soft colours and ink lines.

    Ink is an extended difference of Gaussians (Winnemoeller, 2011) along smoothed
    luminance; colours are repeated bilateral filtering with lifted saturation, banded in
    lightness so that shading becomes a few soft steps.
    """
    flat = photo
    for _ in range(9):
        flat = np.asarray(cv2.bilateralFilter(flat, 9, 22, 7), np.uint8)
    lab = cv2.cvtColor(flat.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = lab[..., 0]
    step = 11.0
    nearest = np.round(light / step) * step
    lab[..., 0] = np.clip(nearest + step * 0.5 * np.tanh(2.2 * (light - nearest) / step * 2) * 0.9, 0, 100)
    lab[..., 0] = np.clip((lab[..., 0] - 50) * 1.08 + 55, 0, 100)
    lab[..., 1:] *= 1.35
    colours = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    grey = cv2.GaussianBlur(cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255, (0, 0), 0.8)
    narrow, wide = cv2.GaussianBlur(grey, (0, 0), 1.3), cv2.GaussianBlur(grey, (0, 0), 2.1)
    edge = narrow - 0.975 * wide
    ink = np.where(edge > 0.004, 1.0, 1 + np.tanh(38 * (edge - 0.004))).astype(np.float32)
    ink = np.clip(cv2.GaussianBlur(ink, (0, 0), 0.7), 0.12, 1)[..., None]
    paper = np.array([0.13, 0.10, 0.20], np.float32)
    drawn = colours * ink + paper * (1 - ink)
    return np.asarray(np.clip(drawn * 255 + 0.5, 0, 255), np.uint8)


def make(cache_dir: Path, out: Path) -> None:
    """Write one JPEG per recipe and `portraits.json`."""
    cache = FrameCache(cache_dir)
    rows = {str(c): i for i, c in enumerate(cache.clip) if cache.kind[i] == "still"}
    out.mkdir(parents=True, exist_ok=True)
    listed = []
    for recipe in recipes():
        chosen = [rows[f"stills/{p}.jpg"] for p in recipe.parents]
        face = blend([np.array(cache.pixels[r]) for r in chosen], [cache.landmarks[r] for r in chosen])
        if recipe.illustrated:
            face = illustrate(face)
        how = "illustration of a morph" if recipe.illustrated else "morph"
        file = f"{recipe.id}.jpg"
        cv2.imwrite(str(out / file), face[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])
        listed.append({"id": recipe.id, "name": recipe.name, "file": file,
                       "made_from": list(recipe.parents), "how": f"{how} of AI-generated faces"})  # fmt: skip
    (out / "portraits.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(make)
