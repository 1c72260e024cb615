"""Prepared clips on disk, and the cache that training reads, made from them.

A shard is one clip: `clips/NAME.mp4` (256-pixel crops at 25 fps with its sound, for eyes
and for evaluation) and `shards/NAME.npz` (the same crops as JPEG, 16 kHz samples,
landmarks, codes and where it was cut). `assemble` fits one neutral head per person to all
of that person's landmarks, as for the training pack, and writes what `trainer.frames`
and the audio stage open: `cache/frames.u8`, `labels.npz`, `speech.npz`, `face_model.npz`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import FACTOR_SLICES
from models.face import FaceModel
from trainer.cache import STRIDE
from trainer.face_fit import fit_person
from trainer.frames import SIZE
from trainer.prepare.clips import Clip
from trainer.prepare.media import write_clip
from trainer.speech import MEL_FILE

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 96]


@dataclass(frozen=True, slots=True)
class Shard:
    """One clip as it lies on the disk."""

    name: str
    """`PERSON_FOLDER/VIDEO-NUMBER`, also the clip's name in the cache with `clips/` and `.mp4`."""
    path: Path
    landmarks: F32
    code: F32
    samples: NDArray[np.float16]
    identity: NDArray[np.float64]

    @property
    def clip(self) -> str:
        """Name of the clip in the cache, and its file below the output folder."""
        return f"clips/{self.name}.mp4"

    def crops(self, rows: Sequence[int]) -> list[U8]:
        """Some frames, (256, 256, 3) uint8 RGB."""
        with np.load(self.path, allow_pickle=False) as z:
            data, ends = z["jpeg"], np.concatenate([[0], z["jpeg_ends"]])
        pictures = [cv2.imdecode(data[ends[i] : ends[i + 1]], cv2.IMREAD_COLOR) for i in rows]
        return [np.ascontiguousarray(p[..., ::-1], np.uint8) for p in pictures if p is not None]


def write_shard(out: Path, name: str, clip: Clip, landmarks: F32 | None = None) -> None:
    """Write one clip; `landmarks` (T, 152, 2) in crop units replace E_mot's where given."""
    place = out / "shards" / f"{name}.npz"
    for folder in (place.parent, (out / "clips" / name).parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_clip(out / "clips" / f"{name}.mp4", clip.face.crops, clip.samples)
    encoded = [
        cv2.imencode(".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), _QUALITY)[1].reshape(-1)
        for crop in clip.face.crops
    ]
    part = place.with_suffix(".part.npz")
    np.savez(
        part, jpeg=np.concatenate(encoded), jpeg_ends=np.cumsum([len(e) for e in encoded]),
        samples=clip.samples.astype(np.float16), code=clip.face.codes,
        landmarks=clip.face.landmarks if landmarks is None else landmarks,
        start_frame=clip.start_frame, transform=clip.transform, identity=clip.identity,
    )  # fmt: skip
    part.replace(place)


def read_shard(out: Path, name: str) -> Shard:
    """Open one clip without its pictures."""
    path = out / "shards" / f"{name}.npz"
    with np.load(path, allow_pickle=False) as z:
        return Shard(name, path, z["landmarks"], z["code"], z["samples"], z["identity"])


def landmark_mirror(face: FaceModel) -> NDArray[np.int64]:
    """For every landmark the one at its place in a mirrored face, from the mean head."""
    flipped = face.mean * np.array([-1, 1, 1], np.float32)
    distance = np.linalg.norm(flipped[:, None] - face.mean[None], axis=-1)
    return np.asarray(distance.argmin(1), np.int64)


def assemble(
    cache: Path,
    shards: Sequence[Shard],
    people: Sequence[str],
    held: Sequence[bool],
    face: FaceModel,
    on_done: Callable[[], None] = lambda: None,
) -> None:
    """Write the training cache of all shards; `people` and `held` belong to them by place."""
    cache.mkdir(parents=True, exist_ok=True)
    codes: dict[str, F32] = {}
    shapes: dict[str, F32] = {}
    for person in sorted(set(people)):
        mine = [s for s, p in zip(shards, people, strict=True) if p == person]
        landmarks = np.concatenate([s.landmarks for s in mine])
        prior = np.concatenate([s.code for s in mine]).astype(np.float64)
        code, shape = fit_person(face, landmarks, prior)
        ends = np.cumsum([len(s.code) for s in mine])[:-1]
        for shard, own in zip(mine, np.split(code.astype(np.float32), ends), strict=True):
            codes[shard.name], shapes[shard.name] = own, shape.astype(np.float32)
    part = cache / "frames.u8.part"
    columns: dict[str, list[object]] = {k: [] for k in _COLUMNS}
    with part.open("wb") as file:
        for number, (shard, person, out) in enumerate(zip(shards, people, held, strict=True)):
            rows = list(range(number % STRIDE, len(shard.code), STRIDE))
            for row, crop in zip(rows, shard.crops(rows), strict=True):
                if crop.shape != (SIZE, SIZE, 3):
                    raise ValueError(f"{shard.name}: crop is {crop.shape}")
                file.write(crop.tobytes())
                values = ("grid", shard.clip, person, row, shard.landmarks[row],
                          codes[shard.name][row], shapes[shard.name], out)  # fmt: skip
                for key, value in zip(_COLUMNS, values, strict=True):
                    columns[key].append(value)
            on_done()
    part.replace(cache / "frames.u8")
    np.savez(cache / "labels.npz", **{k: np.array(v) for k, v in columns.items()})  # type: ignore[arg-type]
    np.savez(cache / "face_model.npz", mean=face.mean, basis=face.basis,
             landmark_mirror=landmark_mirror(face))  # fmt: skip
    offset = np.concatenate([[0], np.cumsum([len(s.code) for s in shards])]).astype(np.int32)
    lips = [codes[s.name][:, FACTOR_SLICES["lip"]] for s in shards]
    # What the audio stage computed from an earlier version of this file.
    (cache / MEL_FILE).unlink(missing_ok=True)
    samples = np.concatenate([s.samples for s in shards])
    clips = np.array([s.clip for s in shards])
    lip = np.concatenate(lips)
    np.savez(cache / "speech.npz", clip=clips, offset=offset, samples=samples, lip=lip)


_COLUMNS = ("kind", "clip", "person", "frame", "landmarks", "code", "shape", "held_out")
