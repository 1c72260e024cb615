"""How well E_aud's lips follow sound: unseen sentences, unseen people, unseen made-up voices.

`python -m trainer.voices.measure CACHE AUDIO [--motion M] [--alignments A.json] [--gain G]` takes
stage files or files of `audio_stage` and prints one row per voice. Real mouths are the landmarks'
own inner-lip gap where the cache has it (`fits.npz`), else the gap of the codes; made-up
voices are spoken afresh and have the mouths of `lips.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from models.face import FaceModel, lip_gap
from models.mel import log_mel
from models.networks import Networks
from models.rates import FRAME_MS, FRAME_SAMPLES_16K, MEL_BANDS, MEL_PER_FRAME
from models.streaming import Loudness
from trainer.evaluate.metrics import correlations_by_lag, lse
from trainer.export import config_of, load_part
from trainer.frames import FrameCache
from trainer.gains import amplify
from trainer.lip_targets import code_gap, in_time
from trainer.loader import to_unit
from trainer.speech import SpeechCache, split
from trainer.voices.corpus import stream
from trainer.voices.grid import read_aligned
from trainer.voices.phonemes import BILABIALS, Segment

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_REACH = 6
#: Inner-lip gap over face height that a viewer takes for lips that touch.
MEETING = 0.008


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance: sound, true gap (T,) and codes (T, 16), the speaker's neutral shape."""

    voice: str
    mel: F32
    gap: F64
    lip: F32
    shape: F32
    segments: list[Segment] | None = None
    filmed: bool = True


def film(
    cache: Path, speech: SpeechCache, frames: FrameCache, aligned: Path | None
) -> list[Spoken]:
    """Held-out filmed clips; `aligned` gives the phonemes of those that have word times."""
    with np.load(cache / "speech.npz", allow_pickle=False) as z:
        samples = z["samples"]
    test = split(speech, frames)[1]
    phonemes: dict[str, list[Segment]] = {}
    if aligned is not None:
        names = {str(speech.clip[clip]) for clip in test}
        phonemes = {c.name: c.segments for c in read_aligned(aligned, cache, names)}
    fits = None
    if (cache / "fits.npz").exists():
        with np.load(cache / "fits.npz", allow_pickle=False) as z:
            fits = lip_gap(z["grid_landmarks"]).astype(np.float64), z["grid_shape"]
    out = []
    for clip in test:
        name, (a, b) = str(speech.clip[clip]), speech.offset[clip : clip + 2]
        sound = samples[a * FRAME_SAMPLES_16K : b * FRAME_SAMPLES_16K].astype(np.float32)
        lip = speech.lip[a:b]
        shape = frames.face.mean if fits is None else fits[1][clip]
        gap = code_gap(frames.face, shape, lip) if fits is None else in_time(fits[0][a:b])
        voice = name.split("/")[-2] if "/s1/" in name else name.split("/")[-1].split(".")[0]
        out.append(Spoken(voice, log_mel(sound), gap, lip, shape, phonemes.get(name)))
    return out


def made_up(face: FaceModel, count: int, seed: int) -> list[Spoken]:
    """Clean utterances of the voices that no training file holds."""
    out = []
    for u in islice(stream(seed, face, held_out=True), count):
        gap = code_gap(face, face.mean, u.lip)
        out.append(Spoken(u.voice, log_mel(u.samples), gap, u.lip, face.mean, u.segments, False))
    return out


@torch.no_grad()
def read(networks: Networks, mel: F32) -> F32:
    """Lip codes (T', 16) of a whole utterance through the product's running gain."""
    config = networks.config
    left = np.zeros((config.left_mel, MEL_BANDS), np.float32)
    padded = np.concatenate([left, Loudness().push(mel)])
    count = len(mel) // MEL_PER_FRAME - config.right_frames
    windows = np.stack(
        [padded[MEL_PER_FRAME * f : MEL_PER_FRAME * f + config.mel_window] for f in range(count)]
    )
    return np.asarray(networks.audio.net(torch.from_numpy(windows)).numpy(), np.float32)


def follow(found: Sequence[F64], truth: Sequence[F64]) -> dict[str, float]:
    """Of the found gaps (T',) of clips against the true ones (T,), T' <= T.

    r without shift, best r, its lag in ms (positive: lips late; parabola through the peak of the
    mean curve), slope and spread of found against true movement.
    """
    pairs = [(a, b[: len(a)]) for a, b in zip(found, truth, strict=True)]
    curves = [correlations_by_lag(a, b, _REACH) for a, b in pairs]
    mean = {k: float(np.nanmean([c[k] for c in curves])) for k in curves[0]}
    top = max(range(-_REACH + 1, _REACH), key=lambda k: mean[k])
    left, peak, right = (mean[top + k] for k in (-1, 0, 1))
    part = 0.5 * (left - right) / min(left - 2 * peak + right, -1e-9)
    a, b = (np.concatenate([x - x.mean() for x in side]) for side in zip(*pairs, strict=True))
    return {
        "r": mean[0], "best": peak, "lag_ms": FRAME_MS * (top + part),
        "slope": float((a @ b) / (b @ b)), "spread": float(a.std() / b.std()),
    }  # fmt: skip


def closures(found: Sequence[F64], spoken: Sequence[Spoken]) -> dict[str, float]:
    """Share of p, b, m inside speech whose lips meet, found and true.

    They meet where the smallest gap within 20 ms of the segment, less the clip's resting gap
    (its fifth percentile), is below `MEETING`. NaN where nobody's phonemes are known.
    """
    hits: list[tuple[bool, bool]] = []
    for gap, who in zip(found, spoken, strict=True):
        rests = np.percentile(gap, 5), np.percentile(who.gap, 5)
        for s in (who.segments or [])[2:-1]:
            a = int(np.ceil((s.start_s - 0.02) * 1000 / FRAME_MS))
            b = int((s.end_s + 0.02) * 1000 / FRAME_MS) + 1
            if s.phoneme in BILABIALS and a >= 0 and b <= len(gap):
                apart = gap[a:b].min() - rests[0], who.gap[a:b].min() - rests[1]
                hits.append((apart[0] < MEETING, apart[1] < MEETING))
    share = np.mean(hits, 0) if hits else np.full(2, np.nan)
    return {"closed": float(share[0]), "truly": float(share[1])}


def agreement(found: Sequence[F32], spoken: Sequence[Spoken], seed: int = 0) -> dict[str, float]:
    """Sync of codes: LSE-style confidence and offset over windows, and how often a moment of sound
    (11 frames) is nearest to its own mouth among 50 moments of all clips (chance .02).
    """
    pairs = [(a.astype(np.float64), s.lip[: len(a)].astype(np.float64))
             for a, s in zip(found, spoken, strict=True)]  # fmt: skip
    scores = [lse(a, b) for a, b in pairs]
    starts = [(i, f) for i, (a, _) in enumerate(pairs) for f in range(0, len(a) - 11, 6)]
    sound, mouth = (
        np.stack([pairs[i][side][f : f + 11, :4].ravel() for i, f in starts]) for side in (0, 1)
    )
    rng, hits = np.random.default_rng(seed), 0
    for i in range(len(sound)):
        others = rng.choice(np.delete(np.arange(len(sound)), i), min(49, len(sound) - 1), False)
        far = np.square(sound[i] - mouth[others]).sum(1).min()
        hits += bool(np.square(sound[i] - mouth[i]).sum() < far)
    names = ("confidence", "distance", "offset_frames")
    middle = {k: float(np.median([x[k] for x in scores])) for k in names}
    return {**middle, "retrieval of 50": hits / len(sound)}


@torch.no_grad()
def embedded(networks: Networks, speech: SpeechCache, frames: FrameCache, seed: int = 0) -> float:
    """Share of held-out pictures whose own sound is nearest among 50 in the space that stage 2a
    trains (cosine of pre-embeddings; half of the others are of the same clip).
    """
    test = split(speech, frames)[1]
    config = networks.config
    rng = np.random.default_rng(seed)
    audio, video, clips = [], [], []
    for clip in test:
        rows = np.flatnonzero(frames.clip == speech.clip[clip])
        mel = Loudness().push(speech.window(0, int(clip))[0])
        padded = np.concatenate([np.zeros((config.left_mel, MEL_BANDS), np.float32), mel])
        rows = rows[MEL_PER_FRAME * frames.frame[rows] + config.mel_window <= len(padded)]
        windows = [padded[MEL_PER_FRAME * f :][: config.mel_window] for f in frames.frame[rows]]
        audio.append(networks.audio.net.embed(torch.from_numpy(np.stack(windows)))[0])  # type: ignore[operator]
        faces = to_unit(torch.from_numpy(np.stack([frames.pixels[int(r)] for r in rows]))) * 2 - 1
        motion = networks.motion.net
        video.append(motion.embed("lip", motion.features(faces))[0])  # type: ignore[operator]
        clips += [int(clip)] * len(rows)
    a = torch.nn.functional.normalize(torch.cat(audio), dim=1)
    v = torch.nn.functional.normalize(torch.cat(video), dim=1)
    score, clip_of, hits = (v @ a.T).numpy(), np.array(clips), 0
    for i in range(len(score)):
        same = np.flatnonzero((clip_of == clip_of[i]) & (np.arange(len(score)) != i))
        near, far = rng.choice(same, min(24, len(same)), False), rng.choice(len(score), 25)
        others = np.concatenate([near, far[far != i]])
        hits += bool(score[i, i] > score[i, others].max())
    return hits / len(score)


def table(rows: dict[str, dict[str, float]]) -> str:
    """Aligned columns, one row per voice."""
    keys = list(dict.fromkeys(k for row in rows.values() for k in row))
    lines = [" ".join([f"{'':14}", *(f"{k:>10}" for k in keys)])]
    for name, row in rows.items():
        lines.append(" ".join([f"{name:14}", *(f"{row.get(k, float('nan')):10.3f}" for k in keys)]))
    return "\n".join(lines)


def main(
    cache: Path,
    audio: Path,
    motion: Annotated[Path | None, typer.Option(help="E_mot, for retrieval by embedding.")] = None,
    alignments: Annotated[Path | None, typer.Option(help="Word times, for closures.")] = None,
    gain: Annotated[float, typer.Option(help="As at export.")] = 1.0,
    utterances: Annotated[int, typer.Option(help="Fresh made-up ones.")] = 60,
    seed: int = 11,
) -> None:
    """Print the table and the sync figures."""
    torch.set_num_threads(1)
    networks = (
        Networks.of(config_of(audio)) if hasattr(Networks, "of") else Networks(config_of(audio))
    )
    load_part(networks, "audio", audio)
    networks.eval()
    amplify(networks.audio.net, gain)  # type: ignore[arg-type]
    frames, speech = FrameCache(cache), SpeechCache(cache)
    spoken = [*film(cache, speech, frames, alignments), *made_up(frames.face, utterances, seed)]
    codes = [read(networks, s.mel) for s in spoken]
    gaps = [code_gap(frames.face, s.shape, c) for s, c in zip(spoken, codes, strict=True)]
    filmed = {s.voice for s in spoken if s.filmed}
    voices = list(dict.fromkeys(s.voice for s in spoken))
    groups = {"all others": filmed - {"s1"}, "all made up": set(voices) - filmed}
    rows: dict[str, dict[str, float]] = {}
    for name, members in (groups | {v: {v} for v in voices}).items():
        mine = [i for i, s in enumerate(spoken) if s.voice in members]
        if mine:
            found, true = [gaps[i] for i in mine], [spoken[i] for i in mine]
            rows[name] = {"clips": len(mine), **follow(found, [s.gap for s in true])}
            rows[name] |= closures(found, true)
    print(table(rows))
    film_only = [i for i, s in enumerate(spoken) if s.filmed]
    print(agreement([codes[i] for i in film_only], [spoken[i] for i in film_only]))
    if motion is not None:
        load_part(networks, "motion", motion)
        networks.eval()
        print({"retrieval of 50 by embedding": embedded(networks, speech, frames)})


if __name__ == "__main__":
    typer.run(main)
