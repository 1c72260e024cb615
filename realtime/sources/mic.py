"""The voice as a source of lip codes."""

from __future__ import annotations

from typing import Literal

from models.codes import Array, Factor
from realtime.sources.base import Moment


class MicLip:
    """Lips from the microphone.

    The lip code itself is computed later, in the render worker, from the mel window of
    the same frame; so this source says only *how much* of it to take (`weight`), and the
    router carries that weight to the worker (`realtime.router.Snapshot.resolve`).
    """

    kind: Literal["mic"] = "mic"
    name: None = None
    blinks = False

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        """None: the worker knows the code, not the session."""
        return None

    def weight(self, moment: Moment) -> float:
        """Share of the lip code at `moment`, 0..1: the speech gate closes the mouth in silence."""
        return moment.speech
