"""Draw what the suite asks for, once: every video is kept under a name made of its inputs.

Two ways lead to a picture. `visavis render` in a process of its own is the product as
users have it: tracking, neutral, smoothing, gains, limits. Beside it the studio drives
the same engine, audio window, expression window and compositor with codes exactly as the
encoders read them, so that what the networks do and what the pipeline does can be told
apart. Videos are lossless in the second way, as `render` encodes them in the first.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import DIMS, FACTOR_SLICES, FACTORS, MotionCode
from models.composite import compose
from models.config import ModelConfig
from models.face import lip_gap
from models.portrait import Portrait, decode_image, prepare_portrait
from models.rates import MODEL_RATE_HZ
from models.runtime.base import BaseEngine
from models.runtime.engine import Appearance
from models.streaming import AudioWindow, ExpressionWindow
from trainer.prepare.faces import FaceClip, read_clip
from trainer.prepare.media import MediaError, pictures, sound, write_clip

Pixels = NDArray[np.uint8]
F32 = NDArray[np.float32]
SIZE = 256
#: Change it when drawing changes, so that old videos are not taken for new ones.
VERSION = "2"
#: Longer drivers are cut.
MAX_FRAMES = 250


class RenderFailedError(RuntimeError):
    """`visavis render` refused an item; the message is its own."""


@dataclass(frozen=True, slots=True)
class Driver:
    """One driving clip in its canonical crop."""

    face: FaceClip
    codes: F32
    """(T, 58): as read, the expression under its trailing mean, the lips read from the picture."""
    spoken: F32 | None
    """(T, 16) lip code of its sound by E_aud; None where the file is silent."""


@dataclass(frozen=True, slots=True)
class Studio:
    """`checkpoint` is the folder or None for the shipped one; `digest` names its content."""

    engine: BaseEngine
    checkpoint: Path | None
    digest: str
    folder: Path
    threads: int = 2

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def place(self, *parts: object) -> Path:
        """Where the video of these inputs lies; files count by name, size and date."""
        words = [VERSION, self.digest]
        for part in parts:
            if isinstance(part, Path):
                stat = part.stat()
                words.append(f"{part.resolve()} {stat.st_size} {stat.st_mtime_ns}")
            else:
                words.append(str(part))
        return self.folder / (hashlib.sha256("\n".join(words).encode()).hexdigest()[:20] + ".mp4")

    def driver(self, path: Path) -> Driver:
        """Read a driving clip (E_mot on every frame), or take what an earlier item read.

        Raises ValueError, MediaError.
        """
        kept, video = self.place("reading", path).with_suffix(".npz"), self.place("driver", path)
        if kept.exists() and video.exists():
            return _kept_driver(kept, video)
        frames = [f for f, _ in zip(pictures(path), range(MAX_FRAMES), strict=False)]
        face = read_clip(frames, self.engine)
        try:
            spoken = lip_codes(sound(path), len(frames), self.engine)
        except MediaError:
            spoken = None
        driver = Driver(face, trailing(face.codes, self.engine.config), spoken)
        self.driver_video(path, driver)
        _keep_driver(driver, kept)
        return driver

    def driver_video(self, path: Path, driver: Driver) -> Path:
        """The driver's own crops as a video, so that both sides are measured alike."""
        place = self.place("driver", path)
        if not place.exists():
            write_clip(place, driver.face.crops, lossless=True)
        return place

    def portrait(self, path: Path) -> Portrait:
        """Enrol a picture as the product does. Raises PortraitError."""
        image = decode_image(path.read_bytes())
        return prepare_portrait(image, self.engine, id=path.stem, name=path.stem)

    def drawn(self, place: Path, portrait: Appearance, source: Pixels, codes: F32) -> Path:
        """Draw codes (T, 58) on a portrait into `place`, unless it is there already."""
        if not place.exists():
            write_clip(place, draw(self.engine, portrait, source, codes), lossless=True)
        return place

    def product(self, portrait: Path, audio: Path, video: Path | None) -> Path:
        """`visavis render` in a process of its own. Raises RenderFailedError."""
        place = self.place("product", portrait, audio, video or "")
        if place.exists():
            return place
        command = [
            visavis(), "render", "--portrait", str(portrait), "--audio", str(audio),
            "--size", str(SIZE), "-o", str(place), "--threads", str(self.threads),
        ]  # fmt: skip
        if video is not None:
            for option in ("--pose", "--eyes", "--expression"):
                command += [option, str(video)]
        if self.checkpoint is not None:
            command += ["--checkpoint", str(self.checkpoint)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RenderFailedError(done.stderr.strip().splitlines()[-1] if done.stderr else "?")
        return place


def _keep_driver(driver: Driver, place: Path) -> None:
    """Everything but the pictures, which are a video already."""
    part = place.with_suffix(".part.npz")
    spoken = np.zeros((0, DIMS["lip"]), np.float32) if driver.spoken is None else driver.spoken
    np.savez(part, read=driver.face.codes, landmarks=driver.face.landmarks, codes=driver.codes,
             spoken=spoken)  # fmt: skip
    part.replace(place)


def _kept_driver(place: Path, video: Path) -> Driver:
    with np.load(place, allow_pickle=False) as z:
        face = FaceClip(list(pictures(video)), z["read"], z["landmarks"])
        return Driver(face, z["codes"], z["spoken"] if len(z["spoken"]) else None)


def visavis() -> str:
    """The installed command, beside this Python first."""
    beside = Path(sys.executable).with_name("visavis")
    found = str(beside) if beside.exists() else shutil.which("visavis")
    if found is None:
        raise RenderFailedError("The command visavis is not installed here: pip install -e .")
    return found


def lip_codes(samples: F32, frames: int, engine: BaseEngine) -> F32:
    """(frames, 16) lip codes of 16 kHz samples, streamed as in the product."""
    window = AudioWindow(engine.config)
    ahead = (engine.config.right_frames + 1) * (MODEL_RATE_HZ // 25)
    out = np.zeros((frames, DIMS["lip"]), np.float32)
    for frame, mel in window.push(np.pad(samples, (0, ahead))):
        if frame < frames:
            out[frame] = engine.audio(mel)
    return out


def trailing(codes: F32, config: ModelConfig) -> F32:
    """Codes (T, 58) with the expression under the product's trailing mean."""
    out = codes.copy()
    window = ExpressionWindow(config.expression_window, DIMS["exp"])
    for row in out:
        row[FACTOR_SLICES["exp"]] = window.push(row[FACTOR_SLICES["exp"]])
    return out


def draw(engine: BaseEngine, portrait: Appearance, source: Pixels, codes: F32) -> list[Pixels]:
    """Pictures (256, 256, 3) of a portrait moved by absolute codes (T, 58)."""
    return [
        compose(engine.draw(portrait, MotionCode.split(code)), source, len(source))
        for code in codes
    ]


def at_size(image: Pixels, size: int = SIZE) -> Pixels:
    """A canonical crop at another size."""
    method = cv2.INTER_AREA if size < len(image) else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size, size), interpolation=method), np.uint8)


def calmest(face: FaceClip) -> int:
    """The frame that a portrait should be: lips closed, eyes open, straight, neutral."""
    eye, pose, exp = (face.codes[:, FACTOR_SLICES[f]] for f in ("eye", "pose", "exp"))
    cost = (
        8 * np.maximum(lip_gap(face.landmarks), 0)
        + eye[:, :2].clip(0).mean(1)
        + np.abs(eye[:, 2:4]).mean(1)
        + np.abs(pose[:, :3]).mean(1)
        + np.abs(exp).mean(1)
    )
    return int(np.argmin(cost))


def swapped(a: F32, b: F32, factors: Sequence[str]) -> F32:
    """Codes of A (T, 58) with the named factors of B, as long as the shorter one."""
    count = min(len(a), len(b))
    out = a[:count].copy()
    for factor in FACTORS:
        if factor in factors:
            out[:, FACTOR_SLICES[factor]] = b[:count, FACTOR_SLICES[factor]]
    return out
