"""How long each stage takes: percentiles of the last seconds, in fixed memory.

A mean hides the frames that people notice, so nothing here computes one. Not
thread-safe: one recorder belongs to one thread or loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from realtime.protocol import StageMs

#: Ten seconds of frames at 25 fps.
DEFAULT_CAPACITY = 250
_MAX_STAGES = 32


class Percentiles:
    """The last `capacity` durations of one stage, in nanoseconds."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._ring = np.zeros(capacity, np.int64)
        self._written = 0

    def __len__(self) -> int:
        return min(self._written, len(self._ring))

    def add(self, duration_ns: int) -> None:
        """Record one duration; the oldest makes room."""
        self._ring[self._written % len(self._ring)] = duration_ns
        self._written += 1

    def summary(self) -> StageMs:
        """p50, p95 and p99 in milliseconds; zeros before the first duration."""
        if self._written == 0:
            return StageMs(0.0, 0.0, 0.0)
        p50, p95, p99 = np.percentile(self._ring[: len(self)], (50, 95, 99)) / 1e6
        return StageMs(round(float(p50), 3), round(float(p95), 3), round(float(p99), 3))


class StageRecorder:
    """Percentiles by stage name. Names come from our own code: at most 32 of them."""

    def __init__(self, names: Iterable[str] = (), capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._stages = {name: Percentiles(capacity) for name in names}

    def add(self, name: str, duration_ns: int) -> None:
        """Record one duration of stage `name`."""
        stage = self._stages.get(name)
        if stage is None:
            if len(self._stages) >= _MAX_STAGES:
                raise ValueError(f"too many stages: cannot add {name!r}")
            stage = self._stages[name] = Percentiles(self._capacity)
        stage.add(duration_ns)

    def add_spans(self, spans: Mapping[str, int]) -> None:
        """Record several stages of one frame, nanoseconds by name."""
        for name, duration_ns in spans.items():
            self.add(name, duration_ns)

    def summary(self) -> dict[str, StageMs]:
        """Percentiles of every stage that has been recorded."""
        return {name: stage.summary() for name, stage in self._stages.items() if len(stage)}
