"""How long a missing packet is waited for: as long as such packets have lately been late.

Waiting pays where a network swaps packets, and costs where it loses them: what follows the gap
is held for nothing. Both look alike when the gap is seen and differ afterwards: a swapped packet
comes after all, a lost one does not. So the wait shrinks with every gap that nothing filled, and
grows to what would have been enough with every packet that came late. No I/O.
"""

from __future__ import annotations

LEAST_S = 0.002
MOST_S = 0.020
SHRINK = 0.7
MARGIN = 1.25


class ReorderHold:
    """See the module's docstring. `seconds` is the wait now."""

    def __init__(self, start_s: float = 0.010) -> None:
        self.seconds = start_s
        self.swaps = False
        """Whether packets have lately been late rather than lost."""

    def on_gap_given_up(self) -> None:
        """A gap was waited for in vain, as far as is known yet."""
        self.seconds = max(min(self.seconds, LEAST_S), self.seconds * SHRINK)
        if self.seconds <= LEAST_S:
            self.swaps = False

    def on_late(self, after_s: float) -> None:
        """A missing packet came `after_s` after its gap was seen, in time or not."""
        if after_s > MOST_S:
            # Nobody would wait so long for it.
            return
        self.swaps = True
        self.seconds = max(self.seconds, min(MOST_S, MARGIN * after_s))
