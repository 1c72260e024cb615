"""What networks were made from, so that a checkpoint's manifest says it and nothing else.

A folder of `visavis prepare` knows its licences; a run folder remembers, in `origins.json`, the
data of every cache it was trained on and of every checkpoint it began from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from models.checkpoint import open_checkpoint
from trainer.joined import parts_of

FILE = "origins.json"
Origin = dict[str, str]
#: What the shipped weights were trained on; true of every cache of `trainer.cache`.
PACK: list[Origin] = [
    {"name": "GRID audio-visual sentence corpus, speaker s1 and others", "licence": "CC-BY-4.0",
     "note": "Cooke, Barker, Cunningham, Shao, JASA 2006; licence known at second hand"},
    {"name": "clips of AI-generated faces re-rendered with ICT-FaceKit", "licence": "MIT"},
    {"name": "AI-generated stills (SFHQ-T2I, SFHQ)", "licence": "MIT"},
    {"name": "AI-generated stills (faker assets-person-portrait)", "licence": "CC0-1.0"},
    {"name": "labels by MediaPipe FaceLandmarker", "licence": "Apache-2.0"},
]  # fmt: skip


def of_cache(cache: Path) -> list[Origin]:
    """Data of a cache, or of all caches that a joined folder stands for."""
    found: list[Origin] = []
    for part, _ in parts_of(cache):
        manifest = part.resolve().parent / "manifest.json"
        said = json.loads(manifest.read_text()) if manifest.is_file() else {}
        if "labels" not in said:
            found += PACK
            continue
        found += [*said["data"], {"name": f"labels by {said['labels']}", "licence": "Apache-2.0"}]
    return _once(found)


def of_start(source: str) -> list[Origin]:
    """Data behind `--start`: a checkpoint folder, `shipped`, or a file in another run's folder.

    A `part=` before it is ignored: one part of a network carries what it learnt, too.
    """
    name = source.rpartition("=")[2]
    path = Path(name)
    if name == "shipped" or path.is_dir():
        checkpoint = open_checkpoint(None if name == "shipped" else path, verify=False)
        return list(checkpoint.manifest.get("data", []))
    return of_run(path.parent)


def of_run(folder: Path) -> list[Origin]:
    """What a run folder remembers; nothing if it is older than that."""
    path = folder / FILE
    return list(json.loads(path.read_text())) if path.is_file() else []


def remember(folder: Path, cache: Path, start: Sequence[str] = ()) -> None:
    """Add a cache and what a run begins from to what its folder remembers."""
    begun = [origin for source in start for origin in of_start(source)]
    every = _once([*of_run(folder), *of_cache(cache), *begun])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(every, indent=1) + "\n")


def behind(cache: Path, files: Iterable[Path]) -> list[Origin]:
    """Data of a checkpoint that is put together from `files` of runs on `cache`."""
    return _once([*of_cache(cache), *(o for file in files for o in of_run(file.parent))])


def _once(origins: Iterable[Origin]) -> list[Origin]:
    """The same list without repetitions, in its order."""
    kept: dict[str, Origin] = {}
    for origin in origins:
        kept.setdefault(json.dumps(origin, sort_keys=True), origin)
    return list(kept.values())
