"""One video file -> clips in canonical crops with sound, codes and landmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.face import lip_gap, warp_crop
from models.runtime.base import BaseEngine
from trainer.evaluate.score import own_identity
from trainer.evaluate.studio import lip_codes
from trainer.prepare.faces import FaceClip, Scanner, Sighting, clip_transform, read_crops
from trainer.prepare.filters import Limits, runs, sound_verdict, verdicts
from trainer.prepare.media import FRAME_SAMPLES, pictures, sound, stated_frames
from trainer.prepare.report import FileReport
from trainer.prepare.sync import Sync, SyncLimits, check, expected_gap, shift

F32 = NDArray[np.float32]
OnFrame = Callable[[int], None]
#: Fewer missing frames than this, or than this share, are a container's rounding.
CUT_OFF_FRAMES, CUT_OFF_SHARE = 12, 0.02


@dataclass(frozen=True, slots=True)
class Clip:
    """One usable stretch of a video."""

    face: FaceClip
    samples: F32
    """(T * 640,) at 16 kHz, in step with the pictures."""
    start_frame: int
    """In the video, at 25 frames a second."""
    transform: F32
    """(2, 3): pixels of the decoded picture to pixels of the crop."""
    identity: NDArray[np.float64]
    """(64,) E_app's vector, mean of a few frames."""


def cut_video(
    path: Path,
    engine: BaseEngine,
    report: FileReport,
    *,
    limits: Limits | None = None,
    sync_limits: SyncLimits | None = None,
    listen: bool = True,
    on_frame: OnFrame = lambda count: None,
) -> list[Clip]:
    """Find, check and cut everything usable in a file; what is not goes into `report`.

    Without `listen` only the pictures count: the sound may be missing or anything.
    Raises MediaError when the file cannot be read, or has no sound to listen to.
    """
    limits = limits or Limits()
    sightings = _scan(path, engine, on_frame)
    missing = stated_frames(path) - len(sightings)
    if missing < max(CUT_OFF_FRAMES, CUT_OFF_SHARE * len(sightings)):
        missing = 0
    report.drop("not to be decoded: the file is damaged or cut off", missing)
    report.seconds = round((len(sightings) + missing) / 25, 2)
    signal = sound(path) if listen else np.zeros(0, np.float32)
    reasons = verdicts(sightings, limits)
    for reason in reasons:
        if reason is not None:
            report.drop(reason, 1)
    stretches = runs(reasons, limits)
    good = sum(r is None for r in reasons)
    report.drop("too short a stretch", good - sum(b - a for a, b in stretches))
    if not stretches:
        return []
    clips = _cut(path, engine, sightings, stretches, on_frame)
    verdict = _sync(clips, signal, engine, sync_limits) if listen else Sync(0.0, 0.0, None)
    report.offset_frames, report.sync_r = round(verdict.offset_frames, 2), round(verdict.r, 3)
    if verdict.reason:
        report.drop(verdict.reason, sum(len(face.crops) for face, *_ in clips))
        return []
    signal = shift(signal, verdict.shift_samples)
    out = []
    for face, start, transform in clips:
        samples = _slice(signal, start, len(face.crops))
        reason = sound_verdict(samples, limits) if listen else None
        if reason is not None:
            report.drop(reason, len(face.crops))
            continue
        some = face.crops[:: max(1, len(face.crops) // 4)][:4]
        identity = np.mean([own_identity(crop, engine) for crop in some], axis=0)
        out.append(Clip(face, samples, start, transform, identity))
    report.clips = len(out)
    report.kept_s = round(sum(len(c.face.crops) for c in out) / 25, 2)
    return out


def _scan(path: Path, engine: BaseEngine, on_frame: OnFrame) -> list[Sighting]:
    scanner = Scanner(engine)
    out = []
    for picture in pictures(path):
        out.append(scanner.look(picture))
        on_frame(len(out))
    return out


def _cut(
    path: Path,
    engine: BaseEngine,
    sightings: list[Sighting],
    stretches: list[tuple[int, int]],
    on_frame: OnFrame,
) -> list[tuple[FaceClip, int, F32]]:
    """Second pass: crops with one fixed transform per stretch, read by E_mot."""
    size = engine.config.image_size
    seen = [[s.landmarks for s in sightings[a:b] if s.landmarks is not None] for a, b in stretches]
    transforms = [clip_transform(np.stack(landmarks), size) for landmarks in seen]
    crops: list[list[NDArray[np.uint8]]] = [[] for _ in stretches]
    which = 0
    for number, picture in enumerate(pictures(path)):
        while which < len(stretches) and number >= stretches[which][1]:
            which += 1
        if which == len(stretches):
            break
        if number >= stretches[which][0]:
            crops[which].append(warp_crop(picture, transforms[which], size))
        on_frame(len(sightings) + number)
    return [
        (read_crops(part, engine), start, transform)
        for part, (start, _), transform in zip(crops, stretches, transforms, strict=True)
    ]


def _sync(
    clips: list[tuple[FaceClip, int, F32]],
    signal: F32,
    engine: BaseEngine,
    limits: SyncLimits | None,
) -> Sync:
    seen, expected = [], []
    for face, start, _ in clips:
        lips = lip_codes(_slice(signal, start, len(face.crops)), len(face.crops), engine)
        seen.append(lip_gap(face.landmarks).astype(np.float64))
        expected.append(expected_gap(lips, engine.face))
    return check(seen, expected, limits)


def _slice(signal: F32, start_frame: int, frames: int) -> F32:
    part = signal[start_frame * FRAME_SAMPLES : (start_frame + frames) * FRAME_SAMPLES]
    return np.pad(part, (0, frames * FRAME_SAMPLES - len(part)))
