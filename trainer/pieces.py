"""Large files in small pieces, for ways home that take no large ones; checked when joined."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MIB = 1024 * 1024


class PieceError(ValueError):
    """A piece is missing or damaged; the message names it."""


def split(path: Path, folder: Path, limit: int = 16 * MIB) -> list[Path]:
    """Cut a file into pieces of at most `limit` bytes beside a list of them; returns all written.

    The list is written last: without it there is no whole set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces: list[dict[str, str]] = []
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(limit):
            piece = folder / f"{path.name}.{len(pieces):03d}"
            piece.write_bytes(data)
            whole.update(data)
            pieces.append({"name": piece.name, "sha256": hashlib.sha256(data).hexdigest()})
    listing = folder / f"{path.name}.json"
    listing.write_text(
        json.dumps({"name": path.name, "sha256": whole.hexdigest(), "pieces": pieces}, indent=1)
    )
    return [*(folder / p["name"] for p in pieces), listing]


def join(listing: Path, out: Path) -> Path:
    """Put the pieces named in `listing` (beside it) together as `out`.

    Raises:
        PieceError: one is missing or its hash differs; `out` is not touched.
    """
    told = json.loads(listing.read_text())
    fresh = out.with_name(out.name + ".new")
    whole = hashlib.sha256()
    out.parent.mkdir(parents=True, exist_ok=True)
    with fresh.open("wb") as file:
        for piece in told["pieces"]:
            path = listing.parent / piece["name"]
            if not path.exists():
                raise PieceError(f"{piece['name']} is missing")
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != piece["sha256"]:
                raise PieceError(f"{piece['name']} is damaged")
            file.write(data)
            whole.update(data)
    if whole.hexdigest() != told["sha256"]:
        raise PieceError(f"{told['name']} differs although all its pieces are whole")
    fresh.replace(out)
    return out
