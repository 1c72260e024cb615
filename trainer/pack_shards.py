"""A frame cache as shards small enough to be sent one by one, and back again.

    python -m trainer.pack_shards pack CACHE SHARDS
    python -m trainer.pack_shards unpack SHARDS CACHE

Pictures become JPEG, landmarks 16-bit (a hundredth of a pixel), shapes are kept once per clip.
`unpack` takes what has arrived and goes on when it is called again; a cache is complete, and
only then can be opened, when all shards of the manifest have been taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.frames import SIZE
from trainer.pieces import MIB
from trainer.speech import MEL_FILE, SpeechCache

LIMIT = 60 * MIB
QUALITY = 92
#: Landmarks in crop units, stored as (x + 1) / 3 of 65535.
_SHIFT, _SPAN = 1.0, 3.0
MANIFEST = "shards.json"
#: Labels that travel as they are; caches of `visavis prepare` say themselves what is held out.
_PLAIN = ("frame", "code", "held_out")
Arrays = dict[str, NDArray[Any]]


class ShardError(ValueError):
    """A shard is damaged, or does not belong to the manifest."""


def pack(cache: Path, out: Path, limit: int = LIMIT, quality: int = QUALITY) -> list[Path]:
    """Write all shards and, last, their manifest; returns the shards."""
    out.mkdir(parents=True, exist_ok=True)
    with np.load(cache / "labels.npz", allow_pickle=False) as z:
        labels = {k: z[k] for k in z.files}
    count = len(labels["kind"])
    pixels = np.memmap(cache / "frames.u8", np.uint8, "r", shape=(count, SIZE, SIZE, 3))
    written: list[dict[str, Any]] = []

    def write(name: str, arrays: Arrays) -> None:
        path = out / f"{name}.npz"
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type] # a stub's keyword
        written.append({"name": path.name, "sha256": _hash(path), "bytes": path.stat().st_size})

    write("labels", _small_labels(labels))
    with np.load(cache / "face_model.npz", allow_pickle=False) as z:
        write("face", {k: z[k] for k in z.files})
    if (cache / "speech.npz").exists():
        speech = SpeechCache(cache)
        write("speech", {"clip": speech.clip, "offset": speech.offset, "lip": speech.lip})
        for voice, mel in enumerate(speech.mel):
            write(f"mel-{voice}", {"mel": mel})
    for number, shard in enumerate(_picture_shards(pixels, limit, quality)):
        write(f"pictures-{number:03d}", shard)
    manifest = {"frames": count, "shards": written}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return [out / str(w["name"]) for w in written]


def _picture_shards(pixels: NDArray[np.uint8], limit: int, quality: int) -> Iterator[Arrays]:
    blobs: list[NDArray[np.uint8]] = []
    first, held = 0, 0
    option = [cv2.IMWRITE_JPEG_QUALITY, quality]
    for row in range(len(pixels)):
        # The colour order only has to be the same when read again.
        blob = np.asarray(cv2.imencode(".jpg", pixels[row], option)[1], np.uint8).ravel()
        if blobs and held + len(blob) + 16 * (len(blobs) + 1) > limit - MIB:
            yield _blob_arrays(first, blobs)
            first, held, blobs = row, 0, []
        blobs.append(blob)
        held += len(blob)
    if blobs:
        yield _blob_arrays(first, blobs)


def _blob_arrays(first: int, blobs: list[NDArray[np.uint8]]) -> Arrays:
    return {
        "first": np.array(first),
        "end": np.cumsum([len(b) for b in blobs]),
        "jpeg": np.concatenate(blobs),
    }


def _small_labels(labels: Arrays) -> Arrays:
    """Landmarks in 16 bits; one shape per clip; names once."""
    small: Arrays = {k: labels[k] for k in _PLAIN if k in labels}
    for key in ("kind", "clip", "person"):
        small[key], small[f"{key}_of"] = np.unique(labels[key], return_inverse=True)
    points = (labels["landmarks"] + _SHIFT) / _SPAN
    small["landmarks"] = np.round(np.clip(points, 0, 1) * 65535).astype(np.uint16)
    _, first = np.unique(labels["clip"], return_index=True)
    small["shape"] = labels["shape"][first]
    return small


def _whole_labels(small: Arrays) -> Arrays:
    labels: Arrays = {k: small[k] for k in _PLAIN if k in small}
    for key in ("kind", "clip", "person"):
        labels[key] = small[key][small[f"{key}_of"]]
    labels["landmarks"] = small["landmarks"].astype(np.float32) / np.float32(65535 / _SPAN)
    labels["landmarks"] -= np.float32(_SHIFT)
    labels["shape"] = small["shape"][small["clip_of"]]
    return labels


def unpack(shards: Path, cache: Path, threads: int = 8) -> list[str]:
    """Take every shard that has arrived; returns the names of those still missing.

    Raises:
        ShardError: a shard is damaged.
    """
    manifest = json.loads((shards / MANIFEST).read_text())
    cache.mkdir(parents=True, exist_ok=True)
    done = cache / "taken.json"
    taken: list[str] = json.loads(done.read_text()) if done.exists() else []
    shape = (manifest["frames"], SIZE, SIZE, 3)
    frames = cache / "frames.u8"
    size = int(np.prod(shape))
    if not frames.exists() or frames.stat().st_size != size:
        with frames.open("wb") as file:
            file.truncate(size)
    pixels = np.memmap(frames, np.uint8, "r+", shape=shape)
    for entry in manifest["shards"]:
        path = shards / entry["name"]
        if entry["name"] in taken or not path.exists():
            continue
        if _hash(path) != entry["sha256"]:
            raise ShardError(f"{entry['name']} is damaged; send it again")
        with np.load(path, allow_pickle=False) as z:
            _take(path.stem, {k: z[k] for k in z.files}, cache, pixels, threads)
        pixels.flush()
        taken.append(entry["name"])
        done.write_text(json.dumps(taken))
    missing = [e["name"] for e in manifest["shards"] if e["name"] not in taken]
    if not missing:
        _finish(cache)
    return missing


def _take(name: str, arrays: Arrays, cache: Path, pixels: NDArray[np.uint8], threads: int) -> None:
    if name.startswith("pictures-"):
        first, ends = int(arrays["first"]), arrays["end"]
        starts = np.concatenate([[0], ends[:-1]])

        def one(i: int) -> None:
            blob = arrays["jpeg"][starts[i] : ends[i]]
            pixels[first + i] = np.asarray(cv2.imdecode(blob, cv2.IMREAD_COLOR), np.uint8)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(len(ends))))
    elif name == "labels":
        np.savez(cache / "labels.npz", **_whole_labels(arrays))  # type: ignore[arg-type]
    elif name == "face":
        np.savez(cache / "face_model.npz", **arrays)  # type: ignore[arg-type]
    elif name == "speech":
        # The samples stay behind: their mel frames travel.
        np.savez(cache / "speech.npz", samples=np.zeros(0, np.float16), **arrays)  # type: ignore[arg-type]
    else:
        np.save(cache / f"{name}.npy", arrays["mel"])


def _finish(cache: Path) -> None:
    """Put the voices' mel frames into the one file that training reads."""
    voices = sorted(cache.glob("mel-*.npy"))
    if voices and not (cache / MEL_FILE).exists():
        np.savez(cache / MEL_FILE, mel=np.stack([np.load(v) for v in voices]))
    for path in voices:
        path.unlink()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(what: str, source: Path, target: Path) -> None:
    """`pack CACHE SHARDS` or `unpack SHARDS CACHE`."""
    if what == "pack":
        written = pack(source, target)
        total = sum(p.stat().st_size for p in written)
        print(f"{len(written)} shards, {total / MIB:.0f} MiB")
    elif what == "unpack":
        missing = unpack(source, target)
        print("complete" if not missing else f"still missing: {', '.join(missing)}")
    else:
        raise SystemExit(f"pack or unpack, not {what!r}")


if __name__ == "__main__":
    import typer

    typer.run(main)
