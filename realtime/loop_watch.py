"""How late the event loop wakes, and how much of its time it computes.

What must never block it shows up as lag; how many more sessions it can carry, as busy share.
The clocks are monotonic ones: a step of the wall clock changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from realtime.metrics import Metrics

_log = logging.getLogger("visavis.server")

EVERY_S = 0.1
ALARM_S = 0.050
_TELL_EVERY_S = 10.0
#: Opening a connection costs a burst that says little about what it costs later.
_WEIGHT = 0.02


class LoopWatch:
    """Measures its own loop. `quiet` suspends the alarm (loading holds the interpreter)."""

    def __init__(self, metrics: Metrics, quiet: Callable[[], bool]) -> None:
        self.busy = 0.0
        """Share of the last seconds that the loop's thread computed, 0 .. 1."""
        self._metrics = metrics
        self._quiet = quiet

    async def run(self) -> None:
        """Measure until cancelled."""
        told_at = float("-inf")
        start, computed = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(EVERY_S)
            now, spent = time.monotonic(), time.thread_time()
            lag = now - start - EVERY_S
            share = min(1.0, max(0.0, spent - computed) / max(now - start, 1e-9))
            self.busy += _WEIGHT * (share - self.busy)
            start, computed = now, spent
            self._metrics.loop_lag.observe(max(0.0, lag))
            self._metrics.loop_busy.set(self.busy)
            if lag > ALARM_S and not self._quiet() and now - told_at > _TELL_EVERY_S:
                told_at = now
                _log.warning("the event loop was blocked for %.0f ms", lag * 1000)
