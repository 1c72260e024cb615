"""Where the phonemes are inside the words of a recording whose word times are known.

A small forced alignment of one speaker: every phoneme is one diagonal Gaussian over log-mel and
its slope, started from the phoneme durations that a synthesiser gives the word, then Viterbi
and re-estimation in turn. A phoneme may leave its word by `slack` mel frames, because word
times are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.mel import mel_filters
from models.rates import MEL_HOP, MEL_WINDOW, MODEL_RATE_HZ
from trainer.voices.phonemes import INDEX, SILENCE, Segment

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
HOP_S = MEL_HOP / MODEL_RATE_HZ
#: Samples of an analysis window. The product's 80 ms would show a sound 40 ms before it begins.
WINDOW = 400


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word and its phonemes with durations relative to each other."""

    text: str
    start_s: float
    end_s: float
    phonemes: tuple[str, ...]
    shares: tuple[float, ...]


def features(samples: F32) -> F64:
    """(n,) at 16 kHz -> (T, 40): log-mel by fours of bands without the clip's mean, and slope."""
    side = (WINDOW - MEL_HOP) // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, side), WINDOW)[::MEL_HOP]
    magnitude = np.abs(np.fft.rfft(windows * np.hanning(WINDOW), MEL_WINDOW))
    mel = np.log10(np.maximum(magnitude @ mel_filters().astype(np.float64), 1e-5)) / 5
    mel = mel.reshape(len(mel), 20, 4).mean(2)
    mel = mel - mel.mean(0)
    return np.concatenate([mel, 2 * np.gradient(mel, axis=0)], 1)


def initial(words: Sequence[Word]) -> list[Segment]:
    """Phonemes by the shares of each word alone."""
    out = []
    for word in words:
        edges = word.start_s + np.cumsum([0.0, *word.shares]) * (word.end_s - word.start_s)
        spans = zip(word.phonemes, edges[:-1], edges[1:], strict=True)
        out += [Segment(p, float(a), float(b)) for p, a, b in spans]
    return out


def _frame(time_s: float) -> float:
    return time_s / HOP_S


def estimate(clips: Sequence[tuple[F64, list[Segment]]]) -> tuple[F64, F64]:
    """Mean and variance (P, D) of every phoneme's frames; those never seen get the overall ones."""
    everything = np.concatenate([f for f, _ in clips])
    mean = np.tile(everything.mean(0), (len(INDEX), 1))
    variance = np.tile(everything.var(0), (len(INDEX), 1))
    rows: dict[str, list[F64]] = {}
    for feature, segments in clips:
        for s in segments:
            a, b = round(_frame(s.start_s)), round(_frame(s.end_s))
            rows.setdefault(s.phoneme, []).append(feature[max(a, 0) : max(b, a + 1)])
    for name, parts in rows.items():
        found = np.concatenate(parts)
        if len(found) >= 20:
            mean[INDEX[name]] = found.mean(0)
            variance[INDEX[name]] = 0.8 * found.var(0) + 0.2 * everything.var(0)
    return mean, variance


def align(
    feature: F64, words: Sequence[Word], mean: F64, variance: F64, *, slack: int = 3
) -> list[Segment]:
    """Viterbi path through the phonemes of all words, at least two mel frames each."""
    names = [p for w in words for p in w.phonemes]
    low = [
        _frame(w.start_s) - (0 if w.text == SILENCE else slack) for w in words for _ in w.phonemes
    ]
    high = [
        _frame(w.end_s) + (0 if w.text == SILENCE else slack) for w in words for _ in w.phonemes
    ]
    which = np.array([INDEX[n] for n in names])
    gap = feature[:, None] - mean[which]
    cost = 0.5 * (gap**2 / variance[which] + np.log(variance[which])).sum(2)
    time = np.arange(len(feature))[:, None]
    is_silence = which == INDEX[SILENCE]
    outside = (time < np.array(low) - slack * is_silence) | (
        time > np.array(high) + slack * is_silence
    )
    cost = cost + 1e4 * outside
    count, total = len(names), len(feature)
    # best[i]: least cost of a path whose newest frame is the first or a later one of phoneme i.
    first = np.full(count, np.inf)
    later = np.full(count, np.inf)
    first[0] = cost[0, 0]
    came = np.zeros((total, count), bool)
    for t in range(1, total):
        stay = np.minimum(first, later)
        enter = np.concatenate([[np.inf], later[:-1]])
        came[t] = later <= first
        first, later = enter + cost[t], stay + cost[t]
    return _trace(names, came, float(first[-1]) < float(later[-1]))


def _trace(names: list[str], came_later: NDArray[np.bool_], is_first: bool) -> list[Segment]:
    """Walk back: was the frame before still the phoneme's later part, its first, or another's?"""
    total = len(came_later)
    i, end = len(names) - 1, total
    starts = [0] * len(names)
    t = total - 1
    while t > 0 and i >= 0:
        if is_first:
            starts[i] = t
            i -= 1
            is_first = False
        else:
            is_first = not came_later[t, i]
        t -= 1
    edges = [*starts, end]
    return [
        Segment(n, a * HOP_S, b * HOP_S)
        for n, a, b in zip(names, edges[:-1], edges[1:], strict=True)
    ]


def align_speaker(
    clips: Sequence[tuple[F64, Sequence[Word]]], *, rounds: int = 5
) -> list[list[Segment]]:
    """Phonemes of every clip of one speaker."""
    found = [initial(words) for _, words in clips]
    for _ in range(rounds):
        pairs = [(feature, segments) for (feature, _), segments in zip(clips, found, strict=True)]
        mean, variance = estimate(pairs)
        found = [align(feature, words, mean, variance) for feature, words in clips]
    return found
