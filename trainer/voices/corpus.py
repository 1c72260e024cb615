"""Endless utterances of made-up voices, and a file of them that `audio_stage` can mix in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.config import ModelConfig
from models.face import FaceModel
from models.mel import log_mel
from models.rates import FPS, MEL_PER_FRAME, MODEL_RATE_HZ
from trainer.loader import Make, Sample
from trainer.speech import disturb, levelled
from trainer.voices import espeak, flite
from trainer.voices.lips import LipModel, lip_codes
from trainer.voices.phonemes import SILENCE, Segment
from trainer.voices.sound import worn
from trainer.voices.text import paragraph
from trainer.voices.throat import resample

F32 = NDArray[np.float32]
_SAMPLES_PER_FRAME = MODEL_RATE_HZ // FPS
ACCENTS = (
    "en", "en", "en", "en-us", "en-us", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan", "en-029",
    "en-US-nyc",
)  # fmt: skip
VARIANTS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "klatt",
    "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "Alex", "Alicia", "Andrea", "Andy", "Annie",
    "AnxiousAndy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco",
    "Mario", "Michael", "Mike", "Nguyen", "Storm", "adam", "anika", "antonio", "aunty", "belinda",
    "benjamin", "boris", "caleb", "croak", "david", "ed", "edward", "edward2", "grandma",
    "grandpa", "gustave", "iven", "iven2", "john", "kaukovalta", "linda", "marcelo", "max",
    "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro",
    "shelby", "steph", "steph2", "travis", "victor", "whisper", "whisperf", "zac",
)  # fmt: skip
#: Voices that no training file may contain unless asked: one recorded speaker, ten made up.
HELD_OUT = frozenset((
    "awb", "f5", "m7", "klatt3", "belinda", "david", "grandma", "quincy", "steph", "steph2",
    "whisper",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Utterance:
    """Speech with its mouth: samples float32 (640 T,) at 16 kHz, lip codes (T, 16) at 25 fps.

    Frame k is the mouth at sample 640 k. `voice` is the speaker's name without accent.
    """

    samples: F32
    lip: F32
    segments: list[Segment]
    voice: str
    text: str


def utterance(
    rng: np.random.Generator, model: LipModel, face: FaceModel, *, held_out: bool = False
) -> Utterance:
    """One random voice saying one to three random sentences, clean.

    `held_out` draws from the voices kept for measuring, otherwise from all others. Without
    flite on the machine all voices are espeak-ng's.
    """
    text = paragraph(rng, int(rng.integers(1, 4)))
    recorded = sorted(v for v in flite.VOICES if (v in HELD_OUT) == held_out)
    variants = [v for v in VARIANTS if (v in HELD_OUT) == held_out]
    if flite.available() and rng.random() < 0.5:
        voice = str(rng.choice(recorded))
        pitch = int(rng.integers(75, 240)) if rng.random() < 0.6 else 0
        stretch = round(float(rng.uniform(0.75, 1.35)), 2)
        samples, rate, segments = flite.speak(text, flite.FliteVoice(voice, stretch, pitch))
    else:
        voice = str(rng.choice(variants))
        how = espeak.EspeakVoice(
            f"{rng.choice(ACCENTS)}+{voice}", int(rng.integers(120, 240)),
            int(rng.integers(20, 80)), int(rng.integers(20, 90)),
        )  # fmt: skip
        samples, rate, segments = espeak.speak(text, how)
    before, after = rng.uniform(0.1, 0.7, 2)
    audio = resample(samples, rate)
    total = int((before + after) * FPS) + len(audio) // _SAMPLES_PER_FRAME + 1
    lead = int(before * MODEL_RATE_HZ)
    audio = np.pad(audio, (lead, total * _SAMPLES_PER_FRAME))[: total * _SAMPLES_PER_FRAME]
    shift = lead / MODEL_RATE_HZ
    moved = [Segment(s.phoneme, s.start_s + shift, s.end_s + shift) for s in segments]
    end = moved[-1].end_s
    moved = [Segment(SILENCE, 0.0, shift), *moved, Segment(SILENCE, end, total / FPS + 0.1)]
    # How widely people articulate differs; the learnt table is a mean and so a little shy.
    gain = float(rng.uniform(0.95, 1.3))
    return Utterance(audio, lip_codes(model, face, moved, total, gain), moved, voice, text)


def stream(seed: int, face: FaceModel, *, held_out: bool = False) -> Iterator[Utterance]:
    """Endless clean utterances; text, voice and manner of number i depend on (seed, i) only.

    espeak-ng keeps some state between utterances, so its waveform can differ a little from run
    to run; the targets are those of the waveform that came.
    """
    model = LipModel.load()
    index = 0
    while True:
        yield utterance(np.random.default_rng((seed, index)), model, face, held_out=held_out)
        index += 1


def write(
    out: Path, face: FaceModel, *, hours: float, seed: int, held_out: bool = False, threads: int = 2
) -> int:
    """Write `hours` of worn speech to an npz; returns the number of utterances.

    Keys: mel uint8 (4F, 80) in 1/255, lip float16 (F, 16), offset int64 (N+1,) in frames, voice
    (N,), text (N,). What is said, and how, depends on the seed only (see `stream`).
    """
    model = LipModel.load()
    wanted = hours * 3600 * FPS

    def one(index: int) -> tuple[NDArray[np.uint8], F32, str, str]:
        rng = np.random.default_rng((seed, index))
        spoken = utterance(rng, model, face, held_out=held_out)
        mel = log_mel(worn(rng, spoken.samples))
        return (mel * 255 + 0.5).astype(np.uint8), spoken.lip, spoken.voice, spoken.text

    rows: list[tuple[NDArray[np.uint8], F32, str, str]] = []
    frames = 0
    with ThreadPoolExecutor(threads) as pool:
        while frames < wanted:
            batch = list(pool.map(one, range(len(rows), len(rows) + 16)))
            rows += batch
            frames += sum(len(lip) for _, lip, _, _ in batch)
            print(f"\r{min(1.0, frames / wanted):.0%}", end="", flush=True)
    print()
    mel, lip, voice, text = zip(*rows, strict=True)
    np.savez(
        out, mel=np.concatenate(mel), lip=np.concatenate(lip).astype(np.float16),
        offset=np.cumsum([0, *map(len, lip)]), voice=np.array(voice), text=np.array(text),
    )  # fmt: skip
    return len(rows)


class VoiceCache:
    """A file of `write`; safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as z:
            self.mel: NDArray[np.uint8] = z["mel"]
            self.lip: F32 = z["lip"].astype(np.float32)
            self.offset, self.voice = z["offset"].astype(int), z["voice"]

    def __len__(self) -> int:
        return len(self.offset) - 1

    def window(self, index: int) -> tuple[F32, F32]:
        """One utterance: log-mel (4T, 80) in [0, 1] and lip codes (T, 16)."""
        a, b = self.offset[index], self.offset[index + 1]
        mel = self.mel[MEL_PER_FRAME * a : MEL_PER_FRAME * b].astype(np.float32)
        return mel / np.float32(255), self.lip[a:b]


def sampler(cache: VoiceCache, config: ModelConfig, *, length: int = 10) -> Make:
    """Samples of the same form as `audio_stage.sampler`: mel (length, T, 80), lip (length, 16)."""
    usable = [i for i in range(len(cache)) if len(cache.window(i)[1]) > length + 4]

    def make(rng: np.random.Generator) -> Sample:
        mel, lip = cache.window(usable[int(rng.integers(len(usable)))])
        # The file already holds worn voices; a second, milder wear makes every visit different.
        padded = levelled(rng, disturb(rng, mel) if rng.random() < 0.5 else mel, config)
        first = int(rng.integers(0, len(lip) - length - config.right_frames + 1))
        starts = MEL_PER_FRAME * (first + np.arange(length))
        windows = np.stack([padded[s : s + config.mel_window] for s in starts])
        return {"mel": windows, "lip": lip[first : first + length]}

    return make


def mixed(first: Make, second: Make, share: float) -> Make:
    """Draw from `second` with probability `share`, else from `first`."""

    def make(rng: np.random.Generator) -> Sample:
        return second(rng) if rng.random() < share else first(rng)

    return make
