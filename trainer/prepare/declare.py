"""Who allows what: every folder of videos says its licence, or nothing of it is used.

A `licence.toml` beside the videos, or in any folder above up to the one given to prepare::

    licence = "own recording"     # or "CC-BY-4.0", a contract's name, ...
    source = "filmed by us in our studio, May 2026"
    consent = true                # everybody who can be seen and heard agreed to training

It goes into the manifest word for word, and from there into a checkpoint's.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = "licence.toml"
TEMPLATE = """licence = "own recording"
source = "who made these videos, where and when"
consent = false   # true once everybody who is seen or heard agreed to training
"""


class LicenceError(ValueError):
    """A declaration is missing or says no; the message says what to write where."""


@dataclass(frozen=True, slots=True)
class Licence:
    """One folder's declaration."""

    licence: str
    source: str
    folder: str
    """Relative to the folder of all videos."""


def licence_of(video: Path, root: Path) -> Licence:
    """The nearest declaration at or above a video. Raises LicenceError."""
    folder = video.parent
    while True:
        if (folder / FILE).is_file():
            return read_licence(folder / FILE, root)
        if folder == root or folder == folder.parent:
            break
        folder = folder.parent
    raise LicenceError(
        f"{video.relative_to(root)}: no {FILE} in its folder or above. Write one:\n{TEMPLATE}"
    )


def read_licence(path: Path, root: Path) -> Licence:
    """Check one declaration. Raises LicenceError."""
    where = path.relative_to(root)
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise LicenceError(f"{where} cannot be read: {error}") from None
    for key in ("licence", "source"):
        if not isinstance(said.get(key), str) or not said[key].strip():
            raise LicenceError(f'{where}: say {key} = "...".')
    if said.get("consent") is not True:
        raise LicenceError(
            f"{where}: consent is not true. Use only videos of people who agreed to training."
        )
    return Licence(said["licence"], said["source"], str(path.parent.relative_to(root)))
