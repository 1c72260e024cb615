"""What a session costs on this machine, measured before anybody has one.

Admission (`realtime.admission`) judges by measured costs. Until a first frame was drawn for
somebody there are none; so when an engine is loaded it draws a few frames of noise, reads a
webcam picture of noise, and an encoder compresses a moving pattern. What real sessions then
measure takes the place of these figures within half a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.composite import warp_source
from models.rates import MEL_BANDS
from models.runtime.engine import Engine
from models.runtime.frames import FrameRenderer, FrameRequest
from realtime.rtc import default_encoder

RUNS = 5
SEED = 1
#: Side of the crops that networks read.
FACE_PX = 256
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Costs:
    """Medians in nanoseconds."""

    frame_ns: float
    """Audio network, drawing, composition and conversion of one frame."""
    webcam_ns: float
    """The motion network on one face; finding the face in a picture comes on top."""


def measure_engine(
    engine: Engine, renderer: FrameRenderer, size: int, clock: Clock = time.monotonic_ns
) -> Costs:
    """Draw `RUNS` frames of `size` pixels. The thread that owns the engine. Raises EngineError."""
    rng = np.random.default_rng(SEED)
    picture = _pattern(rng, FACE_PX)
    appearance = engine.appearance(picture)
    source = warp_source(np.asarray(cv2.resize(picture, (512, 512)), np.uint8), size)
    frames, webcams = [], []
    for _ in range(RUNS):
        mel = rng.uniform(0, 1, (engine.config.mel_window, MEL_BANDS)).astype(np.float32)
        start = clock()
        engine.audio(mel)
        renderer.render([FrameRequest(appearance, source, appearance.code)])
        drawn = clock()
        engine.motion(picture)
        frames.append(drawn - start)
        webcams.append(clock() - drawn)
    return Costs(float(np.median(frames)), float(np.median(webcams)))


def measure_encoder(size: int, bps: int, clock: Clock = time.monotonic_ns) -> float:
    """Median time to encode one picture of `size` pixels, ns. Any one thread."""
    rng = np.random.default_rng(SEED)
    pattern = _pattern(rng, size)
    took = []
    encoder = default_encoder(bps)
    try:
        for k in range(RUNS + 1):
            moved = np.roll(pattern, 2 * k, axis=1)
            i420 = np.asarray(cv2.cvtColor(moved, cv2.COLOR_RGB2YUV_I420), np.uint8)
            start = clock()
            encoder.encode(i420, k, k == 0)
            took.append(clock() - start)
    finally:
        encoder.close()
    # The first one is a key frame.
    return float(np.median(took[1:]))


def _pattern(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """(size, size, 3) uint8: soft blobs, about as hard to compress as a face."""
    coarse = rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)
