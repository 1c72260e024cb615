"""What is measured: a fixed, seeded choice among identities that nobody trained on.

Clips come from the held-out part of the cache (`FrameCache.split`): sentences of GRID,
its two unseen speakers, unseen synthetic identities; portraits are bundled ones and unseen
stills. A clip counts for a factor only where its labels say that the factor moves in it, and
one clip stands for one person. The same seed always gives the same list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.truth import FLOORS, truth_of
from trainer.frames import FrameCache

T = TypeVar("T")
Kind = Literal["speech", "voice", "driven", "codes", "self", "swap", "exact"]
#: Change it when other things are chosen: results of different suites do not compare.
VERSION = 2
#: Which factor the variants of a synthetic clip differ in, by the end of their name.
VARIANTS = {"pose": "pose", "gaze": "eye", "expr": "exp"}
BUNDLED = Path(__file__).resolve().parents[2] / "web" / "portraits"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to render and measure; `driver` is the clip, or the sound of a voice.

    `speech`: the product speaks a real speaker's sentence. `voice`: one of a synthetic voice
    that no training heard (`spoken.py`). `driven`: the product follows a video in pose, eyes
    and expression. `codes`: the same without the product's pipeline, codes exactly as E_mot
    reads them. `self`: a clip redrawn from one of its own frames. `swap`: drivers `driver` and
    `other` on one portrait, with every single code swapped. `exact`: nothing is drawn; two
    synthetic clips that differ in one factor, to see what the measure itself confuses.
    """

    kind: Kind
    name: str
    driver: Path
    portrait: Path | None = None
    other: Path | None = None
    factor: str = ""
    signals: tuple[str, ...] = ()
    """Signals that the driver's labels say it moves; only these count for this item."""
    real: Path | None = None
    """A clip of the portrait's own person, to compare pictures with."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of each; `per_factor` is how many drivers every signal should have."""

    sentences: int
    speakers: int
    voices: int
    per_factor: int
    codes: int
    self_synth: int
    self_film: int
    swaps: int
    exact: int


QUICK = Counts(3, 2, 2, 2, 2, 2, 2, 3, 2)
FULL = Counts(10, 2, 6, 8, 6, 6, 6, 10, 6)


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
    """The list of everything to render but voices. Raises SuiteError where nothing is held out."""
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
    order = _draw(rng, list(movers), len(movers))
    moved = {clip: truth_of(cache, clip).moved for clip in order}
    chosen = choose(moved, people, counts.per_factor)
    for i, clip in enumerate(chosen):
        portrait = portraits[(i + 2) % len(portraits)]
        items.append(Item("driven", clip, movers[clip], portrait, signals=moved[clip]))
    for item in [i for i in items if i.kind == "driven"][: counts.codes]:
        items.append(replace(item, kind="codes"))
    drawn = _draw(rng, list(synth), counts.self_synth)
    filmed = [*speakers, *_draw(rng, sentences, max(0, counts.self_film - len(speakers)))]
    for clip in [*drawn, *filmed[: counts.self_film]]:
        items.append(Item("self", clip, synth.get(clip) or film[clip]))
    drivers = [*chosen, *(c for c in order if c not in chosen)]
    items += _swaps(drivers, movers, people, root, portraits, counts.swaps)
    every = _clips(cache, root, np.arange(len(cache.kind)), "synth")
    return items + _exact(rendered, every, counts.exact)


def choose(
    moved: Mapping[str, Sequence[str]], people: Mapping[str, str], per_factor: int
) -> list[str]:
    """As few clips as it takes for every signal to be moved by `per_factor` people, if it can.

    Greedy: the clip that moves most of what is still wanted comes next, in the given order
    where several do; one clip per person.
    """
    wanted = dict.fromkeys(FLOORS, per_factor)
    out: list[str] = []
    used: set[str] = set()
    while True:
        left = [c for c in moved if people[c] not in used]
        gain = {c: sum(wanted[s] > 0 for s in moved[c]) for c in left}
        best = max(left, key=lambda c: gain[c], default=None)
        if best is None or gain[best] == 0:
            return out
        out.append(best)
        used.add(people[best])
        for signal in moved[best]:
            wanted[signal] -= 1


def _swaps(
    drivers: Sequence[str],
    movers: Mapping[str, Path],
    people: Mapping[str, str],
    root: Path,
    portraits: Sequence[Path],
    count: int,
) -> list[Item]:
    """Pairs of drivers on a third person of whom a clip exists, else on any portrait."""
    clip_of = {people[c]: c for c in reversed(drivers)}
    known = [(p, root / "stills" / f"{p}.jpg") for p in reversed(list(clip_of))]
    known = [(p, still) for p, still in known if still.is_file()]
    out = []
    for i in range(min(count, len(drivers) // 2)):
        a, b = drivers[2 * i], drivers[2 * i + 1]
        thirds = [(p, s) for p, s in known if p not in (people[a], people[b])]
        portrait, real = portraits[(i + 1) % len(portraits)], None
        if thirds:
            person, portrait = thirds[i % len(thirds)]
            real = movers[clip_of[person]]
        out.append(Item("swap", f"{a} x {b}", movers[a], portrait, movers[b], real=real))
    return out


def _exact(unseen: Mapping[str, Path], every: Mapping[str, Path], count: int) -> list[Item]:
    """Pairs of synthetic clips that differ in one factor, `count` of each factor.

    They test the measure, which was trained on none of them: people that our networks know
    are taken where there are too few others.
    """
    items = []
    for end, factor in VARIANTS.items():
        variants = sorted((c for c in every if c.endswith(f"__{end}.mp4")),
                          key=lambda c: (c not in unseen, c))  # fmt: skip
        pairs = [(c, c.replace(f"__{end}", "")) for c in variants]
        for clip, base in [p for p in pairs if p[1] in every][:count]:
            items.append(Item("exact", clip, every[base], other=every[clip], factor=factor))
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
