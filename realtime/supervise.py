"""When a render thread counts as lost, and how soon a new one may begin. Pure, no clock.

    running ──engine raises DeviceLostError, thread dies──> lost ──delay──> loading ──> running
       └────no progress for 2 s while work is under way────> lost (the thread is abandoned)

A thread that hangs in a driver cannot be ended from outside: it is left behind, and whatever it
still brings is thrown away (every thread has a generation, and only the newest is heard).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HANG_NS = 2_000_000_000
#: Preparing a portrait finds faces in a large picture; on a busy machine that takes seconds.
HANG_CALL_NS = 30_000_000_000
#: A first start may compile networks for minutes; only a later one has a limit.
HANG_LOAD_NS = 120_000_000_000
CHECK_EVERY_S = 0.1
FIRST_RETRY_NS = 250_000_000
MAX_RETRY_NS = 15_000_000_000
#: After so long without trouble the next restart happens at once again.
CALM_NS = 30_000_000_000
MAX_ABANDONED = 3

Activity = Literal["idle", "frame", "webcam", "call", "load", "reload"]
_LIMITS: dict[Activity, int] = {
    "frame": HANG_NS, "webcam": HANG_NS, "call": HANG_CALL_NS, "reload": HANG_LOAD_NS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Progress:
    """What a render thread is doing; replaced whole by that thread."""

    activity: Activity
    since_ns: int


def is_hung(progress: Progress, now_ns: int) -> bool:
    """Whether the thread has been at one unit of work for too long."""
    limit = _LIMITS.get(progress.activity)
    return limit is not None and now_ns - progress.since_ns > limit


class RestartDelay:
    """The first restart is immediate; one soon after another waits twice as long as that did."""

    def __init__(self) -> None:
        self._delay_ns = 0
        self._last_ns: int | None = None

    def next_ns(self, now_ns: int) -> int:
        """A thread was lost now: how long to wait before the next one starts."""
        calm = self._last_ns is None or now_ns - self._last_ns > CALM_NS
        self._last_ns = now_ns
        if calm:
            self._delay_ns = 0
        else:
            self._delay_ns = min(MAX_RETRY_NS, max(FIRST_RETRY_NS, 2 * self._delay_ns))
        return self._delay_ns
