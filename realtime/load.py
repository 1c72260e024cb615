"""How busy one worker is and what one unit of its work costs: measured, never assumed.

Written by the worker's thread, read by any other: every figure is one attribute that is
replaced whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Weight of the newest measurement: the mean follows within about half a second of frames.
EWMA_WEIGHT = 0.08
P95_FRAMES = 125
WINDOW_NS = 1_000_000_000
_SLOTS = 10


class Cost:
    """What one kind of work takes: moving mean and 95th percentile, nanoseconds. One writer."""

    def __init__(self) -> None:
        self.mean_ns = 0.0
        """0 until something was measured."""
        self.count = 0
        self._last: deque[int] = deque(maxlen=P95_FRAMES)

    def add(self, duration_ns: float) -> None:
        """Record one duration. The first measurements count as a plain mean."""
        self.count += 1
        weight = max(EWMA_WEIGHT, 1.0 / self.count)
        self.mean_ns += weight * (duration_ns - self.mean_ns)
        self._last.append(int(duration_ns))

    @property
    def p95_ns(self) -> float:
        """95th percentile of the last five seconds of frames; 0 before the first."""
        return float(np.percentile(list(self._last), 95)) if self._last else 0.0


class BusyMeter:
    """Share of the last second that one thread spent working. One writer."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._slots = [0] * _SLOTS
        self._slot_at = clock() // (WINDOW_NS // _SLOTS)

    def add(self, start_ns: int, end_ns: int) -> None:
        """The thread worked from `start_ns` to `end_ns`."""
        width = WINDOW_NS // _SLOTS
        start_ns = max(start_ns, end_ns - WINDOW_NS)
        while start_ns < end_ns:
            slot = start_ns // width
            until = min(end_ns, (slot + 1) * width)
            self._move_to(slot)
            self._slots[slot % _SLOTS] += until - start_ns
            start_ns = until

    def fraction(self, working_since_ns: int | None = None) -> float:
        """0 .. 1. `working_since_ns`: when the work under way began, None when idle."""
        now = self._clock()
        width = WINDOW_NS // _SLOTS
        stale = now // width - self._slot_at
        known = sum(
            self._slots[(self._slot_at - back) % _SLOTS]
            for back in range(max(0, _SLOTS - max(0, stale)))
        )
        if working_since_ns is not None:
            known += min(WINDOW_NS, max(0, now - working_since_ns))
        # The oldest slot is gone, the newest has only begun.
        return min(1.0, known / (WINDOW_NS - width + now % width))

    def _move_to(self, slot: int) -> None:
        for new in range(max(self._slot_at + 1, slot - _SLOTS + 1), slot + 1):
            self._slots[new % _SLOTS] = 0
        self._slot_at = max(self._slot_at, slot)


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A snapshot of what the render worker publishes."""

    busy: float
    """Share of the last second in which it worked, 0 .. 1."""
    frame_ns: float
    """Mean cost of one drawn frame (of a batch: its share); 0 before the first."""
    frame_p95_ns: float
    webcam_ns: float
    """Mean cost of reading one webcam picture; 0 before the first."""
    max_batch: int
    restarts: int
    """How often engine and thread were replaced."""

    @property
    def headroom(self) -> float:
        """Share of the worker's time that is free, 0 .. 1."""
        return 1.0 - self.busy
