"""The bench's one error."""

from __future__ import annotations


class BenchError(RuntimeError):
    """The measurement could not be made; the message says why."""
