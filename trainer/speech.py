"""Sound with known mouths: every clip in several voices, and what rooms and lines do to it.

Almost all of GRID is one man, so every clip is also heard from other throats (pitch and vocal
tract apart, `voices.throat`, exact in time) and three times worn: another speaker, room, noise,
microphone and an Opus line (`voices.sound.worn`). At every visit the log-mel is disturbed
once more. The level goes through the same running gain as in the product.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import ModelConfig
from models.face import lip_gap
from models.mel import log_mel
from models.rates import FRAME_SAMPLES_16K, MEL_BANDS, MEL_PER_FRAME
from models.streaming import Loudness
from trainer.frames import FrameCache
from trainer.lip_targets import in_time, meet_gap

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
#: Pitch and vocal tract of the voices a clip is heard in, its own first.
THROATS = ((1.0, 1.0), (0.78, 0.9), (1.18, 1.05), (1.55, 1.14), (1.9, 1.2))
#: After these, versions with a random speaker, room, noise, microphone and line each.
WORN = 3
#: Share of sound that keeps its own voice.
OWN_VOICE = 0.35
#: Log-mel of all voices. The name changed with the content: `mel.npz` ran up to 22 ms ahead of
#: its codes.
MEL_FILE = "mel-voices.npz"
#: Lip codes corrected by `lip_targets`.
LIPS_FILE = "lips.npz"


class SpeechCache:
    """Log-mel of all clips in all voices (uint8, 1/255 steps) and their lip codes.

    Made from `speech.npz` of a cache folder when first opened: about six minutes for GRID.
    """

    def __init__(self, folder: Path) -> None:
        # A folder of `trainer.joined` links to the sound of another one.
        folder = (folder / "speech.npz").resolve().parent
        with np.load(folder / "speech.npz", allow_pickle=False) as z:
            self.clip, self.offset = z["clip"], z["offset"].astype(int)
            self.lip: F32 = z["lip"]
            if not (folder / MEL_FILE).exists():
                _write(folder / MEL_FILE, mel=speak_in_voices(z["samples"], self.offset))
        if not (folder / LIPS_FILE).exists() and (folder / "fits.npz").exists():
            _write(folder / LIPS_FILE, lip=corrected_lips(folder, self))
        if (folder / LIPS_FILE).exists():
            with np.load(folder / LIPS_FILE) as z:
                self.lip = z["lip"]
        with np.load(folder / MEL_FILE) as z:
            self.mel: U8 = z["mel"]
        jaw = self.lip[:, 0]
        #: Lip code (16,) of a mouth at rest: the middle of the third with the jaw furthest up.
        self.rest: F32 = np.median(self.lip[jaw <= np.quantile(jaw, 1 / 3)], 0)

    def window(self, voice: int, clip: int) -> tuple[F32, F32]:
        """One clip: log-mel (4T, 80) in [0, 1] and lip codes (T, 16)."""
        a, b = self.offset[clip], self.offset[clip + 1]
        mel = self.mel[voice, MEL_PER_FRAME * a : MEL_PER_FRAME * b].astype(np.float32)
        return mel / np.float32(255), self.lip[a:b]

    def heard(
        self, rng: np.random.Generator, clip: int, config: ModelConfig, *, quiet: bool = False
    ) -> tuple[F32, F32]:
        """A visit to one clip: levelled mel (left_mel + 4T, 80) and lip codes (T, 16).

        A random voice, disturbed; `quiet`: noise and a resting mouth instead.
        """
        voice = 0 if rng.random() < OWN_VOICE else int(rng.integers(1, len(self.mel)))
        mel, lip = self.window(voice, clip)
        if quiet:
            level = rng.uniform(0, 0.45)
            mel = np.clip(level + rng.normal(0, 0.03, mel.shape), 0, 1).astype(np.float32)
            lip = np.broadcast_to(self.rest, lip.shape)
        # Worn voices have had a room and noise; a second time makes visits different.
        if voice < len(THROATS) or rng.random() < 0.5:
            mel = disturb(rng, mel)
        return levelled(rng, mel, config), lip


def _write(path: Path, **arrays: NDArray[np.generic]) -> None:
    """Whole or not at all: another process may open the cache meanwhile."""
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, **arrays)  # type: ignore[arg-type] # a stub's keyword
    fresh.replace(path)


def speak_in_voices(samples: NDArray[np.float16], offset: NDArray[np.int64]) -> U8:
    """Log-mel (V, 4F, 80) of all clips in every voice; a clip's wear depends on its number only."""
    from trainer.voices.sound import worn  # needs a codec; training on a whole cache does not
    from trainer.voices.throat import throat

    voices: list[list[U8]] = [[] for _ in range(len(THROATS) + WORN)]
    for clip, (a, b) in enumerate(pairwise(offset)):
        own = samples[a * FRAME_SAMPLES_16K : b * FRAME_SAMPLES_16K].astype(np.float32)
        for i, parts in enumerate(voices):
            if i < len(THROATS):
                sound = throat(own, *THROATS[i])
            else:
                sound = worn(np.random.default_rng((clip, i)), own)
            parts.append((log_mel(sound) * 255 + 0.5).astype(np.uint8))
    return np.stack([np.concatenate(parts) for parts in voices])


def corrected_lips(folder: Path, speech: SpeechCache) -> F32:
    """Lip codes (F, 16) of filmed clips, in time and with their landmarks' gap (`fits.npz`)."""
    frames = FrameCache(folder)
    who = dict(zip(frames.clip.tolist(), frames.person.tolist(), strict=True))
    with np.load(folder / "fits.npz", allow_pickle=False) as z:
        gap, shapes = lip_gap(z["grid_landmarks"]).astype(np.float64), z["grid_shape"]
    edges = speech.offset[1:-1]
    people = [str(who.get(str(name), name)) for name in speech.clip]
    lips = [in_time(x).astype(np.float32) for x in np.split(speech.lip, edges)]
    gaps = [in_time(x) for x in np.split(gap, edges)]
    return np.concatenate(meet_gap(frames.face, lips, gaps, list(shapes), people))


def levelled(rng: np.random.Generator, mel: F32, config: ModelConfig) -> F32:
    """The product's running gain from a random start, and the silence before the first frame."""
    loudness = Loudness()
    loudness.level_db += float(rng.uniform(-8, 8))
    left = np.zeros((config.left_mel, MEL_BANDS), np.float32)
    return np.concatenate([left, loudness.push(mel)])


def disturb(rng: np.random.Generator, mel: F32) -> F32:
    """Microphone, room, noise and level, in the log-mel domain (0.05 = 5 dB)."""
    curve = np.interp(np.arange(MEL_BANDS), np.linspace(0, 79, 6), rng.normal(0, 0.05, 6))
    mel = mel + curve.astype(np.float32) + np.float32(rng.uniform(-0.25, 0.1))
    power = 10.0 ** (mel * 10 - 8)
    if rng.random() < 0.4:
        decay = 10 ** (-6 / (rng.uniform(0.08, 0.6) * 100))
        tail = np.zeros(MEL_BANDS)
        wet = rng.uniform(0.05, 0.5)
        out = np.empty_like(power)
        for i in range(len(power)):
            tail = tail * decay + power[i] * (1 - decay)
            out[i] = power[i] + wet * tail
        power = out
    if rng.random() < 0.7:
        level = power.mean() * 10 ** (-rng.uniform(0.5, 5))
        tilt = 10 ** (np.linspace(rng.uniform(-1, 1.5), 0, MEL_BANDS))
        power = power + level * tilt * rng.exponential(1.0, power.shape)
    level_db = 10 * np.log10(power + 1e-12)
    return np.asarray(np.clip((level_db + 80) / 100, 0, 1), np.float32)


def split(cache: SpeechCache, frames: FrameCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clip numbers for training and testing, the same split as the frames."""
    held = set(frames.clip[frames.split().test].tolist())
    test = np.array([str(c) in held for c in cache.clip])
    return np.flatnonzero(~test), np.flatnonzero(test)
