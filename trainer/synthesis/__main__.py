"""`python -m trainer.synthesis PACK OUT --identities N --frames M --seed S`: write shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.synthesis.stream import Studio, write


def main(
    pack: Path,
    out: Path,
    identities: Annotated[int, typer.Option(help="People.")] = 100,
    frames: Annotated[int, typer.Option(help="Frames of each.")] = 40,
    seed: Annotated[int, typer.Option(help="Same seed, same frames.")] = 0,
) -> None:
    """Fit stills of a pack and write them in motion, with exact labels."""
    dropped = write(Studio.open(pack), out, identities=identities, frames=frames, seed=seed)
    print("left out:", ", ".join(f"{n} {why}" for why, n in dropped.most_common()) or "none")


if __name__ == "__main__":
    typer.run(main)
