"""Train E_aud: log-mel window -> lip code, on the GRID clips in many voices (`trainer.speech`).

Windows with no speech in them teach a mouth at rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.codes import DIMS
from models.config import ModelConfig
from models.networks.audio import AudioEncoder
from models.rates import MEL_BANDS, MEL_PER_FRAME
from models.streaming import Loudness
from trainer.frames import FrameCache
from trainer.loader import Make, Sample, batches
from trainer.loop import Parts, Report, cosine, descend, resume, save, set_rate
from trainer.motion_stage import lip_weights
from trainer.speech import SpeechCache, split

F32 = NDArray[np.float32]


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


def sampler(
    cache: SpeechCache, clips: NDArray[np.int64], recipe: AudioRecipe, config: ModelConfig
) -> Make:
    """A function rng -> consecutive windows (length, T, 80) and codes (length, 16)."""
    misc = [int(c) for c in clips if "/s1/" not in str(cache.clip[c])]

    def make(rng: np.random.Generator) -> Sample:
        clip = int(rng.choice(misc)) if misc and rng.random() < 0.06 else int(rng.choice(clips))
        padded, lip = cache.heard(rng, clip, config, quiet=rng.random() < recipe.quiet_share)
        last = len(lip) - recipe.length - config.right_frames
        first = int(rng.integers(0, last + 1))
        starts = MEL_PER_FRAME * (first + np.arange(recipe.length))
        windows = np.stack([padded[s : s + config.mel_window] for s in starts])
        return {"mel": windows, "lip": lip[first : first + recipe.length]}

    return make


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
