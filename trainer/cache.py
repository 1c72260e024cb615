"""Decode a training pack once into arrays that training can read at random.

`frames.u8` holds canonical 256-pixel crops (N, 256, 256, 3) of every third video frame and
of all stills; `labels.npz` their landmarks, codes, clips and persons; `speech.npz` the
audio and the lip codes of the GRID clips at the full frame rate; `face_model.npz` the
fitted landmark model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import FACTOR_SLICES
from models.face import FaceModel, warp_crop
from trainer.face_fit import Labelled, LipBasis, fit_clips, fit_stills, fit_synth
from trainer.frames import SIZE
from trainer.packs import Arrays, Pack

STRIDE = 3
_FIELDS = ("kind", "clip", "person", "frame")
_LABELS = ("landmarks", "code", "shape")


def decode_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a file, (T, H, W, 3) RGB."""
    import av  # only here: training on a prepared cache needs no decoder

    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8)


def decode_audio(path: Path, rate_hz: int = 16_000) -> NDArray[np.float32]:
    """Mono float32 samples of a file's first audio stream."""
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
    parts: list[NDArray[np.float32]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            parts += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(parts).astype(np.float32)


def _pixels(transform: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(transform * SIZE, np.float32)


def build(pack_root: Path, out: Path) -> None:
    """Fit the face model and write the cache; about 8 GB and five minutes on one core."""
    out.mkdir(parents=True, exist_ok=True)
    pack = Pack.open(pack_root)
    model, lip, synth = fit_synth(pack)
    np.savez(out / "face_model.npz", mean=model.mean, basis=model.basis, lip=lip.matrix,
             lip_names=np.array(lip.names),
             landmark_mirror=pack.synth["landmark_mirror_perm"])  # fmt: skip
    grid, stills = fit_clips(pack, model, lip), fit_stills(pack, model, lip)
    np.savez(out / "fits.npz", **{f"{n}_{k}": getattr(lab, k) for n, lab in
             (("synth", synth), ("grid", grid), ("stills", stills))
             for k in ("transform", "landmarks", "code", "shape")})  # fmt: skip
    _write_frames(pack, out, synth, grid, stills)
    _write_speech(pack, out, grid)


class _FrameWriter:
    """Appends crops to `frames.u8` and collects their labels."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lists: dict[str, list[Any]] = {k: [] for k in (*_FIELDS, *_LABELS)}

    def add(self, crop: NDArray[np.uint8], **values: Any) -> None:
        """One frame (SIZE, SIZE, 3); `values` holds all of `_FIELDS` and `_LABELS`."""
        self._file.write(crop.tobytes())
        for key, values_so_far in self._lists.items():
            values_so_far.append(values[key])

    def columns(self) -> dict[str, Any]:
        """Arrays with one row per frame."""
        return {key: np.array(values) for key, values in self._lists.items()}


def _write_frames(pack: Pack, out: Path, synth: Labelled, grid: Labelled, stills: Labelled) -> None:
    with (out / "frames.u8").open("wb") as file:
        writer = _FrameWriter(file)
        people = [str(p) for p in pack.synth["identity"]]
        _write_clips(writer, "synth", pack.root / "synth", pack.synth, people, synth)
        names = [str(c) for c in pack.clips["clip"]]
        folders = [name.split("/")[1] for name in names]
        people = [n if f == "misc" else f for n, f in zip(names, folders, strict=True)]
        _write_clips(writer, "grid", pack.root, pack.clips, people, grid)
        _write_stills(writer, pack, stills)
    np.savez(out / "labels.npz", **writer.columns())


def _write_clips(
    writer: _FrameWriter, kind: str, root: Path, clips: Arrays, people: list[str], labels: Labelled
) -> None:
    """Every third frame of each clip, beginning with another one from clip to clip."""
    from rich.progress import track

    offset = clips["offset"]
    for i in track(range(len(clips["clip"])), description=f"{kind} clips"):
        name = str(clips["clip"][i])
        path = root / name if (root / name).exists() else root / "clips" / name
        video = decode_video(path)
        for t in range(i % STRIDE, offset[i + 1] - offset[i], STRIDE):
            row = offset[i] + t
            writer.add(
                warp_crop(video[t], _pixels(labels.transform[i]), SIZE),
                kind=kind, clip=name, person=people[i], frame=t,
                landmarks=labels.landmarks[row], code=labels.code[row], shape=labels.shape[i],
            )  # fmt: skip


def _write_stills(writer: _FrameWriter, pack: Pack, stills: Labelled) -> None:
    """All pictures that the pack really holds."""
    from rich.progress import track

    for i in track(range(len(stills.code)), description="stills"):
        name = str(pack.stills["still"][i])
        if not (pack.root / name).exists():
            continue
        image = cv2.imread(str(pack.root / name))
        if image is None:
            raise ValueError(f"{pack.root / name} is not a picture")
        rgb = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        writer.add(
            warp_crop(rgb, _pixels(stills.transform[i]), SIZE),
            kind="still", clip=name, person=name, frame=0,
            landmarks=stills.landmarks[i], code=stills.code[i], shape=stills.shape[i],
        )  # fmt: skip


def relabel(pack_root: Path, cache: Path, out: Path) -> None:
    """Fit the filmed clips of a cache again, with today's `face_fit` and the cache's own model.

    `out` becomes a cache with new codes and shapes of kind "grid" whose pictures are links to
    the old one's; three minutes on one core, no decoding.
    """
    pack = Pack.open(pack_root)
    with np.load(cache / "face_model.npz", allow_pickle=False) as z:
        model = FaceModel(z["mean"], z["basis"])
        lip = LipBasis([str(n) for n in z["lip_names"]], z["lip"])
    grid = fit_clips(pack, model, lip)
    out.mkdir(parents=True, exist_ok=True)
    for pattern in ("frames.u8", "face_model.npz", "mel*.npz"):
        for file in cache.glob(pattern):
            link = out / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(file.resolve(), out.resolve()))
    with np.load(cache / "labels.npz", allow_pickle=False) as z:
        labels: dict[str, Any] = {k: z[k] for k in z.files}
    number = {str(name): i for i, name in enumerate(pack.clips["clip"])}
    rows = np.flatnonzero(labels["kind"] == "grid")
    clip = np.array([number[str(name)] for name in labels["clip"][rows]])
    labels["code"][rows] = grid.code[pack.clips["offset"][clip] + labels["frame"][rows]]
    labels["shape"][rows] = grid.shape[clip]
    np.savez(out / "labels.npz", **labels)
    with np.load(cache / "speech.npz", allow_pickle=False) as z:
        speech: dict[str, Any] = {k: z[k] for k in z.files}
    speech["lip"] = grid.code[:, FACTOR_SLICES["lip"]]
    np.savez(out / "speech.npz", **speech)


def _write_speech(pack: Pack, out: Path, grid: Labelled) -> None:
    from rich.progress import track

    offset = pack.clips["offset"]
    samples, names = [], []
    for i in track(range(len(offset) - 1), description="speech"):
        name = str(pack.clips["clip"][i])
        frames = int(offset[i + 1] - offset[i])
        audio = decode_audio(pack.root / name)[: frames * 640]
        samples.append(np.pad(audio, (0, frames * 640 - len(audio))))
        names.append(name)
    np.savez(out / "speech.npz", clip=np.array(names), offset=offset,
             samples=np.concatenate(samples).astype(np.float16),
             lip=grid.code[:, FACTOR_SLICES["lip"]])  # fmt: skip


if __name__ == "__main__":
    import typer

    app = typer.Typer()
    app.command()(build)
    app.command()(relabel)
    app()
