"""Sentences of synthetic voices that no training heard, with their mouths.

The mouth is what `trainer.voices` says such a sound looks like: phonemes in time through the
learnt lip table. Its timing is the sound's own; its size is a mean over speakers, so lag and
r say more than slope.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.face import FaceModel
from models.rates import FRAME_SAMPLES_16K, MODEL_RATE_HZ
from trainer.evaluate.suite import Item
from trainer.lip_targets import code_gap
from trainer.voices import espeak
from trainer.voices.corpus import stream

F64 = NDArray[np.float64]
#: Long sentences are cut, and the loudest sample is put here.
MAX_FRAMES, _PEAK = 125, 0.5


def speak(
    folder: Path, face: FaceModel, portraits: list[Path], count: int, seed: int
) -> list[Item]:
    """`count` sentences as WAV files below `folder`, each with its mouth beside it.

    Kept from an earlier run, because espeak-ng never speaks twice alike. An empty list where
    espeak-ng is not installed.
    """
    if count == 0 or not espeak.available():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    utterances = stream(seed, face, held_out=True)
    items = []
    for i in range(count):
        place = next(iter(sorted(folder.glob(f"{seed}-{i}-*.wav"))), None)
        spoken = next(utterances)
        if place is None or not place.with_suffix(".npy").exists():
            place = folder / f"{seed}-{i}-{spoken.voice}.wav"
            gap = code_gap(face, face.mean, spoken.lip[:MAX_FRAMES])
            np.save(place.with_suffix(".npy"), gap)
            _write(place, spoken.samples[: MAX_FRAMES * FRAME_SAMPLES_16K])
        name = f"voice {place.stem.split('-', 2)[2]} {i}"
        items.append(Item("voice", name, place, portraits[i % len(portraits)]))
    return items


def mouth_of(sound: Path) -> F64:
    """Inner-lip gap over face height (T,) that goes with a file of `speak`."""
    return np.asarray(np.load(sound.with_suffix(".npy")), np.float64)


def _write(path: Path, samples: NDArray[np.float32]) -> None:
    loudest = max(float(np.abs(samples).max()), 1e-6)
    pcm = (samples / loudest * _PEAK * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(MODEL_RATE_HZ)
        file.writeframes(pcm.tobytes())
