"""Random access to the frame cache of `trainer.cache`, with label-exact augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS, EXPRESSION_NAMES, FACTOR_SLICES
from models.face import FaceModel, apply_transform, move_pose, warp_crop
from trainer.joined import Rows, parts_of

#: Pixels of a cached crop.
SIZE = 256
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
#: Kinds of data: rendered clips, filmed clips, single pictures.
KINDS = ("synth", "grid", "still")
#: Crop units to pixels of the cached frames.
WHOLE: F32 = np.array([[SIZE, 0, 0], [0, SIZE, 0]], np.float32)
_TEXTS = ("kind", "clip", "person")
_NUMBERS = ("frame", "landmarks", "code", "shape")
_POSE, _EYE, _EXP = FACTOR_SLICES["pose"], FACTOR_SLICES["eye"], FACTOR_SLICES["exp"]


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers of the cache for training and for measuring, apart by identity."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


class _Part:
    """One folder of `trainer.cache` or `trainer.synthesis`, cut to some kinds of data."""

    def __init__(self, folder: Path, kinds: tuple[str, ...] = ()) -> None:
        with np.load(folder / "labels.npz", allow_pickle=False) as z:
            self.labels = {k: z[k] for k in (*_TEXTS, *_NUMBERS)}
            # Caches of `visavis prepare` say themselves what is held out.
            self.held_out: NDArray[np.bool_] | None = z.get("held_out")
        with np.load(folder / "face_model.npz", allow_pickle=False) as z:
            self.face = FaceModel(z["mean"], z["basis"])
            self.mirror: NDArray[np.int64] = z["landmark_mirror"].astype(np.int64)
        kind = self.labels["kind"]
        count = len(kind)
        self.rows = np.flatnonzero(np.isin(kind, kinds) if kinds else np.ones(count, bool))
        self.pixels = np.memmap(folder / "frames.u8", np.uint8, "r", shape=(count, SIZE, SIZE, 3))
        self.flow = _optional(folder / "flow.f16", np.float16, (count, SIZE, SIZE, 2))
        self.valid = _optional(folder / "validity.u8", np.uint8, (count, SIZE, SIZE))

    def test(self, seed: int) -> NDArray[np.bool_]:
        """(N,) what is held out of the whole folder."""
        if self.held_out is not None:
            return self.held_out
        kind, clip, person = (self.labels[k] for k in _TEXTS)
        return _drawn_split(kind, clip, person, seed)


class FrameCache:
    """Memory-mapped frames and their labels; safe to read from several threads.

    `folder` is a cache, or a folder of `trainer.joined` that stands for several. `pixels` gives
    a frame (256, 256, 3) for a row number.
    """

    def __init__(self, folder: Path) -> None:
        self._parts = [_Part(path, kinds) for path, kinds in parts_of(folder)]
        rows = [part.rows for part in self._parts]
        self._starts = np.cumsum([0, *(len(r) for r in rows)])
        first = self._parts[0]
        self.face, self.landmark_mirror = first.face, first.mirror
        for part in self._parts[1:]:
            if not np.allclose(part.face.basis, first.face.basis, atol=1e-6):
                raise ValueError("these caches have codes of different face models")
        if len(self._parts) == 1 and len(rows[0]) == len(first.pixels):
            self.pixels: NDArray[np.uint8] | Rows = first.pixels
        else:
            self.pixels = Rows([p.pixels for p in self._parts], rows)

        def label(name: str) -> NDArray[Any]:
            return np.concatenate([p.labels[name][p.rows] for p in self._parts])

        self.kind, self.clip, self.person = (label(k) for k in _TEXTS)
        self.frame = label("frame")
        self.landmarks: F32 = label("landmarks")
        self.code: F32 = label("code")
        self.shape: F32 = label("shape")
        self.lip_mirror = _lip_mirror(self.face, self.landmark_mirror)

    def dense(self, row: int) -> tuple[NDArray[np.float16], U8] | None:
        """Where every pixel of a rendered frame lies in its clip's first one, (256, 256, 2) crop
        units, and 255 where that is known, (256, 256); None where there is no such flow.
        """
        number = int(np.searchsorted(self._starts, row, "right")) - 1
        part = self._parts[number]
        if part.flow is None or part.valid is None or self.kind[row] != "synth":
            return None
        mine = part.rows[row - self._starts[number]]
        return np.asarray(part.flow[mine]), np.asarray(part.valid[mine])

    def has_flow(self, row: int) -> bool:
        """Whether `dense` knows this row."""
        part = self._parts[int(np.searchsorted(self._starts, row, "right")) - 1]
        return part.flow is not None and part.valid is not None and self.kind[row] == "synth"

    def split(self, seed: int = 7) -> Split:
        """Hold out 40 synthetic identities, 60 s1 clips, two other speakers and 60 stills.

        Never more than a third of what a small cache has. Of joined caches the first decides:
        whoever it holds out is held out of the others as well, and nobody else is, except by
        the other's own word.
        """
        first, *others = self._parts
        test = first.test(seed)
        unseen = _people(first, test)
        masks = [test[first.rows]]
        for part in others:
            person = np.array([Path(str(p)).stem for p in part.labels["person"]])
            mask = np.isin(person, list(unseen))
            if part.held_out is not None:
                mask |= part.held_out
            masks.append(mask[part.rows])
        held = np.concatenate(masks)
        return Split(np.flatnonzero(~held), np.flatnonzero(held))

    def unseen(self) -> frozenset[str]:
        """People nothing of whom may be trained on: file names of stills without ending."""
        return _people(self._parts[0], self._parts[0].test(7))


def _people(part: _Part, test: NDArray[np.bool_]) -> frozenset[str]:
    """Whoever is held out with all their rows."""
    person = part.labels["person"]
    names = np.setdiff1d(person[test], person[~test])
    return frozenset(Path(str(name)).stem for name in names)


def _drawn_split(
    kind: NDArray[np.str_], clip: NDArray[np.str_], person: NDArray[np.str_], seed: int
) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    test = np.zeros(len(kind), bool)
    for name, count in (("synth", 40), ("still", 60)):
        names = np.unique(person[kind == name])
        test |= np.isin(person, rng.choice(names, min(count, len(names) // 4), replace=False))
    s1 = np.unique(clip[(kind == "grid") & (person == "s1")])
    test |= np.isin(clip, rng.choice(s1, min(60, len(s1) // 4), replace=False))
    others = np.unique(person[(kind == "grid") & (person != "s1")])
    test |= np.isin(person, others[: min(2, len(others) // 3)])
    # A still whose identity is rendered in a held-out synthetic clip is held out too.
    held = {f"stills/{p}.jpg" for p in np.unique(person[test & (kind == "synth")])}
    return test | np.isin(clip, list(held))


def _optional(
    path: Path, dtype: type[np.generic], shape: tuple[int, ...]
) -> NDArray[np.generic] | None:
    return np.memmap(path, dtype, "r", shape=shape) if path.exists() else None


def _lip_mirror(face: FaceModel, landmark_mirror: NDArray[np.int64]) -> F32:
    """Sign of every lip dimension under a horizontal flip (each is symmetric or not)."""
    basis = face.basis[: DIMS["lip"]]
    flipped = basis[:, landmark_mirror] * np.array([-1, 1, 1], np.float32)
    return np.where((flipped * basis).sum((1, 2)) >= 0, 1.0, -1.0).astype(np.float32)


_EXP_MIRROR = [
    EXPRESSION_NAMES.index(n[:-1] + {"L": "R", "R": "L"}[n[-1]]) if n[-2:] in ("_L", "_R") else i
    for i, n in enumerate(EXPRESSION_NAMES)
]


def mirror_code(code: F32, lip_mirror: F32) -> F32:
    """Motion code (58,) of the horizontally flipped picture."""
    out = code.copy()
    out[: DIMS["lip"]] *= lip_mirror
    out[_POSE] *= np.array([-1, 1, -1, -1, 1, 1], np.float32)
    eye = code[_EYE]
    out[_EYE] = [eye[1], eye[0], -eye[2], eye[3], eye[5], eye[4]]
    out[_EXP] = code[_EXP][_EXP_MIRROR]
    return out


def move_code(code: F32, transform: F32) -> F32:
    """Motion code (58,) after a similarity (2, 3) of the crop, in crop units."""
    out = code.copy()
    out[_POSE] = move_pose(code[_POSE], transform)
    return out


def random_similarity(rng: np.random.Generator, *, zoom: float, angle: float, shift: float) -> F32:
    """Random similarity (2, 3) about the crop's centre, in crop units; arguments are maxima."""
    scale = np.exp(rng.uniform(-zoom, zoom))
    turn = rng.uniform(-angle, angle)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    offset = 0.5 - linear @ [0.5, 0.5] + rng.uniform(-shift, shift, 2)
    return np.concatenate([linear, offset[:, None]], 1).astype(np.float32)


def pixel_transform(transform: F32, size: int) -> F32:
    """The same similarity in pixels of an image of `size`."""
    out = transform.copy()
    out[:, 2] *= size
    return out


_NOISE = np.random.default_rng(0).normal(0, 16, (640, 640, 3)).astype(np.int16)


def degrade(rng: np.random.Generator, image: U8) -> U8:
    """Camera-like damage that moves nothing: light, colour, blur, noise, JPEG."""
    gain = rng.uniform(0.65, 1.25) * rng.uniform(0.88, 1.12, 3)
    ramp = np.arange(256)[:, None] / 255.0
    table = (ramp ** rng.uniform(0.75, 1.35) - 0.5) * gain * 255 + 127 + rng.uniform(-30, 30)
    out = np.asarray(cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)[None]), np.uint8)
    if rng.random() < 0.2:
        grey = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        keep = float(rng.uniform(0, 1))
        out = np.asarray(cv2.addWeighted(out, keep, grey, 1 - keep, 0), np.uint8)
    if rng.random() < 0.25:
        side = np.linspace(-1, 1, out.shape[1])[None, :, None] * rng.uniform(-40, 40)
        out = np.clip(out + side, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 2.0)), np.uint8)
    if rng.random() < 0.5:
        size = out.shape[0]
        x, y = rng.integers(0, 640 - size, 2)
        strength = int(rng.integers(1, 10))
        noise = _NOISE[y : y + size, x : x + size] * strength // 16
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.uniform(25, 90))]
        out = np.asarray(cv2.imdecode(cv2.imencode(".jpg", out, quality)[1], 1), np.uint8)
    return out


def augmented(
    cache: FrameCache, row: int, transform: F32, *, flip: bool, out: F32, size: int
) -> tuple[U8, F32, F32]:
    """One frame under a crop similarity, cut by `out` (crop units to pixels of `size`).

    Returns pixels (size, size, 3), landmarks (152, 2) in crop units and code (58,).
    """
    image: U8 = np.asarray(cache.pixels[row])
    landmarks, code = cache.landmarks[row], cache.code[row]
    if flip:
        image = np.ascontiguousarray(image[:, ::-1])
        landmarks = landmarks[cache.landmark_mirror].copy()
        landmarks[:, 0] = 1 - landmarks[:, 0]
        code = mirror_code(code, cache.lip_mirror)
    to_unit = np.array([[1 / SIZE, 0, 0], [0, 1 / SIZE, 0]], np.float32)
    whole = chain(out, chain(transform, to_unit))
    pixels = warp_crop(image, whole, size)
    return pixels, apply_transform(transform, landmarks), move_code(code, transform)


def augmented_flow(
    cache: FrameCache, row: int, transform: F32, *, flip: bool, size: int
) -> tuple[F32, F32]:
    """Backward flow to the clip's first frame (2, size, size) in crop units and its validity
    (1, size, size), under the same crop similarity for both frames.

    A row without flow gives zeros, valid nowhere.
    """
    known = cache.dense(row)
    if known is None:
        return np.zeros((2, size, size), np.float32), np.zeros((1, size, size), np.float32)
    flow = known[0].astype(np.float32)
    valid = known[1].astype(np.float32) / np.float32(255)
    if flip:
        flow = (flow[:, ::-1] * [-1, 1] + [1, 0]).astype(np.float32)
        valid = valid[:, ::-1]
    to_unit = np.array([[1 / SIZE, 0, 0], [0, 1 / SIZE, 0]], np.float32)
    whole = chain(chain(WHOLE * np.float32(size / SIZE), transform), to_unit)
    # Pixel centres lie at +.5; outside the picture nothing is valid.
    at = whole.copy()
    at[:, 2] += whole[:, :2] @ [0.5, 0.5] - 0.5
    held = cv2.warpAffine(np.ascontiguousarray(valid), at, (size, size), flags=cv2.INTER_LINEAR)
    moved = cv2.warpAffine(
        np.ascontiguousarray(flow), at, (size, size), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    origin = apply_transform(transform, np.asarray(moved.reshape(-1, 2), np.float32))
    sure = (held > 0.9).astype(np.float32)
    return origin.reshape(size, size, 2).transpose(2, 0, 1).copy(), sure[None]


def chain(a: F32, b: F32) -> F32:
    """Transform that applies b first."""
    row = np.array([[0, 0, 1]], np.float32)
    both = np.concatenate([a, row]) @ np.concatenate([b, row])
    return np.asarray(both[:2], np.float32)


def rarity(cache: FrameCache) -> NDArray[np.float64]:
    """How much more often a frame should be drawn: shut lids, open mouths and smiles are rare."""
    code = cache.code.astype(np.float64)
    lip, eye, exp = code[:, FACTOR_SLICES["lip"]], code[:, _EYE], code[:, _EXP]
    shut = np.clip(eye[:, :2].mean(1), 0, 1) ** 2
    opened = np.clip(lip[:, 0], 0, 3)
    moved = np.abs(exp).max(1)
    return np.asarray(1 + 8 * shut + opened + moved)


def shares(
    cache: FrameCache, rows: NDArray[np.int64], wanted: tuple[float, ...]
) -> NDArray[np.float64]:
    """Probability of each of `KINDS`; kinds that `rows` do not hold give theirs to the others."""
    held = [bool((cache.kind[rows] == kind).any()) for kind in KINDS]
    share = np.array(wanted) * held
    return np.asarray(share / share.sum())


@dataclass(frozen=True, slots=True)
class Pool:
    """Frames to draw from, rare ones more often; made once, read by several threads."""

    rows: NDArray[np.int64]
    running: NDArray[np.float64]
    """Cumulative share of each row, up to 1."""

    @staticmethod
    def weighted(rows: NDArray[np.int64], weight: NDArray[np.float64]) -> Pool:
        """Pool of some rows of the cache; `weight` is of all rows."""
        sums = np.cumsum(weight[rows])
        return Pool(rows, sums / sums[-1:])

    def draw(self, rng: np.random.Generator) -> int:
        """One row number."""
        return int(self.rows[np.searchsorted(self.running, rng.random())])
