"""What a driving source is, and the moment it is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from models.codes import Array, Factor
from models.rates import FRAME_SAMPLES_48K, FRAME_TICKS_90K
from realtime.protocol import SourceKind


@dataclass(frozen=True, slots=True)
class Moment:
    """One video frame on the session clock, and what the microphone says about it."""

    frame_index: int
    speech: float = 0.0
    """Speech gain 0..1 of `realtime.vad.SpeechGate`."""
    emphasis: float = 0.0
    """0..1: how much louder than usual the voice is now."""

    @property
    def pts_ticks(self) -> int:
        """Presentation time on the 90 kHz video clock."""
        return self.frame_index * FRAME_TICKS_90K

    @property
    def middle_48k(self) -> int:
        """48 kHz capture sample in the middle of the frame."""
        return self.frame_index * FRAME_SAMPLES_48K + FRAME_SAMPLES_48K // 2


class Source(Protocol):
    """Supplies codes of one or more factors; belongs to one session and its loop.

    Codes are *relative*: pose, eye and expression are what to add to the portrait's own
    code, so zero leaves the portrait as it is. Lip codes are absolute; zero is a closed,
    relaxed mouth.
    """

    @property
    def kind(self) -> SourceKind:
        """Which kind of source this is."""

    @property
    def name(self) -> str | None:
        """Which preset or clip, None for the other kinds."""

    @property
    def blinks(self) -> bool:
        """Whether its eye code brings its own blinks; otherwise idle blinks are mixed in."""

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        """Relative code (DIMS[factor],) at `moment`, read-only; None: nothing to say (idle then).

        Asked with non-decreasing frame indices; asking twice about one frame gives the
        same answer.
        """


def smoothstep(x: float) -> float:
    """0 below 0, 1 above 1, with zero slope at both ends."""
    x = min(1.0, max(0.0, x))
    return x * x * (3.0 - 2.0 * x)
