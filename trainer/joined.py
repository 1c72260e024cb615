"""Several frame caches opened as one: `python -m trainer.joined OUT CACHE [CACHE ...]`.

OUT holds only `joined.json` (and links to the sound of the first cache that has any), so joining
costs nothing. A cache may be cut to some kinds of data: `CACHE:grid,still`. The first one decides
who is held out; those people are held out of the others too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "joined.json"
#: Files of the sound, which only one cache can give.
_SOUND = ("speech.npz", "mel*.npz")


class Rows:
    """Some rows of several arrays as one; a row is read when it is asked for."""

    def __init__(self, arrays: Sequence[NDArray[Any]], rows: Sequence[NDArray[np.int64]]) -> None:
        self._arrays = arrays
        self._which = np.repeat(np.arange(len(arrays)), [len(r) for r in rows])
        self._row = np.concatenate(rows)

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, row: int) -> NDArray[Any]:
        return np.asarray(self._arrays[self._which[row]][self._row[row]])


def parts_of(folder: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """The caches that a folder stands for, each with the kinds to take; () is all."""
    if not (folder / FILE).exists():
        return [(folder, ())]
    entries = json.loads((folder / FILE).read_text())
    return [((folder / e["cache"]).resolve(), tuple(e["kinds"])) for e in entries]


def cache_of(folder: Path) -> Path:
    """The cache that a user means: the folder, or `cache` in what `visavis prepare` wrote.

    Raises:
        ValueError: there is neither; the message says what to do.
    """
    for place in (folder, folder / "cache"):
        if (place / "labels.npz").exists() or (place / FILE).exists():
            return place
    if (folder / "report.txt").exists():
        raise ValueError(f"{folder} holds no cache: {folder / 'report.txt'} says why")
    raise ValueError(
        f"{folder} is no training cache; `visavis prepare` makes one, see trainer/DESIGN.md"
    )


def join(out: Path, caches: list[str]) -> None:
    """Write the folder `out` that stands for `caches` ("PATH" or "PATH:kind,kind"), each a cache
    or what `visavis prepare` wrote.

    Raises:
        ValueError: there is no such cache.
    """
    out.mkdir(parents=True, exist_ok=True)
    places, entries = [], []
    for name in caches:
        path, _, kinds = name.partition(":")
        cache = cache_of(Path(path))
        if (cache / FILE).exists():
            raise ValueError(f"{path} is joined itself: name what it was joined from")
        # Relative, so that the folders can move together.
        relative = os.path.relpath(cache.resolve(), out.resolve())
        places.append(relative)
        entries.append({"cache": relative, "kinds": kinds.split(",") if kinds else []})
    (out / FILE).write_text(json.dumps(entries, indent=1) + "\n")
    heard = [out / place for place in places if (out / place / "speech.npz").exists()]
    for pattern in _SOUND if heard else ():
        for file in heard[0].glob(pattern):
            link = out / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(file.resolve(), out.resolve()))


if __name__ == "__main__":
    import typer

    typer.run(join)
