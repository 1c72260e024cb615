"""`python -m trainer.voices OUT.npz --hours H --seed S`: write speech with mouth targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.checkpoint import open_checkpoint
from trainer.voices import espeak
from trainer.voices.corpus import write


def main(
    out: Path,
    hours: Annotated[float, typer.Option(help="Hours of speech.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Same seed, same texts and voices.")] = 0,
    held_out: Annotated[bool, typer.Option(help="The voices kept for measuring.")] = False,
    threads: Annotated[int, typer.Option(help="Worker threads.")] = 2,
) -> None:
    """Speak and write; about eight times faster than real speech on one core."""
    if not espeak.available():
        raise typer.BadParameter("espeak-ng is not installed: install the package espeak-ng")
    face = open_checkpoint().face
    count = write(out, face, hours=hours, seed=seed, held_out=held_out, threads=threads)
    print(f"{count} utterances in {out}")


if __name__ == "__main__":
    typer.run(main)
