"""When to change the video bit rate. Every change costs a key frame, so: rarely."""

from __future__ import annotations

HEADROOM = 0.9
DOWN_AT = 0.85
UP_AT = 1.25
DOWN_EVERY_S = 1.0
UP_EVERY_S = 5.0


def ceiling_bps(size_px: int) -> int:
    """Most that a talking head of `size_px` squared at 25 fps makes use of."""
    return int(2_000_000 * (size_px / 512) ** 1.5)


class BitrateController:
    """Follows the receiver's estimate (REMB) with hysteresis, below a ceiling. Event loop."""

    def __init__(self, ceiling: int, *, floor: int = 150_000) -> None:
        self.target = ceiling
        self._ceiling = ceiling
        self._floor = floor
        self._changed_s = float("-inf")

    def on_estimate(self, bps: int, now: float) -> bool:
        """Take one estimate in bit/s; True if `target` changed."""
        wanted = max(self._floor, min(self._ceiling, int(bps * HEADROOM)))
        since = now - self._changed_s
        down = wanted < self.target * DOWN_AT and since >= DOWN_EVERY_S
        up = since >= UP_EVERY_S and (
            wanted > self.target * UP_AT or wanted == self._ceiling > self.target
        )
        if not (down or up):
            return False
        self.target = wanted
        self._changed_s = now
        return True
