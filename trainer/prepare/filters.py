"""What makes a picture or a stretch of sound unfit, and what is left when it is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import webrtcvad
from numpy.typing import NDArray

from models.rates import FPS, MODEL_RATE_HZ
from trainer.prepare.faces import Sighting

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_STEP = MODEL_RATE_HZ * 30 // 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """What is still good enough."""

    min_eye_distance_px: float = 26.0
    """A canonical crop at 256 has 55; below half of that a face is mostly interpolation."""
    min_sharpness: float = 1.2
    """Grey levels of fine detail; GRID film has 1.7 and more, a face out of focus below 1."""
    max_turn: float = 0.65
    """Yaw or pitch in radians; far beyond what the generator draws."""
    max_jump: float = 0.35
    """Movement of the face in one frame, in eye distances: beyond that it is another face."""
    min_frames: int = 2 * FPS
    max_frames: int = 10 * FPS
    min_speech: float = 0.25
    """Share of a clip that must be speech."""
    min_modulation: float = 0.18
    """Share of the level's variation at 2 to 10 Hz: syllables have it, held tones do not."""


def verdicts(sightings: Sequence[Sighting], limits: Limits) -> list[str | None]:
    """Per picture: None if it is good, else why not. A cut is told at its first picture."""
    sharp = _median([s.sharpness for s in sightings], 5)
    out: list[str | None] = []
    before: Sighting | None = None
    for sighting, detail in zip(sightings, sharp, strict=True):
        out.append(_verdict(sighting, before, detail, limits))
        before = sighting
    return out


def _verdict(now: Sighting, before: Sighting | None, detail: float, limits: Limits) -> str | None:
    if now.cut:
        return "cut"
    if now.landmarks is None:
        return "no face"
    if now.faces > 1:
        return "several faces"
    if now.eye_distance_px < limits.min_eye_distance_px:
        return "face too small"
    if max(abs(now.yaw), abs(now.pitch)) > limits.max_turn:
        return "turned too far"
    if detail < limits.min_sharpness:
        return "blurred"
    if before is not None and before.landmarks is not None:
        moved = float(np.linalg.norm((now.landmarks - before.landmarks).mean(0)))
        if moved > limits.max_jump * now.eye_distance_px:
            return "cut"
    return None


def _median(values: Sequence[float], width: int) -> F64:
    """Running median, so that one blinked or shaken picture does not end a clip."""
    padded = np.pad(np.asarray(values, np.float64), width // 2, mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1))


def runs(reasons: Sequence[str | None], limits: Limits) -> list[tuple[int, int]]:
    """Stretches [start, end) of good pictures, cut into equal parts of at most `max_frames`."""
    out: list[tuple[int, int]] = []
    start = 0
    for i, reason in enumerate([*reasons, "end"]):
        if reason is None:
            continue
        length = i - start
        if length >= limits.min_frames:
            parts = -(-length // limits.max_frames)
            edges = np.linspace(start, i, parts + 1).astype(int)
            out += [(int(a), int(b)) for a, b in pairwise(edges)]
        start = i + 1
    return out


def speech_share(samples: F32) -> float:
    """Share of 30 ms steps that WebRTC's detector calls speech; 16 kHz mono float32."""
    if len(samples) < _STEP:
        return 0.0
    gate = webrtcvad.Vad(2)
    peak = float(np.abs(samples).max())
    if peak < 1e-3:
        return 0.0
    pcm = np.clip(samples * (0.5 / peak) * 32767, -32768, 32767).astype(np.int16)
    steps = [pcm[i : i + _STEP].tobytes() for i in range(0, len(pcm) - _STEP + 1, _STEP)]
    return float(np.mean([gate.is_speech(step, MODEL_RATE_HZ) for step in steps]))


def modulation(samples: F32) -> float:
    """Depth of the level's movement between 2 and 10 Hz, as a share of its mean.

    Speech opens and closes four or five times a second; silence, hum and held music do not.
    """
    block = MODEL_RATE_HZ // 100
    count = len(samples) // block
    if count < 50:
        return 0.0
    level = np.sqrt((samples[: count * block].reshape(count, block) ** 2).mean(1))
    mean = float(level.mean())
    if mean < 1e-5:
        return 0.0
    spectrum = np.abs(np.fft.rfft(level - mean)) / count
    hz = np.fft.rfftfreq(count, 0.01)
    return float(np.sqrt(2 * (spectrum[(hz >= 2) & (hz <= 10)] ** 2).sum()) / mean)


def sound_verdict(samples: F32, limits: Limits) -> str | None:
    """Why a clip's sound teaches no lips, or None."""
    if speech_share(samples) < limits.min_speech:
        return "no speech"
    if modulation(samples) < limits.min_modulation:
        return "music or noise"
    return None
