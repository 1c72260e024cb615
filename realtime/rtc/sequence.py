"""Unwrapping of RTP's 16-bit sequence numbers and 32-bit timestamps (RFC 3550)."""

from __future__ import annotations


class Unwrapper:
    """Turns wrapping counters into integers that never wrap.

    Every value is taken as the one nearest to the highest seen so far, so reordered
    packets unwrap to smaller integers and a jump of up to half the range counts forward.
    """

    def __init__(self, bits: int) -> None:
        self._range = 1 << bits
        self._highest: int | None = None

    def unwrap(self, value: int) -> int:
        """Unwrap `value` (0 <= value < 2**bits); the first one is returned as it is."""
        if self._highest is None:
            self._highest = value
            return value
        half = self._range >> 1
        delta = (value - self._highest + half) % self._range - half
        result = self._highest + delta
        self._highest = max(self._highest, result)
        return result

    def reset(self) -> None:
        """Forget everything: the next value starts anew."""
        self._highest = None
