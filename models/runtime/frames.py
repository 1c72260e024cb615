"""Whole frames: from requests of any sessions to pictures that an encoder takes.

An engine that owns a GPU draws, composites and converts a batch in one go and offers that as
`DrawsFrames`; for every other engine the same three steps run one after another on the CPU.
Everything here belongs to the render worker's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from models.codes import MotionCode
from models.composite import compose
from models.runtime.engine import Appearance, Drawing, Engine

Pixels = NDArray[np.uint8]
Compose = Callable[[Drawing, Pixels, int], Pixels]
Clock = Callable[[], int]
#: Largest pictures that every engine with a renderer of its own draws.
LARGEST_PX = 512


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """One frame to draw."""

    appearance: Appearance
    source_HWC: Pixels
    """(N, N, 3) uint8 RGB, the portrait at the size of the output; N is even."""
    driving: MotionCode
    """Absolute codes."""


@dataclass(frozen=True, slots=True)
class FrameResult:
    """One drawn frame."""

    i420: Pixels
    """(N * 3 / 2, N) uint8, BT.601 limited range; the receiver's to keep."""
    spans: Mapping[str, int]
    """Nanoseconds by stage. On the CPU: draw, compose, convert. Frames of one batch share
    its spans: each of them waited that long."""


class FrameRenderer(Protocol):
    """Draws frames; one thread, the one that owns the engine."""

    max_batch: int
    """Most requests of one `render`."""

    def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
        """Draw 1 to `max_batch` frames; results in the order of the requests.

        Sizes may differ between requests. All requests succeed or none does: an exception
        names no culprit, so a caller that batched sessions draws them again one by one.

        Raises:
            ValueError: too many requests, or a source that is not square, even and uint8.
            DeviceLostError: the device is gone, and with it the engine.
            EngineError: the engine could not draw.
        """


@runtime_checkable
class DrawsFrames(Protocol):
    """An engine with a renderer of its own."""

    def frame_renderer(self) -> FrameRenderer:
        """The renderer that shares this engine's device, streams and thread."""


class CpuFrameRenderer:
    """Draw, composite and convert one frame at a time with `engine.draw` and OpenCV."""

    max_batch = 1

    def __init__(
        self, engine: Engine, *, compose: Compose = compose, clock: Clock = time.monotonic_ns
    ) -> None:
        self._engine = engine
        self._compose = compose
        self._clock = clock

    def render(self, requests: Sequence[FrameRequest]) -> list[FrameResult]:
        """See `FrameRenderer.render`."""
        check_requests(requests, self.max_batch)
        return [self._one(request) for request in requests]

    def _one(self, request: FrameRequest) -> FrameResult:
        t0 = self._clock()
        drawing = self._engine.draw(request.appearance, request.driving)
        t1 = self._clock()
        rgb = self._compose(drawing, request.source_HWC, len(request.source_HWC))
        t2 = self._clock()
        i420 = to_i420(rgb)
        t3 = self._clock()
        return FrameResult(i420, {"draw": t1 - t0, "compose": t2 - t1, "convert": t3 - t2})


def frame_renderer(
    engine: Engine, *, compose: Compose = compose, clock: Clock = time.monotonic_ns
) -> FrameRenderer:
    """The engine's own renderer where it has one, else the steps on the CPU.

    `compose` and `clock` concern only the latter; an engine's own renderer measures with
    its device's clock.
    """
    if isinstance(engine, DrawsFrames):
        return engine.frame_renderer()
    return CpuFrameRenderer(engine, compose=compose, clock=clock)


def check_requests(requests: Sequence[FrameRequest], max_batch: int) -> None:
    """Raise ValueError for a batch or a source that no renderer takes."""
    if not 1 <= len(requests) <= max_batch:
        raise ValueError(f"a batch has 1 to {max_batch} requests, got {len(requests)}")
    for request in requests:
        source = request.source_HWC
        size = len(source)
        if source.shape != (size, size, 3) or size % 2 or source.dtype != np.uint8:
            raise ValueError(
                f"source must be (N, N, 3) uint8 with even N, got {source.dtype} {source.shape}"
            )


def to_i420(rgb_HWC: Pixels) -> Pixels:
    """(N, N, 3) uint8 RGB -> (N * 3 / 2, N) uint8 I420, BT.601 limited range; a fresh array."""
    return np.asarray(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2YUV_I420), np.uint8)
