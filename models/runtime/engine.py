"""The one call surface of every runtime.

An engine owns loaded networks and runs them on numpy arrays. It is not thread-safe: the
render worker that created it is the only caller. Runtimes are chosen explicitly
(`models.runtime.load_engine`); nothing falls back silently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

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
class YuvPicture:
    """A decoded webcam picture as the decoder left it: 8 bits, one chroma sample per 2 x 2 pixels.

    Raises ValueError for planes that do not belong together.
    """

    y: NDArray[np.uint8]
    """(H, W)."""
    u: NDArray[np.uint8]
    """(ceil(H/2), ceil(W/2)), like `v`; planes of I420, or every second column of NV12's."""
    v: NDArray[np.uint8]
    matrix: Literal["bt601", "bt709"]
    full_range: bool
    to_rgb: Callable[[], NDArray[np.uint8]]
    """Convert the whole picture on the CPU, (H, W, 3): for the detector, now and then."""

    def __post_init__(self) -> None:
        chroma = tuple((n + 1) // 2 for n in self.y.shape)
        if self.y.ndim != 2 or not self.y.size or {self.u.shape, self.v.shape} != {chroma}:
            raise ValueError(f"no planes of 4:2:0: {self.y.shape}, {self.u.shape}, {self.v.shape}")
        if any(plane.dtype != np.uint8 for plane in (self.y, self.u, self.v)):
            raise ValueError("planes must be uint8")


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

    def motion_batch(self, faces: Sequence[NDArray[np.uint8]]) -> list[MotionReading]:
        """`motion` of one or more crops, in one run where the engine can."""

    def appearance(self, source_HWC: NDArray[np.uint8]) -> Appearance:
        """(256, 256, 3) uint8 RGB canonical crop of a portrait -> appearance."""

    def draw(self, appearance: Appearance, driving: MotionCode) -> Drawing:
        """One frame of the portrait moved by `driving` (absolute codes)."""


@runtime_checkable
class ReadsYuv(Protocol):
    """An engine that cuts webcams' crops itself, from the decoders' planes."""

    def motion_yuv(self, picture: YuvPicture, transform: Array) -> MotionReading:
        """`Engine.motion` of the crop that `transform` (2, 3), picture to crop pixels, cuts.

        Raises ValueError for a transform that cannot be inverted, EngineError, DeviceLostError.
        """

    def motion_yuv_batch(self, crops: Sequence[tuple[YuvPicture, Array]]) -> list[MotionReading]:
        """`motion_yuv` of one or more pictures in one run. All are read or none is."""
