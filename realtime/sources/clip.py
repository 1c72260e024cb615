"""A recorded motion as a source: looped without a jump, saved as .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from models.codes import CODE_DIM, FACTOR_SLICES, Array, Factor, MotionCode
from models.rates import FPS
from realtime.sources.base import Moment, smoothstep

CLIP_VERSION = 1
MAX_CLIP_FRAMES = 10 * 60 * FPS
SEAM_FRAMES = 12


class ClipError(ValueError):
    """A clip cannot be used; the message is a sentence for a person."""


class Clip:
    """Codes (T, 58) float32 at 25 fps, relative like every source's; frame 0 is clip frame 0.

    Looping: the last `seam_frames` of every round are blended into the first ones of the
    next, so the loop's period is T - seam_frames. Raises ClipError for codes that are
    empty, too long, not finite or of another width.
    """

    kind: Literal["clip"] = "clip"
    blinks = True

    def __init__(self, codes: Array, name: str | None = None, *, seam_frames: int = SEAM_FRAMES):
        codes = np.array(codes, np.float32)
        if codes.ndim != 2 or codes.shape[1] != CODE_DIM:
            raise ClipError(f"A clip holds (frames, {CODE_DIM}) codes, not {codes.shape}.")
        if not 1 <= len(codes) <= MAX_CLIP_FRAMES:
            raise ClipError(f"A clip has 1 to {MAX_CLIP_FRAMES} frames, not {len(codes)}.")
        if not np.isfinite(codes).all():
            raise ClipError("The clip holds values that are not finite.")
        codes.flags.writeable = False
        self.codes = codes
        self.name = name
        self._seam = min(seam_frames, (len(codes) - 1) // 2)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def period(self) -> int:
        """Frames after which the motion repeats."""
        return len(self.codes) - self._seam

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        """Code at `moment`; the clip's first frame belongs to frame 0 of the session."""
        place = moment.frame_index % self.period
        part = FACTOR_SLICES[factor]
        code = self.codes[place, part]
        if place >= self._seam or moment.frame_index < self.period:
            return code
        share = np.float32(smoothstep((place + 1) / (self._seam + 1)))
        tail = self.codes[self.period + place, part]
        blended: Array = tail + share * (code - tail)
        return blended

    def motion(self, frame: int) -> MotionCode:
        """All codes of one recorded frame."""
        return MotionCode.split(self.codes[frame])


def save_clip(path: Path, clip: Clip) -> None:
    """Write `clip` to an .npz file that `load_clip` reads."""
    with path.open("wb") as file:
        np.savez_compressed(
            file, version=np.int64(CLIP_VERSION), fps=np.int64(FPS), codes=clip.codes
        )


def load_clip(path: Path, name: str | None = None) -> Clip:
    """Read an .npz of `save_clip`; never unpickles. Raises ClipError."""
    try:
        with np.load(path, allow_pickle=False) as data:
            version, fps, codes = int(data["version"]), int(data["fps"]), data["codes"]
    except FileNotFoundError as error:
        raise ClipError(f"There is no clip at {path}.") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ClipError(f"{path.name} is not a motion clip.") from error
    if version != CLIP_VERSION or fps != FPS:
        raise ClipError(
            f"{path.name} is a clip of version {version} at {fps} fps, not usable here."
        )
    return Clip(codes, name or path.stem)
