"""Decode a training pack once into arrays that training can read at random.

`frames.u8` holds canonical 256-pixel crops (N, 256, 256, 3) of every third video frame and
of all stills; `labels.npz` their landmarks, codes, clips and persons; `speech.npz` the
audio and the lip codes of the GRID clips at the full frame rate; `face_model.npz` the
fitted landmark model.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from models.codes import FACTOR_SLICES
from models.face import warp_crop
from trainer.face_fit import Labelled, fit_clips, fit_stills, fit_synth
from trainer.packs import Pack

SIZE = 256
STRIDE = 3


def decode_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a file, (T, H, W, 3) RGB."""
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8)


def decode_audio(path: Path, rate_hz: int = 16_000) -> NDArray[np.float32]:
    """Mono float32 samples of a file's first audio stream."""
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


def _write_frames(
    pack: Pack, out: Path, synth: Labelled, grid: Labelled, stills: Labelled
) -> None:
    sets = [
        ("synth", pack.synth["clip"], pack.synth["offset"], synth, pack.synth["identity"]),
        ("grid", pack.clips["clip"], pack.clips["offset"], grid, None),
    ]
    rows: dict[str, list[object]] = {k: [] for k in ("kind", "clip", "person", "frame")}
    arrays: dict[str, list[NDArray[np.float32]]] = {k: [] for k in ("landmarks", "code", "shape")}
    with (out / "frames.u8").open("wb") as file:
        for kind, paths, offset, labelled, persons in sets:
            for i in track(range(len(paths)), description=f"{kind} clips"):
                name = str(paths[i])
                root = pack.root / "synth" if kind == "synth" else pack.root
                path = root / name if (root / name).exists() else root / "clips" / name
                video = decode_video(path)
                person = str(persons[i]) if persons is not None else name.split("/")[1]
                person = person if person != "misc" else name
                for t in range(i % STRIDE, offset[i + 1] - offset[i], STRIDE):
                    crop = warp_crop(video[t], _pixels(labelled.transform[i]), SIZE)
                    file.write(crop.tobytes())
                    for key, value in (("kind", kind), ("clip", name), ("person", person), ("frame", t)):
                        rows[key].append(value)
                    row = offset[i] + t
                    arrays["landmarks"].append(labelled.landmarks[row])
                    arrays["code"].append(labelled.code[row])
                    arrays["shape"].append(labelled.shape[i])
        import cv2

        for i in track(range(len(stills.code)), description="stills"):
            name = str(pack.stills["still"][i])
            if not (pack.root / name).exists():
                continue
            image = cv2.cvtColor(cv2.imread(str(pack.root / name)), cv2.COLOR_BGR2RGB)
            file.write(warp_crop(image.astype(np.uint8), _pixels(stills.transform[i]), SIZE).tobytes())
            for key, value in (("kind", "still"), ("clip", name), ("person", name), ("frame", 0)):
                rows[key].append(value)
            for key in arrays:
                arrays[key].append(getattr(stills, key)[i])
    np.savez(out / "labels.npz", **{k: np.array(v) for k, v in rows.items()},
             **{k: np.stack(v) for k, v in arrays.items()})  # fmt: skip


def _write_speech(pack: Pack, out: Path, grid: Labelled) -> None:
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
    typer.run(build)
