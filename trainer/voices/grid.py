"""The recordings the mouth shapes are learnt from: GRID clips with word times and lip codes."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.rates import FPS
from trainer.speech import LIPS_FILE
from trainer.voices.align import Word, align_speaker, features
from trainer.voices.espeak import EspeakVoice, speak
from trainer.voices.phonemes import SILENCE, Segment, close_after_pause

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AlignedClip:
    """Phonemes of a clip and its lip codes (T, 16), frame k at k / 25 s."""

    name: str
    segments: list[Segment]
    lip: F32


def word_phonemes(text: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Phonemes of an isolated word or letter and their shares of its length."""
    if text == SILENCE:
        return (SILENCE,), (1.0,)
    spoken = text.upper() + "." if len(text) == 1 else text
    segments = speak(spoken, EspeakVoice("en"))[2]
    inner = [s for s in segments if s.phoneme != SILENCE]
    length = np.array([s.end_s - s.start_s for s in inner])
    return tuple(s.phoneme for s in inner), tuple((length / length.sum()).tolist())


def read_aligned(
    alignments: Path, cache_dir: Path, only: Collection[str] | None = None
) -> list[AlignedClip]:
    """All clips of `speech.npz` that have word times, with their phonemes; about a minute.

    `only` these names: enough of one speaker (fifty clips) for the Gaussians of the alignment.
    """
    times = json.loads(alignments.read_text())["clips"]
    with np.load(cache_dir / "speech.npz", allow_pickle=False) as z:
        names = [str(n) for n in z["clip"]]
        offset, lip, samples = z["offset"].astype(int), z["lip"], z["samples"]
    corrected = (cache_dir / "speech.npz").resolve().parent / LIPS_FILE
    if corrected.exists():
        with np.load(corrected) as z:
            lip = z["lip"]
    dictionary: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {}
    clips, kept = [], []
    for i, name in enumerate(names):
        if name not in times or (only is not None and name not in only):
            continue
        words = []
        for start, end, text in times[name]:
            if text not in dictionary:
                dictionary[text] = word_phonemes(text)
            words.append(Word(text, start / FPS, end / FPS, *dictionary[text]))
        a, b = offset[i], offset[i + 1]
        clips.append((features(samples[a * 640 : b * 640].astype(np.float32)), words))
        kept.append((name, lip[a:b]))
    found = align_speaker(clips)
    return [
        AlignedClip(n, close_after_pause(s), code) for (n, code), s in zip(kept, found, strict=True)
    ]
