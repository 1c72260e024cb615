"""`python -m trainer.synthesis PACK OUT --identities N --frames M --seed S`: write shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.frames import FrameCache
from trainer.synthesis.drive import PLAIN, WIDE
from trainer.synthesis.stream import Order, Studio, write


def main(
    pack: Path,
    out: Path,
    identities: Annotated[int, typer.Option(help="People.")] = 100,
    frames: Annotated[int, typer.Option(help="Frames of each.")] = 40,
    seed: Annotated[int, typer.Option(help="Same seed, same frames.")] = 0,
    stride: Annotated[int, typer.Option(help="Every n-th frame of 25 a second.")] = 3,
    wide: Annotated[bool, typer.Option(help="Turn heads up to 30 degrees.")] = False,
    apart_from: Annotated[
        Path | None, typer.Option(help="A cache whose held-out people must stay unseen.")
    ] = None,
    unseen_of: Annotated[
        Path | None, typer.Option(help="Only people whom that cache holds out, to measure on.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Stop after this time.")] = float("inf"),
) -> None:
    """Fit stills of a pack and write them in motion, with exact labels."""
    order = Order(
        identities, frames, seed, stride, WIDE if wide else PLAIN,
        FrameCache(apart_from).unseen() if apart_from else (),
        FrameCache(unseen_of).unseen() if unseen_of else (), minutes,
    )  # fmt: skip
    dropped = write(Studio.open(pack), out, order)
    print("left out:", ", ".join(f"{n} {why}" for why, n in dropped.most_common()) or "none")


if __name__ == "__main__":
    typer.run(main)
