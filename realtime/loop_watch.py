"""How late the event loop wakes, and how much of its time it computes.

What must never block it shows up as lag; how many more sessions it can carry, as busy share.
The clocks are monotonic ones: a step of the wall clock changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from realtime.metrics import Metrics

_log = logging.getLogger("visavis.server")

EVERY_S = 0.1
#: A single wake-up so late, or one in ten of the last hundred by so much, is told in the log.
ALARM_S = 0.050
OFTEN_LATE_S, OFTEN_SHARE, LAST_WAKES = 0.010, 0.1, 100
_TELL_EVERY_S = 10.0
#: Opening a connection costs a burst that says little about what it costs later.
_WEIGHT = 0.02


class LagAlarm:
    """When a loop's lag is worth a line in the log. Times are seconds; pure."""

    def __init__(self) -> None:
        self._late: deque[bool] = deque(maxlen=LAST_WAKES)
        self._told_at = float("-inf")

    def note(self, lag_s: float, now: float) -> str:
        """Take one wake-up's lag; returns what to tell, mostly nothing. Once in ten seconds."""
        self._late.append(lag_s > OFTEN_LATE_S)
        often = sum(self._late)
        if now - self._told_at < _TELL_EVERY_S:
            return ""
        if lag_s > ALARM_S:
            self._told_at = now
            return f"the event loop was blocked for {lag_s * 1000:.0f} ms"
        if len(self._late) == LAST_WAKES and often >= OFTEN_SHARE * LAST_WAKES:
            self._told_at = now
            return f"the event loop woke more than 10 ms late {often} times in {LAST_WAKES}"
        return ""


class LoopWatch:
    """Measures its own loop. `quiet` suspends the alarm (loading holds the interpreter)."""

    def __init__(self, metrics: Metrics, quiet: Callable[[], bool]) -> None:
        self.busy = 0.0
        """Share of the last seconds that the loop's thread computed, 0 .. 1."""
        self._metrics = metrics
        self._quiet = quiet

    async def run(self) -> None:
        """Measure until cancelled."""
        alarm = LagAlarm()
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
            if not self._quiet() and (told := alarm.note(lag, now)):
                _log.warning(told)
