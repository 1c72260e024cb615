"""Train E_aud: log-mel window -> lip code, on the GRID clips.

Almost all of GRID is one man, so every clip is also heard at other pitches and vocal-tract
lengths (resampled, then stretched back to its length), and the log-mel is disturbed the
way microphones, rooms and noise disturb it. Windows with no speech in them teach a closed
mouth. The level goes through the same running gain as in the product.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.codes import DIMS
from models.config import ModelConfig
from models.mel import log_mel
from models.networks.audio import AudioEncoder
from models.rates import MEL_BANDS, MEL_PER_FRAME
from models.streaming import Loudness
from trainer.frames import FrameCache
from trainer.loader import Make, Sample, batches
from trainer.loop import Parts, Report, cosine, descend, resume, save, set_rate
from trainer.motion_stage import lip_weights

F32 = NDArray[np.float32]
PITCHES = (1.0, 0.82, 0.91, 1.12, 1.25, 1.4)


@dataclass(frozen=True, slots=True)
class AudioRecipe:
    """Everything that decides the run."""

    sequences: int = 16
    length: int = 10
    steps: int = 3000
    lr: float = 1.5e-3
    quiet_share: float = 0.06
    motion_weight: float = 1.5
    seed: int = 5


def shift_voice(samples: F32, factor: float) -> F32:
    """Play 16 kHz samples `factor` times faster and stretch them back to the same length."""
    import av  # only here: training on a prepared cache needs no decoder

    graph = av.filter.Graph()
    rate = 16_000
    source = graph.add_abuffer(
        sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate)
    )
    chain = [
        graph.add("asetrate", str(round(rate * factor))),
        graph.add("aresample", str(rate)),
        graph.add("atempo", f"{1 / factor:.5f}"),
        graph.add("aformat", "sample_fmts=flt:channel_layouts=mono"),
        graph.add("abuffersink"),
    ]
    for a, b in zip([source, *chain], chain, strict=False):
        a.link_to(b)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    source.push(frame)
    source.push(None)
    parts = []
    while True:
        try:
            pulled = chain[-1].pull()
        except (av.EOFError, av.BlockingIOError):
            break
        assert isinstance(pulled, av.AudioFrame), "the graph holds audio filters only"
        parts.append(pulled.to_ndarray()[0])
    out = np.concatenate(parts)[: len(samples)]
    return np.pad(out, (0, len(samples) - len(out))).astype(np.float32)


class SpeechCache:
    """Log-mel of all clips in all voices (uint8, 1/255 steps) and their lip codes."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "speech.npz", allow_pickle=False) as z:
            self.clip, self.offset = z["clip"], z["offset"].astype(int)
            self.lip: F32 = z["lip"]
            samples = z["samples"]
        path = folder / "mel.npz"
        if not path.exists():
            mels = []
            for factor in PITCHES:
                parts = []
                for a, b in zip(self.offset[:-1], self.offset[1:], strict=True):
                    voice = samples[a * 640 : b * 640].astype(np.float32)
                    voice = voice if factor == 1.0 else shift_voice(voice, factor)
                    parts.append(log_mel(voice))
                mels.append((np.concatenate(parts) * 255 + 0.5).astype(np.uint8))
            np.savez(path, mel=np.stack(mels))
        with np.load(path) as z:
            self.mel: NDArray[np.uint8] = z["mel"]

    def window(self, voice: int, clip: int) -> tuple[F32, F32]:
        """One clip: log-mel (4T, 80) in [0, 1] and lip codes (T, 16)."""
        a, b = self.offset[clip], self.offset[clip + 1]
        mel = self.mel[voice, MEL_PER_FRAME * a : MEL_PER_FRAME * b].astype(np.float32)
        return mel / np.float32(255), self.lip[a:b]


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


def sampler(
    cache: SpeechCache, clips: NDArray[np.int64], recipe: AudioRecipe, config: ModelConfig
) -> Make:
    """A function rng -> consecutive windows (length, T, 80) and codes (length, 16)."""
    misc = [int(c) for c in clips if "/s1/" not in str(cache.clip[c])]

    def make(rng: np.random.Generator) -> Sample:
        clip = int(rng.choice(misc)) if misc and rng.random() < 0.06 else int(rng.choice(clips))
        voice = 0 if rng.random() < 0.35 else int(rng.integers(1, len(PITCHES)))
        mel, lip = cache.window(voice, clip)
        if rng.random() < recipe.quiet_share:
            level = rng.uniform(0, 0.45)
            mel = np.clip(level + rng.normal(0, 0.03, mel.shape), 0, 1).astype(np.float32)
            lip = np.zeros_like(lip)
        mel = disturb(rng, mel)
        loudness = Loudness()
        loudness.level_db += float(rng.uniform(-8, 8))
        mel = loudness.push(mel)
        last = len(lip) - recipe.length - config.right_frames
        first = int(rng.integers(0, last + 1))
        padded = np.concatenate([np.zeros((config.left_mel, MEL_BANDS), np.float32), mel])
        starts = MEL_PER_FRAME * (first + np.arange(recipe.length))
        windows = np.stack([padded[s : s + config.mel_window] for s in starts])
        return {"mel": windows, "lip": lip[first : first + recipe.length]}

    return make


def split(cache: SpeechCache, frames: FrameCache) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clip numbers for training and testing, the same split as the frames."""
    held = set(frames.clip[frames.split().test].tolist())
    test = np.array([str(c) in held for c in cache.clip])
    return np.flatnonzero(~test), np.flatnonzero(test)


@torch.no_grad()
def evaluate(
    net: AudioEncoder, cache: SpeechCache, clips: NDArray[np.int64], voice: int = 0
) -> dict[str, float]:
    """Correlation and gain of the two strongest lip dimensions, and the best lag in frames."""
    net.eval()
    config = net.config
    found, truth = [], []
    for clip in clips:
        mel, lip = cache.window(voice, int(clip))
        mel = Loudness().push(mel)
        padded = np.concatenate([np.zeros((config.left_mel, MEL_BANDS), np.float32), mel])
        count = len(lip) - config.right_frames
        windows = np.stack([padded[4 * f : 4 * f + config.mel_window] for f in range(count)])
        found.append(net(torch.from_numpy(windows)).numpy())
        truth.append(lip[:count])
    net.train()
    a, b = np.concatenate(found), np.concatenate(truth)
    result = {}
    for d in (0, 1, 3):
        result[f"r{d}"] = float(np.corrcoef(a[:, d], b[:, d])[0, 1])
        result[f"gain{d}"] = float(a[:, d].std() / b[:, d].std())
    lags = {k: np.corrcoef(a[5 + k : len(a) - 5 + k, 0], b[5:-5, 0])[0, 1] for k in range(-4, 5)}
    result["lag"] = max(lags, key=lambda k: lags[k])
    return {k: round(v, 3) for k, v in result.items()}


def train(
    cache_dir: Path, out: Path, steps: int = 3000, threads: int = 1, right_frames: int = 1,
    voices: Path | None = None, voice_share: float = 0.35, start: Path | None = None,
    lr: float = 1.5e-3,
) -> None:  # fmt: skip
    """Train E_aud; writes `out` (.pt) every 250 steps and resumes from it.

    `voices` is a file of `trainer.voices`, mixed in with `voice_share`; `start` another run's
    file to begin from, with its optimiser.
    """
    torch.set_num_threads(threads)
    recipe = AudioRecipe(steps=steps, lr=lr)
    torch.manual_seed(recipe.seed)
    config = ModelConfig(right_frames=right_frames)
    frames, speech = FrameCache(cache_dir), SpeechCache(cache_dir)
    train_clips, test_clips = split(speech, frames)
    net = AudioEncoder(config)
    optimiser = torch.optim.AdamW(net.parameters(), recipe.lr, (0.9, 0.99), weight_decay=1e-2)
    parts: Parts = {"net": net, "optimiser": optimiser}
    if start is not None and not out.exists():
        resume(start, parts)
    step = int(resume(out, parts)["step"])
    weight = lip_weights(frames)
    make = sampler(speech, train_clips, recipe, config)
    if voices is not None:
        from trainer.voices import corpus  # it imports this module

        spoken = corpus.sampler(corpus.VoiceCache(voices), config)
        make = corpus.mixed(make, spoken, voice_share)
    stream = batches(make, size=recipe.sequences, seed=recipe.seed, start=step, threads=1)
    report = Report(every=50, digits=4)
    while step < recipe.steps:
        data = next(stream)
        set_rate(optimiser, cosine(step, peak=recipe.lr, steps=recipe.steps, warm_up=100))
        with torch.autocast("cpu", torch.bfloat16):
            lip = net(data["mel"].flatten(0, 1)).float().view(-1, recipe.length, DIMS["lip"])
        wanted = data["lip"]
        error = ((lip - wanted).abs() * weight).mean()
        motion = ((lip.diff(dim=1) - wanted.diff(dim=1)).abs() * weight).mean()
        terms = {"lip": error, "motion": recipe.motion_weight * motion}
        descend(optimiser, terms, net.parameters(), limit=5.0)
        step += 1
        report.add(step, terms)
        if step % 250 == 0 or step == recipe.steps:
            save(out, parts, step=step, right_frames=right_frames)
            for voice in (0, 4):
                print(json.dumps(evaluate(net, speech, test_clips, voice)), flush=True)


if __name__ == "__main__":
    import typer

    typer.run(train)
