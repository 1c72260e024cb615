"""What is measured: a fixed, seeded choice among identities that nobody trained on.

Clips come from the held-out part of the cache (`FrameCache.split`): sentences of GRID,
its two unseen speakers, unseen synthetic identities; portraits are bundled ones and unseen
stills. The same seed always gives the same list.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.codes import EXPRESSION_NAMES, FACTOR_SLICES
from trainer.frames import FrameCache

T = TypeVar("T")
Kind = Literal["speech", "driven", "codes", "self", "swap", "exact"]
#: Which factor the variants of a synthetic clip differ in, by the end of their name.
VARIANTS = {"pose": "pose", "gaze": "eye", "expr": "exp"}
BUNDLED = Path(__file__).resolve().parents[2] / "web" / "portraits"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to render and measure.

    `speech`: the product speaks a real speaker's sentence. `driven`: the product follows a
    video in pose, eyes and expression. `codes`: the same without the product's pipeline,
    codes exactly as E_mot reads them. `self`: a clip redrawn from one of its own frames.
    `swap`: drivers `driver` and `other` on one portrait, with every single code swapped.
    `exact`: nothing is drawn; two synthetic clips that differ in one factor, to see what the
    measure itself confuses.
    """

    kind: Kind
    name: str
    driver: Path
    portrait: Path | None = None
    other: Path | None = None
    factor: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of each."""

    sentences: int
    speakers: int
    driven: int
    codes: int
    self_synth: int
    self_film: int
    swaps: int
    exact: int


QUICK = Counts(3, 2, 3, 2, 2, 2, 2, 1)
FULL = Counts(24, 2, 16, 16, 16, 10, 8, 6)


class SuiteError(RuntimeError):
    """The data for an evaluation is not there; the message says what is missing."""


def bundled_portraits() -> list[Path]:
    """The photographic portraits that ship with the project."""
    listing = json.loads((BUNDLED / "portraits.json").read_text())
    return [BUNDLED / entry["file"] for entry in listing if entry.get("made_from")]


def media(root: Path, clip: str) -> Path | None:
    """File of a cache's clip below a training pack or a prepared folder; None: not there."""
    places = (root / clip, root / "synth" / clip, root / "clips" / clip)
    return next((p for p in places if p.is_file()), None)


def build(cache: FrameCache, root: Path, counts: Counts, seed: int = 0) -> list[Item]:
    """The list of everything to render. Raises SuiteError where nothing is held out."""
    rng = np.random.default_rng(seed)
    test = cache.split().test
    film, people = _clips(cache, root, test, "grid"), _people(cache)
    rendered = _clips(cache, root, test, "synth")
    synth = {c: p for c, p in rendered.items() if "__" not in c}
    if not film and not synth:
        raise SuiteError(f"No held-out clip of the cache lies below {root}.")
    stills = list(_clips(cache, root, test, "still").values())
    portraits = [p for pair in zip(bundled_portraits(), _draw(rng, stills, 12), strict=False)
                 for p in pair] or bundled_portraits()  # fmt: skip
    known = _trained_people(cache, test)
    sentences = _draw(rng, [c for c in film if people[c] in known], counts.sentences)
    speakers = _draw(rng, [c for c in film if people[c] not in known], counts.speakers)
    items = []
    for i, clip in enumerate([*sentences, *speakers]):
        items.append(Item("speech", clip, film[clip], portraits[i % len(portraits)]))
    # A prepared folder has film only: then film moves the portraits.
    movers = synth or film
    lively = liveliest(cache, list(movers), max(counts.driven, 2 * counts.swaps, counts.codes))
    for kind, count in (("driven", counts.driven), ("codes", counts.codes)):
        for i, clip in enumerate(lively[:count]):
            portrait = portraits[(i + 2) % len(portraits)]
            items.append(Item("driven" if kind == "driven" else "codes", clip,
                              movers[clip], portrait))  # fmt: skip
    drawn = _draw(rng, list(synth), counts.self_synth)
    filmed = [*speakers, *_draw(rng, sentences, max(0, counts.self_film - len(speakers)))]
    for clip in [*drawn, *filmed[: counts.self_film]]:
        items.append(Item("self", clip, synth.get(clip) or film[clip]))
    for i in range(min(counts.swaps, len(lively) // 2)):
        a, b = lively[2 * i], lively[2 * i + 1]
        portrait = portraits[(i + 1) % len(portraits)]
        items.append(Item("swap", f"{a} x {b}", movers[a], portrait, movers[b]))
    for end, factor in VARIANTS.items():
        variants = [c for c in rendered if c.endswith(f"__{end}.mp4")]
        for clip in variants[: counts.exact]:
            base = rendered.get(clip.replace(f"__{end}", ""))
            if base is not None:
                items.append(Item("exact", clip, base, other=rendered[clip], factor=factor))
    return items


def _clips(cache: FrameCache, root: Path, rows: NDArray[np.int64], kind: str) -> dict[str, Path]:
    names = sorted({str(c) for c in cache.clip[rows][cache.kind[rows] == kind]})
    found = {name: media(root, name) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def _people(cache: FrameCache) -> dict[str, str]:
    names, first = np.unique(cache.clip, return_index=True)
    return {str(n): str(cache.person[i]) for n, i in zip(names, first, strict=True)}


def _trained_people(cache: FrameCache, test: NDArray[np.int64]) -> set[str]:
    train = np.setdiff1d(np.arange(len(cache.kind)), test)
    return {str(p) for p in np.unique(cache.person[train])}


def _draw(rng: np.random.Generator, things: list[T], count: int) -> list[T]:
    order = rng.permutation(len(things))[:count]
    return [things[i] for i in order]


def liveliest(cache: FrameCache, clips: list[str], count: int) -> list[str]:
    """Clips in turn by most smile, most gaze, most head motion, most blinking, so that a
    short list shows every factor moving. Rows of the cache are every third frame."""
    smile = [FACTOR_SLICES["exp"].start + EXPRESSION_NAMES.index(f"mouthSmile_{s}") for s in "LR"]
    eye, pose = FACTOR_SLICES["eye"].start, FACTOR_SLICES["pose"].start
    columns = (smile, [eye + 2, eye + 3], [pose, pose + 1, pose + 2], [eye, eye + 1])
    spread = {c: cache.code[cache.clip == c].std(0) for c in clips}
    orders = [
        sorted(clips, key=lambda c, k=list(cols): -float(spread[c][k].mean()))  # type: ignore[misc]
        for cols in columns
    ]
    out: list[str] = []
    while len(out) < min(count, len(clips)):
        order = orders[len(out) % len(orders)]
        out.append(next(c for c in order if c not in out))
    return out
