"""Videos of a talking head for the tests, drawn by our own engine from a bundled portrait."""

from __future__ import annotations

import wave
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from models.codes import FACTOR_SLICES
from models.portrait import decode_image, prepare_portrait
from models.runtime import load_engine
from models.runtime.base import BaseEngine
from trainer.evaluate.studio import at_size, draw, lip_codes
from trainer.prepare.media import write_clip
from trainer.prepare.sync import shift

ROOT = Path(__file__).parents[2]
PORTRAITS = ROOT / "web" / "portraits"
SPEECH = ROOT / "tests" / "data" / "speech_a_16k.wav"


@cache
def the_engine() -> BaseEngine:
    """OpenVINO with the shipped weights, loaded once for all modules."""
    return load_engine("openvino", threads=1)


@cache
def speech(seconds: float) -> np.ndarray:
    """The beginning of the committed speech, float32 at 16 kHz."""
    with wave.open(str(SPEECH)) as file:
        pcm = np.frombuffer(file.readframes(int(seconds * 16_000)), np.int16)
    return pcm.astype(np.float32) / 32768


@cache
def talking_frames(portrait: str, seconds: float) -> tuple[np.ndarray, ...]:
    """Pictures (300, 400, 3): the portrait speaks, nods and blinks before a plain wall."""
    engine = the_engine()
    image = decode_image((PORTRAITS / f"{portrait}.jpg").read_bytes())
    source = prepare_portrait(image, engine, id="x", name="x")
    count = int(seconds * 25)
    codes = np.repeat(source.appearance.code.concat()[None], count, 0)
    lips = lip_codes(speech(seconds), count, engine)
    codes[:, FACTOR_SLICES["lip"]] += lips
    t = np.arange(count) / 25
    codes[:, FACTOR_SLICES["pose"].start] += (0.06 * np.sin(2 * np.pi * 0.4 * t)).astype("f4")
    codes[:, FACTOR_SLICES["eye"].start : FACTOR_SLICES["eye"].start + 2] += (
        np.abs((t % 2) - 1) < 0.06
    )[:, None]
    frames = []
    for face in draw(engine, source.appearance, at_size(source.image), codes):
        wall = np.full((300, 400, 3), (90, 110, 120), np.uint8)
        wall[30:286, 72:328] = face
        frames.append(wall)
    return tuple(frames)


def write_talking(
    path: Path, portrait: str = "mei", seconds: float = 4.4, late_frames: float = 0.0
) -> None:
    """A video whose lips come `late_frames` after their sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = shift(speech(seconds), -round(late_frames * 640))
    write_clip(path, list(talking_frames(portrait, seconds)), samples)


def write_empty_room(path: Path, seconds: float = 2.4) -> None:
    """A video with speech and nobody in it."""
    ramp = np.linspace(0, 255, 320).astype(np.uint8)
    room = np.repeat(np.repeat(ramp[None], 240, 0)[..., None], 3, 2)
    count = int(seconds * 25)
    frames = [cv2.GaussianBlur(np.roll(room, 3 * i, 1), (0, 0), 3) for i in range(count)]
    write_clip(path, [np.asarray(f, np.uint8) for f in frames], speech(seconds))


def declare(folder: Path) -> None:
    """Write a licence.toml that allows everything."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "licence.toml").write_text(
        'licence = "Apache-2.0"\nsource = "drawn by the tests"\nconsent = true\n'
    )
