"""Endless synthetic training samples, or a folder of them that `FrameCache` opens.

A sample holds one still and frames of it in motion, as the stages' samplers return them:
pixels (1 + D, 256, 256, 3) uint8, landmarks (1 + D, 152, 2), code (1 + D, 58), shape (152, 3),
and besides flow (D, 256, 256, 2) in crop units of the still and validity (D, 256, 256).
Row 0 is the still itself.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES
from models.face import FaceModel
from trainer.loader import Sample
from trainer.packs import Arrays
from trainer.synthesis.actor import SIZE, Actor, Rig, make_rig, source_code
from trainer.synthesis.drive import PLAIN, Ranges, drive_clip
from trainer.synthesis.render import Drive, Frame, render
from trainer.synthesis.stills import Limits, actors, calibrated_head, read_stills
from trainer.voices.lips import LipModel

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Studio:
    """A pack's stills and everything needed to move them."""

    root: Path
    stills: Arrays
    rig: Rig
    lips: LipModel

    @staticmethod
    def open(root: Path) -> Studio:
        """Read a pack and calibrate its head; about a minute.

        Raises:
            FileNotFoundError: the pack has no `ict/ict_facekit.npz` or no `labels/stills.npz`.
        """
        face = open_checkpoint().face
        stills = read_stills(root)
        head = calibrated_head(root, stills, face)
        return Studio(root, stills, make_rig(head, face), LipModel.load())


def still_frame(actor: Actor) -> tuple[NDArray[np.uint8], F32, F32]:
    """Pixels, landmarks in crop units and code (58,) of the still itself."""
    code = np.zeros(CODE_DIM, np.float32)
    code[FACTOR_SLICES["pose"]] = source_code(actor.fit)
    both = np.mean([eye.gaze for eye in actor.eyes], 0)
    code[FACTOR_SLICES["eye"]][2:4] = both / np.radians(20.0)
    return actor.source.astype(np.uint8), (actor.landmarks / SIZE).astype(np.float32), code


def frames_of(
    rig: Rig,
    lips: LipModel,
    actor: Actor,
    seed: tuple[int, ...],
    count: int,
    *,
    stride: int = 1,
    ranges: Ranges | None = None,
) -> list[Frame]:
    """`count` frames of one clip, every `stride`-th of 25 fps."""
    r = ranges or PLAIN
    clip = drive_clip(seed, count * stride, lips, rig.face, r)
    return [render(rig, actor, within(drive, actor, r)) for drive in clip[::stride]]


def within(drive: Drive, actor: Actor, ranges: Ranges) -> Drive:
    """The same motion, kept inside what a head may do in all: stills are turned themselves."""
    most = np.radians(ranges.whole_deg)
    # A still beyond the limit may stay where it is.
    low, high = np.minimum(actor.fit.pose, -most), np.maximum(actor.fit.pose, most)
    turned = np.clip(actor.fit.pose + drive.turn, low, high)
    return replace(drive, turn=turned - actor.fit.pose)


def sample_of(actor: Actor, frames: list[Frame]) -> Sample:
    """One training sample of a still and its frames."""
    pixels, landmarks, code = still_frame(actor)
    return {
        "pixels": np.stack([pixels, *(f.pixels for f in frames)]),
        "landmarks": np.stack([landmarks, *(f.landmarks for f in frames)]),
        "code": np.stack([code, *(f.code for f in frames)]),
        "shape": actor.shape,
        "flow": np.stack([f.flow / np.float32(SIZE) for f in frames]),
        "validity": np.stack([f.validity for f in frames]),
    }


def stream(
    studio: Studio,
    rows: list[int],
    *,
    driving: int = 3,
    clips: int = 8,
    seed: int = 0,
    limits: Limits | None = None,
) -> Iterator[Sample]:
    """Endless samples: people in random order, `clips` samples of each before the next.

    Depends on `seed` and `rows` only. Frames of a sample are .5 s apart, so that they differ.

    Raises:
        ValueError: none of the stills can be used.
    """
    turn = 0
    while True:
        order = np.random.default_rng((seed, turn)).permutation(rows).tolist()
        found = 0
        people = actors(
            studio.root, studio.stills, studio.rig, order, limits or Limits(), Counter()
        )
        for number, (_, actor) in enumerate(people):
            found += 1
            for clip in range(clips):
                frames = frames_of(
                    studio.rig, studio.lips, actor, (seed, turn, number, clip), driving, stride=12
                )
                yield sample_of(actor, frames)
        if not found:
            raise ValueError("no still of these can be used")
        turn += 1


class _Shard:
    """Appends frames to a folder in the format of `trainer.cache`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._pixels = (folder / "frames.u8").open("wb")
        self._flow = (folder / "flow.f16").open("wb")
        self._valid = (folder / "validity.u8").open("wb")
        self._rows: dict[str, list[Any]] = {}

    def add(self, picture: Frame, **labels: Any) -> None:
        self._pixels.write(picture.pixels.tobytes())
        self._flow.write((picture.flow / np.float32(SIZE)).astype(np.float16).tobytes())
        self._valid.write((picture.validity * 255).astype(np.uint8).tobytes())
        for key, value in labels.items():
            self._rows.setdefault(key, []).append(value)

    def close(self, face: FaceModel, mirror: NDArray[np.int64]) -> None:
        for file in (self._pixels, self._flow, self._valid):
            file.close()
        columns: dict[str, Any] = {k: np.array(v) for k, v in self._rows.items()}
        np.savez(self.folder / "labels.npz", **columns)
        np.savez(
            self.folder / "face_model.npz", mean=face.mean, basis=face.basis, landmark_mirror=mirror
        )


@dataclass(frozen=True, slots=True)
class Order:
    """What to write: up to `identities` people, `frames` of each, every `stride`-th of 25 fps.

    `without` names people (file names of stills without ending) who must stay unseen, `only` the
    only ones to take (empty: all); `minutes` ends the work early, with whole people.
    """

    identities: int
    frames: int
    seed: int = 0
    stride: int = 3
    ranges: Ranges = PLAIN
    without: Collection[str] = ()
    only: Collection[str] = ()
    minutes: float = float("inf")


def write(studio: Studio, out: Path, order: Order) -> Counter[str]:
    """Write people in motion; returns why stills were dropped.

    `out` opens as a `FrameCache` (kind "synth"); `flow.f16` (N, 256, 256, 2) in crop units of
    the still and `validity.u8` (N, 256, 256) lie beside, one row per frame. The first row of
    every person is the still.
    """
    names = [Path(str(name)).stem for name in studio.stills["still"]]
    rows = np.random.default_rng(order.seed).permutation(len(names)).tolist()
    kept = [
        row for row in rows
        if names[row] not in order.without and (not order.only or names[row] in order.only)
    ]  # fmt: skip
    dropped: Counter[str] = Counter({"held out": len(rows) - len(kept)})
    shard = _Shard(out)
    people = actors(studio.root, studio.stills, studio.rig, kept, Limits(), dropped)
    end = time.monotonic() + 60 * order.minutes
    for _ in track(range(order.identities), description="people"):
        found = next(people, None)
        if found is None or time.monotonic() > end:
            break
        name, actor = found
        pixels, landmarks, code = still_frame(actor)
        still = Frame(pixels, landmarks, code, _identity(), np.ones((SIZE, SIZE), np.float32))
        # A person's clip does not depend on who else is written.
        seed = (order.seed, zlib.crc32(name.encode()))
        moved = frames_of(studio.rig, studio.lips, actor, seed, order.frames,
                          stride=order.stride, ranges=order.ranges)  # fmt: skip
        person = Path(name).stem
        for at, frame in enumerate([still, *moved]):
            shard.add(
                frame, kind="synth", clip=f"synthesis/{order.seed}/{person}", person=person,
                frame=at * order.stride, landmarks=frame.landmarks, code=frame.code,
                shape=actor.shape,
            )  # fmt: skip
    shard.close(studio.rig.face, studio.stills["landmark_mirror_perm"].astype(np.int64))
    return dropped


def _identity() -> F32:
    step = np.arange(SIZE, dtype=np.float32) + 0.5
    return np.stack(np.meshgrid(step, step), -1).astype(np.float32)
