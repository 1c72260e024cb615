"""When to change the video bit rate: soon down, later up, never for a little."""

from __future__ import annotations

HEADROOM = 0.9
HOLD_S = 1.0
DOWN_AT, UP_AT = 0.90, 1.05
#: With an encoder that cannot change in place every change costs a key frame: more rarely.
COSTLY_DOWN_AT, COSTLY_UP_AT = 0.85, 1.25
COSTLY_UP_EVERY_S = 5.0


def ceiling_bps(size_px: int) -> int:
    """Most that a talking head of `size_px` squared at 25 fps makes use of."""
    return int(2_000_000 * (size_px / 512) ** 1.5)


def path_ceiling_bps(video_bps: int) -> int:
    """What the path must take, overhead and headroom included, for video at `video_bps`."""
    return int(video_bps / HEADROOM * 1.1)


class BitrateController:
    """Follows an estimate of the path with hysteresis, below a ceiling. Event loop.

    At most one change a second, each way; a fall below half is taken at once.
    """

    def __init__(self, ceiling: int, *, floor: int = 150_000, in_place: bool = True) -> None:
        self.target = ceiling
        self._ceiling = ceiling
        self._floor = min(floor, ceiling)
        self._in_place = in_place
        self._changed_s = float("-inf")

    @property
    def ceiling(self) -> int:
        """Never more than this."""
        return self._ceiling

    def set_ceiling(self, bps: int) -> None:
        """A person or the server wants at most `bps`; takes effect at once."""
        self._ceiling = max(1, bps)
        self._floor = min(self._floor, self._ceiling)
        self.target = min(self.target, self._ceiling)

    def on_estimate(self, bps: int, now: float) -> bool:
        """Take one estimate in bit/s; True if `target` changed."""
        wanted = max(self._floor, min(self._ceiling, int(bps * HEADROOM)))
        since = now - self._changed_s
        down_at, up_at = (DOWN_AT, UP_AT) if self._in_place else (COSTLY_DOWN_AT, COSTLY_UP_AT)
        up_every = HOLD_S if self._in_place else COSTLY_UP_EVERY_S
        down = wanted < self.target * down_at and since >= HOLD_S
        down = down or wanted < self.target * 0.5
        up = since >= up_every and (
            wanted > self.target * up_at or wanted == self._ceiling > self.target
        )
        if not (down or up):
            return False
        self.target = wanted
        self._changed_s = now
        return True
