"""Who is who: by folder, or by face; and who is held out.

By folder is the safe way: the first folder below the given one is the person, a file
that lies in no folder is a person of its own. By face groups clips whose mean E_app
vectors are close (single linkage). That vector was not trained to know people: it finds
the same person again in the same room and light, and takes the same person elsewhere for
another. The error is on the safe side for training, not for the split, so the report
names folders whose faces look like one person.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
#: Cosine distance of E_app's vectors below which two clips show one person; on held-out
#: frames of the training pack every pair of one clip lies below it, every other pair above.
SAME_PERSON = 0.0027
#: Share of people (else of clips) that are never trained on.
HELD_OUT = 0.1


def by_folder(video: Path, root: Path) -> str:
    """Person of a video below `root`."""
    inside = video.relative_to(root)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def by_face(vectors_ND: F64, threshold: float = SAME_PERSON) -> NDArray[np.int64]:
    """Group number of every vector; groups are connected by distances below `threshold`."""
    count = len(vectors_ND)
    group = np.arange(count)
    if count == 0:
        return group
    near = distances(vectors_ND) < threshold
    for i in range(count):
        for j in np.flatnonzero(near[i, :i]):
            group[group == group[i]] = group[j]
    return np.unique(group, return_inverse=True)[1]


def distances(vectors_ND: F64) -> F64:
    """Cosine distances (N, N)."""
    unit = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-9)
    return np.asarray(1 - unit @ unit.T)


def look_alike(people: Sequence[str], vectors_ND: F64) -> list[tuple[str, str]]:
    """Pairs of differently named people whose clips look like one person."""
    near = distances(vectors_ND) < SAME_PERSON
    pairs = {
        (min(people[i], people[j]), max(people[i], people[j]))
        for i, j in zip(*np.nonzero(near), strict=True)
        if people[i] != people[j]
    }
    return sorted(pairs)


def held_out(people: Sequence[str], clips: Sequence[str], seed: int = 7) -> list[bool]:
    """Per clip whether it is held out: whole people where there are at least four, else clips.

    The split is by identity wherever it can be; with one to three people it can only be by
    clip, and figures on it say nothing about strangers.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(people))
    if len(names) >= 4:
        chosen = set(rng.choice(names, max(1, round(HELD_OUT * len(names))), replace=False))
        return [p in chosen for p in people]
    order = sorted(set(clips))
    if len(order) < 2:
        return [False] * len(clips)
    chosen = set(rng.choice(order, max(1, round(HELD_OUT * len(order))), replace=False))
    return [c in chosen for c in clips]
