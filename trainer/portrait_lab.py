"""Make the bundled portraits: faces of nobody.

A photographic face is blended from several AI-generated stills (its parents). Shape: the
mean of their landmarks. Skin, eyes and lips: every parent is warped to that shape and
given the common light and colours; coarse structure is averaged, fine structure comes
from one parent per region, because averaged skin is wax and averaged irises are fog. Hair,
clothes and background come from the first parent alone (averaged hair is a ghost), warped
to the new shape. Parents are 256 pixels wide; an optional super-resolution network adds
fine edges (Real-ESRGAN x4plus in ncnn's format, a tool of the makers, no dependency).

A drawn character (`trainer.portrait_art`) uses the mean proportions only.

    python -m trainer.portrait_lab PACK web/portraits [--upscaler FOLDER]
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from models.face import GROUPS, apply_transform, canonical_transform, crop_points
from trainer.portrait_art import LOOKS, draw

SIZE = 512
JPEG_QUALITY = 92
#: Width of shading, of coarse and of fine structure, in pixels of the new face.
SHADING_PX, COARSE_PX, FINE_PX = 26.0, 9.0, 2.0
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One portrait: the stills it is made of and which of them leads where.

    `parents[0]` gives hair, clothes and background; `eyes`, `mouth` and `skin` are indices
    of the parents whose fine structure is seen there. `light` is the share of the first
    parent's shading in the face, the rest is everybody's mean.
    """

    id: str
    name: str
    parents: tuple[str, ...]
    eyes: int = 0
    mouth: int = 0
    skin: int = 0
    light: float = 0.6
    drawn: bool = False


@dataclass(frozen=True, slots=True)
class Still:
    """One AI-generated face: (256, 256, 3) RGB and (152, 2) landmarks in its pixels."""

    image: U8
    landmarks_px: F32

    @property
    def canonical(self) -> F32:
        """Landmarks in the canonical crop, [0, 1]."""
        to_crop = canonical_transform(crop_points(self.landmarks_px), 1)
        return apply_transform(to_crop, self.landmarks_px)


def recipes() -> list[Recipe]:
    """The portraits that ship, listed beside this file."""
    entries = json.loads((Path(__file__).parent / "portraits.json").read_text())
    return [Recipe(**{**entry, "parents": tuple(entry["parents"])}) for entry in entries]


def load_stills(pack: Path, names: tuple[str, ...]) -> list[Still]:
    """Stills of a training pack by name; raises FileNotFoundError or KeyError."""
    with np.load(pack / "labels" / "stills.npz", allow_pickle=False) as labels:
        rows = {Path(str(name)).stem: i for i, name in enumerate(labels["still"])}
        landmarks = labels["landmarks_xy"].astype(np.float32) / float(labels["xy_scale"])
    stills = []
    for name in names:
        image = cv2.imread(str(pack / "stills" / f"{name}.jpg"))
        if image is None:
            raise FileNotFoundError(f"the pack has no readable stills/{name}.jpg")
        rgb = np.ascontiguousarray(image[..., ::-1]).astype(np.uint8)
        stills.append(Still(rgb, landmarks[rows[name]]))
    return stills


def blur(image: F32, px: float) -> F32:
    """Gaussian blur; keeps a last axis of one."""
    out = np.asarray(cv2.GaussianBlur(image, (0, 0), px), np.float32)
    return out.reshape(image.shape)


def dense_map(target: F32, source: F32) -> F32:
    """Thin-plate map (SIZE, SIZE, 2): for every pixel of the new face, where it comes from.

    Landmarks (152, 2) and result in crop units; a rim outside the picture stays put.
    """
    side = np.linspace(-0.1, 1.1, 9)
    ends = (side[0], side[-1])
    rim = np.array([(x, y) for x in side for y in side if x in ends or y in ends])
    keep = np.r_[0:88, 98:152]  # irises follow their lids
    places = np.concatenate([target[keep], rim])
    offsets = np.concatenate([source[keep] - target[keep], np.zeros_like(rim)])
    spline = RBFInterpolator(places, offsets, smoothing=1e-5)
    axis = (np.arange(128) + 0.5) / 128
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    coarse = spline(grid).reshape(128, 128, 2).astype(np.float32)
    fine = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    axis32 = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.asarray(np.stack(np.meshgrid(axis32, axis32), -1) + fine, np.float32)


def warp_to(target: F32, still: Still) -> F32:
    """The still warped so that its landmarks lie at `target`: (SIZE, SIZE, 3) Lab."""
    to_crop = canonical_transform(crop_points(still.landmarks_px), 1)
    back = np.asarray(cv2.invertAffineTransform(to_crop), np.float32)
    place = apply_transform(back, dense_map(target, still.canonical))
    large = cv2.resize(still.image, None, fx=2, fy=2, interpolation=cv2.INTER_LANCZOS4)
    # Hair that the frame cuts goes on upwards; elsewhere a mirror hides the missing rim best.
    above = 48
    large = cv2.copyMakeBorder(large, above, 0, 0, 0, cv2.BORDER_REPLICATE)
    source = np.asarray(place * 2 + np.array([-0.5, above - 0.5]), np.float32)
    moved = cv2.remap(
        large,
        np.ascontiguousarray(source[..., 0]),
        np.ascontiguousarray(source[..., 1]),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(cv2.cvtColor(moved.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def soft_polygon(points: F32, feather: float) -> F32:
    """(SIZE, SIZE, 1) mask of a polygon in crop units with a soft edge."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    cv2.fillPoly(mask, [np.round(points * SIZE).astype(np.int32)], 1.0, lineType=cv2.LINE_AA)
    return blur(mask, feather)[..., None]


def region(points: F32, grow: float, feather: float) -> F32:
    """Soft mask of the hull of some landmarks, grown about its centre."""
    centre = points.mean(0)
    hull = cv2.convexHull((centre + (points - centre) * grow).astype(np.float32))
    return soft_polygon(np.asarray(hull, np.float32)[:, 0], feather)


def face_mask(landmarks: F32) -> F32:
    """Soft mask of the face inside its oval, half-way from the brows to the hairline."""
    oval = landmarks[GROUPS["oval"]]
    centre = oval.mean(0)
    inner = centre + (oval - centre) * np.array([0.88, 0.93], np.float32)
    brow = min(landmarks[GROUPS[side], 1].min() for side in ("brow_left", "brow_right"))
    inner[:, 1] = np.maximum(inner[:, 1], brow - 0.55 * (brow - oval[:, 1].min()))
    return soft_polygon(inner, 11)


def common_light(warped: list[F32], mask: F32, light: float) -> list[F32]:
    """Give all parents the first one's mean colour and one common shading."""
    total = mask.sum()
    means = [(w * mask).sum((0, 1)) / total for w in warped]
    pairs = list(zip(warped, means, strict=True))
    spreads = [np.sqrt((((w - m) ** 2) * mask).sum((0, 1)) / total) for w, m in pairs]
    spread = np.mean(spreads, 0)
    even = [
        (w - m) * np.clip(spread / s, 0.7, 1.4) + means[0]
        for (w, m), s in zip(pairs, spreads, strict=True)
    ]
    # Blurred within the face only, or dark hair beside it would count as shadow.
    inside = mask**2
    norm = blur(inside, SHADING_PX) + 1e-3
    shading = [blur(np.asarray(w * inside, np.float32), SHADING_PX) / norm for w in even]
    wanted = light * shading[0] + (1 - light) * np.mean(shading, 0)
    return [
        np.asarray(w + 0.9 * (wanted - s), np.float32)
        for w, s in zip(even, shading, strict=True)
    ]  # fmt: skip


def meet(face: F32, outer: F32, mask: F32) -> F32:
    """Shift the face's colours smoothly so that it meets the outer picture at the seam."""
    gap = outer - face
    # Where they differ a lot there is hair over one of them: no guide to the skin's colour.
    trust = np.exp(-((gap / np.array([14, 12, 14], np.float32)) ** 2).sum(-1, keepdims=True))
    ring = np.asarray(4 * mask * (1 - mask) * trust, np.float32)
    pull = blur(np.asarray(gap * ring, np.float32), 30) / (blur(ring, 30) + 1e-3)
    return np.asarray(face + pull, np.float32)


def blend(stills: list[Still], recipe: Recipe) -> U8:
    """One new face (512, 512, 3) RGB from its parents; the canonical crop."""
    shapes = np.stack([still.canonical for still in stills])
    lean = np.ones((152, 1), np.float32)
    lean[GROUPS["oval"]] = 0.6  # the outline stays near the hair that frames it
    target = np.asarray(shapes[0] + (shapes.mean(0) - shapes[0]) * lean, np.float32)
    warped = [warp_to(target, still) for still in stills]
    outer, mask = warped[0], face_mask(target)
    lit = common_light(warped, mask, recipe.light)
    eyes = np.maximum(
        region(target[np.r_[36:46, 56:72]], 1.25, 7), region(target[np.r_[46:56, 72:88]], 1.25, 7)
    )
    mouth = region(target[112:152], 1.35, 8)
    skin = lit[recipe.skin]
    lead = skin + eyes * (lit[recipe.eyes] - skin) * (1 - mouth)
    lead = np.asarray(lead + mouth * (lit[recipe.mouth] - skin), np.float32)
    average = np.asarray(np.mean(lit, 0), np.float32)
    own = np.maximum(0.9 * eyes, 0.6 * mouth)
    half = 0.55 + 0.3 * np.maximum(eyes, mouth)
    coarse = (1 - own) * blur(average, COARSE_PX) + own * blur(lead, COARSE_PX)
    middle = (1 - half) * (blur(average, FINE_PX) - blur(average, COARSE_PX))
    middle = middle + half * (blur(lead, FINE_PX) - blur(lead, COARSE_PX))
    fine = lead - blur(lead, FINE_PX)
    face = meet(np.asarray(coarse + middle + fine, np.float32), outer, mask)
    lab = np.asarray(outer * (1 - mask) + face * mask, np.float32)
    rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return np.asarray(np.clip(rgb * 255 + 0.5, 0, 255), np.uint8)


class Upscaler:
    """Real-ESRGAN x4plus from a folder with `realesrgan-x4plus.param` and `.bin`."""

    def __init__(self, folder: Path) -> None:
        self._ncnn: Any = importlib.import_module("ncnn")
        self._net = self._ncnn.Net()
        self._net.opt.use_vulkan_compute = False
        for suffix, load in (("param", self._net.load_param), ("bin", self._net.load_model)):
            if load(str(folder / f"realesrgan-x4plus.{suffix}")):
                raise FileNotFoundError(f"no realesrgan-x4plus.{suffix} in {folder}")

    def __call__(self, image: U8) -> U8:
        """(512, 512, 3) RGB that holds 256 pixels' worth of detail -> sharper, same size."""
        small = cv2.resize(image, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
        planes = np.ascontiguousarray(small.astype(np.float32).transpose(2, 0, 1) / 255)
        extractor = self._net.create_extractor()
        extractor.input("data", self._ncnn.Mat(planes).clone())
        _, result = extractor.extract("output")
        large = np.clip(np.array(result).transpose(1, 2, 0) * 255 + 0.5, 0, 255).astype(np.uint8)
        return np.asarray(cv2.resize(large, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8)


def finish(blended: U8, sharper: U8 | None) -> U8:
    """Add the fine edges of `sharper` (its colours are not trusted), crispness and grain."""
    image = blended.astype(np.float32)
    if sharper is not None:
        fine = sharper.astype(np.float32)
        image = 0.4 * image + 0.6 * (fine + blur(image, 6) - blur(fine, 6))
    image = image + 0.35 * (image - blur(image, 1.2))
    grain = np.random.default_rng(0).normal(0, 1.3, (SIZE, SIZE, 1))
    return np.asarray(np.clip(image + grain + 0.5, 0, 255), np.uint8)


def mean_shape(stills: list[Still], mirror: NDArray[np.int64]) -> F32:
    """Symmetric mean (152, 2) of canonical landmarks; `mirror` is the row order of a flip."""
    mean = np.stack([still.canonical for still in stills]).mean(0)
    flipped = mean[mirror] * np.array([-1, 1]) + np.array([1, 0])
    return np.asarray((mean + flipped) / 2, np.float32)


def make(
    pack: Annotated[Path, typer.Argument(help="Training pack with stills/ and labels/.")],
    out: Annotated[Path, typer.Argument(help="Folder of the portraits.")],
    upscaler: Annotated[Path | None, typer.Option(help="Folder of the optional network.")] = None,
    only: Annotated[str | None, typer.Option(help="Make one portrait, list all.")] = None,
) -> None:
    """Write one JPEG per recipe and `portraits.json`."""
    sharpen = Upscaler(upscaler) if upscaler else None
    with np.load(pack / "labels" / "stills.npz", allow_pickle=False) as labels:
        mirror = labels["landmark_mirror_perm"].astype(np.int64)
    out.mkdir(parents=True, exist_ok=True)
    listed = []
    for recipe in recipes():
        file = f"{recipe.id}.jpg"
        how = "drawn over the mean proportions of AI-generated faces"
        if not recipe.drawn:
            how = "blended from AI-generated faces: mean shape, mixed texture, hair of the first"
        listed.append(
            {"id": recipe.id, "name": recipe.name, "file": file,
             "made_from": list(recipe.parents), "how": how}
        )  # fmt: skip
        if only not in (None, recipe.id):
            continue
        stills = load_stills(pack, recipe.parents)
        if recipe.drawn:
            image = draw(mean_shape(stills, mirror), LOOKS[recipe.id])
        else:
            blended = blend(stills, recipe)
            image = finish(blended, sharpen(blended) if sharpen else None)
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        cv2.imwrite(str(out / file), image[..., ::-1], quality)
    (out / "portraits.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(make)
