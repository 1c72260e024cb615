"""The one call surface of every runtime.

An engine owns loaded networks and runs them on numpy arrays. It is not thread-safe: the
render worker that created it is the only caller. Runtimes are chosen explicitly
(`models.runtime.load_engine`); nothing falls back silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.codes import Array, MotionCode
from models.config import ModelConfig


class EngineError(RuntimeError):
    """An engine could not be loaded or run; the message says what to do."""


class DeviceLostError(EngineError):
    """The device or its driver failed: this engine is dead and must be made anew."""


@dataclass(frozen=True, slots=True)
class MotionReading:
    """What E_mot reads from one face crop."""

    code: MotionCode
    """All four codes; `pose` is relative to the canonical crop the face was cut from."""
    landmarks: Array
    """(152, 2) float32 landmarks in canonical crop units, [0, 1], x right, y down."""


@dataclass(frozen=True, slots=True)
class Appearance:
    """Everything the generator needs of one portrait, computed once (E_app)."""

    features: dict[str, Array]
    """Named feature maps, batch of 1."""
    code: MotionCode
    """The portrait's own motion code."""
    shape: Array
    """(152, 3) float32: neutral head shape in the head frame (see `models.face`)."""
    landmarks: Array
    """(152, 2) float32: the portrait's landmarks in canonical crop units."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What the generator returns for one frame; `models.composite` turns it into pixels."""

    flow: Array
    """(F, F, 2) float32: for every output position the source position, both in [0, 1]."""
    mask: Array
    """(S, S) float32 in [0, 1]: weight of warped source pixels."""
    rgb: Array
    """(S, S, 3) float32 in [0, 1]: generated pixels."""


class Engine(Protocol):
    """Networks of one configuration, loaded and warmed up."""

    name: str
    """`openvino`, `torch` or `tensorrt`."""
    config: ModelConfig

    def audio(self, mel_TM: Array) -> Array:
        """(config.mel_window, 80) log-mel in [0, 1] -> lip code (16,)."""

    def audio_batch(self, mel_BTM: Array) -> Array:
        """(B, config.mel_window, 80) log-mel windows, B >= 1 -> lip codes (B, 16)."""

    def motion(self, face_HWC: NDArray[np.uint8]) -> MotionReading:
        """(256, 256, 3) uint8 RGB canonical crop of a webcam frame -> codes and landmarks."""

    def appearance(self, source_HWC: NDArray[np.uint8]) -> Appearance:
        """(256, 256, 3) uint8 RGB canonical crop of a portrait -> appearance."""

    def draw(self, appearance: Appearance, driving: MotionCode) -> Drawing:
        """One frame of the portrait moved by `driving` (absolute codes)."""
