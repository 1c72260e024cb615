"""Fixed, named faces as a source."""

from __future__ import annotations

from typing import Literal

from models.codes import Array, Factor
from realtime.presets import PRESETS
from realtime.sources.base import Moment


class Preset:
    """One preset of `realtime.presets`. Raises KeyError for an unknown name."""

    kind: Literal["preset"] = "preset"
    blinks = False

    def __init__(self, name: str) -> None:
        self._codes: dict[Factor, Array] = {
            factor: table[name] for factor, table in PRESETS.items() if name in table
        }
        if not self._codes:
            raise KeyError(f"no preset is called {name!r}")
        self.name = name

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        """The preset's code, the same at every moment; None if it has none for `factor`."""
        return self._codes.get(factor)
