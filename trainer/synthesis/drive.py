"""How synthetic people move: every factor from a random stream of its own.

Pose is a sum of slow waves, gaze a chain of fixations, blinks come by chance, expressions are
mixtures that fade in and out, and the mouth says random phonemes through the table of
`trainer.voices` (which needs no synthesiser). Lids do not follow the gaze, on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS, EXPRESSION_NAMES
from models.face import FaceModel
from models.rates import FPS
from trainer.face_fit import GAZE_UNIT_DEG
from trainer.synthesis.render import Drive
from trainer.voices.lips import LipModel, lip_codes
from trainer.voices.phonemes import PHONEMES, SILENCE, Segment

F64 = NDArray[np.float64]
_STREAMS = ("pose", "shift", "gaze", "blink", "wide", "exp", "lip")
#: Expressions people make: shape prefix -> weight; sides move together or, now and then, apart.
_MIXTURES: tuple[dict[str, float], ...] = (
    {"mouthSmile": 0.9, "cheekSquint": 0.5, "eyeSquint": 0.3},
    {"mouthSmile": 0.6, "mouthDimple": 0.4},
    {"mouthSmile": 0.9, "mouthUpperUp": 0.5, "mouthLowerDown": 0.4},
    {"mouthStretch": 0.5, "mouthLowerDown": 0.7},
    {"browInnerUp": 0.9, "browOuterUp": 0.8},
    {"browInnerUp": 0.9, "mouthFrown": 0.5},
    {"browDown": 0.9, "noseSneer": 0.4, "eyeSquint": 0.3},
    {"mouthFrown": 0.8, "mouthShrugLower": 0.4},
    {"mouthStretch": 0.6, "browInnerUp": 0.4},
    {"mouthPress": 0.7, "browDown": 0.3},
    {"mouthFunnel": 0.5},
    {"mouthUpperUp": 0.5, "noseSneer": 0.5},
    {"mouthLowerDown": 0.5},
    {"cheekPuff": 0.6},
    {"eyeSquint": 0.8, "cheekSquint": 0.5},
)


@dataclass(frozen=True, slots=True)
class Ranges:
    """Largest motions relative to the still, and `whole_deg` (yaw, pitch, roll) in all.

    What a still does not show smears from about 15 degrees of yaw on; validity says where.
    """

    yaw_deg: float = 15.0
    pitch_deg: float = 11.0
    roll_deg: float = 10.0
    shift_cm: float = 0.5
    gaze_yaw_deg: float = 18.0
    gaze_pitch_deg: float = 10.0
    whole_deg: tuple[float, float, float] = (35.0, 20.0, 20.0)


PLAIN = Ranges()
#: As far as a head turns in front of a webcam.
WIDE = Ranges(yaw_deg=30.0, pitch_deg=17.0, roll_deg=20.0, shift_cm=0.7)


def drive_clip(
    seed: tuple[int, ...],
    frames: int,
    model: LipModel,
    face: FaceModel,
    ranges: Ranges | None = None,
) -> list[Drive]:
    """Motion of one clip at 25 fps; depends on `seed` only."""
    r = ranges or PLAIN
    rng = {name: np.random.default_rng((*seed, i)) for i, name in enumerate(_STREAMS)}
    limits = np.radians([r.yaw_deg, r.pitch_deg, r.roll_deg])
    turn = _waves(rng["pose"], frames, limits)
    shift = _waves(rng["shift"], frames, np.full(2, r.shift_cm))
    gaze = _gaze(rng["gaze"], frames, r)
    blink = _blinks(rng["blink"], frames)
    wide = np.clip(_waves(rng["wide"], frames, np.array([0.5])), 0, None)
    eye = np.concatenate([blink, gaze, wide, wide], 1)
    exp = _expressions(rng["exp"], frames)
    lip = _speech(rng["lip"], frames, model, face)
    return [Drive(*row) for row in zip(turn, shift, lip, eye, exp, strict=True)]


def _waves(rng: np.random.Generator, frames: int, limits: F64) -> F64:
    """(T, N): an offset and three slow sines per axis, within the limits; some clips hold still."""
    count = len(limits)
    time = np.arange(frames) / FPS
    hz: F64 = np.exp(rng.uniform(np.log(0.1), np.log(1.1), (3, count)))
    phase = rng.uniform(0, 2 * np.pi, (3, count))
    size: F64 = rng.dirichlet([1.0] * 3, count).T * rng.uniform(0.2, 1.0, count)
    waves = (size * np.sin(2 * np.pi * hz * time[:, None, None] + phase)).sum(1)
    if rng.random() < 0.1:
        waves *= 0
    return np.asarray(np.clip(waves + rng.uniform(-0.6, 0.6, count), -1, 1) * limits)


def _gaze(rng: np.random.Generator, frames: int, r: Ranges) -> F64:
    """(T, 2) in code units: fixations of .2 to 2 s, jumps of two frames."""
    limit = np.array([r.gaze_yaw_deg, r.gaze_pitch_deg]) / GAZE_UNIT_DEG
    out = np.zeros((frames, 2))
    at, here = 0, rng.uniform(-1, 1, 2)
    while at < frames:
        length = int(rng.uniform(0.2, 2.0) * FPS)
        out[at : at + length] = here
        at, here = at + length, rng.uniform(-1, 1, 2)
        if at < frames:
            out[at - 1] = (out[at - 1] + here) / 2
    return np.asarray(out * limit)


def _blinks(rng: np.random.Generator, frames: int) -> F64:
    """(T, 2) closure: shut in two frames, open in three to five; some partial, few one-eyed."""
    out = np.zeros((frames, 2))
    rate = rng.uniform(6, 50) / 60 / FPS
    for at in np.flatnonzero(rng.random(frames) < rate).tolist():
        hold = int(rng.integers(1, 4) if rng.random() < 0.85 else rng.integers(4, 20))
        opening = int(rng.integers(3, 6))
        curve = np.concatenate([[0.5], np.ones(hold), np.linspace(1, 0, opening + 1)[1:]])
        depth = 1.0 if rng.random() < 0.75 else rng.uniform(0.3, 0.9)
        sides = [0, 1] if rng.random() < 0.92 else [int(rng.integers(2))]
        stop = min(frames, at + len(curve))
        for side in sides:
            out[at:stop, side] = np.maximum(out[at:stop, side], depth * curve[: stop - at])
    return out


def _expressions(rng: np.random.Generator, frames: int) -> F64:
    """(T, 30): mixtures of one or two patterns for .6 to 2.5 s with soft changes; often none."""
    out = np.zeros((frames, DIMS["exp"]))
    at = 0
    while at < frames:
        length = int(rng.uniform(0.6, 2.5) * FPS)
        wanted = np.zeros(DIMS["exp"])
        for _ in range(int(rng.choice([0, 1, 1, 2]))):
            mixture = _MIXTURES[int(rng.integers(len(_MIXTURES)))]
            strength = rng.uniform(0.2, 1.0)
            sides = ("_L", "_R") if rng.random() < 0.8 else (str(rng.choice(["_L", "_R"])),)
            for i, name in enumerate(EXPRESSION_NAMES):
                prefix = name[:-2] if name[-2:] in ("_L", "_R") else name
                if prefix in mixture and (name == prefix or name.endswith(sides)):
                    wanted[i] = max(wanted[i], strength * mixture[prefix])
        out[at : at + length] = wanted
        at += length
    kernel = np.hanning(11) / np.hanning(11).sum()
    padded = np.pad(out, ((5, 5), (0, 0)), "edge")
    return np.stack([np.convolve(column, kernel, "valid") for column in padded.T], 1)


def _speech(rng: np.random.Generator, frames: int, model: LipModel, face: FaceModel) -> F64:
    """(T, 16): random phonemes of 50 to 200 ms with pauses; some clips are silent."""
    if rng.random() < 0.1:
        return np.zeros((frames, DIMS["lip"]))
    segments, at = [], 0.0
    while at < frames / FPS + 0.1:
        pause = rng.random() < 0.07
        length = rng.uniform(0.2, 0.8) if pause else rng.uniform(0.05, 0.2)
        name = SILENCE if pause else PHONEMES[int(rng.integers(1, len(PHONEMES)))]
        segments.append(Segment(name, at, at + length))
        at += length
    codes = lip_codes(model, face, segments, frames, float(rng.uniform(0.9, 1.7)))
    return codes.astype(np.float64)
