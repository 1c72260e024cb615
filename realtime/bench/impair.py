"""A bad network for one direction of datagrams: pure logic in the caller's time.

In this order, as a real path would: loss (independent or in bursts), duplication, a
bottleneck of limited rate with a bounded queue, delay with jitter, reordering. All
randomness comes from one seeded generator and every datagram draws the same count of
numbers, so the n-th datagram meets the same fate whatever the settings of other effects.

Bursts are the Gilbert model (Gilbert 1960; the simple form of Elliott 1963): in the bad
state all is lost, its mean length is `burst` datagrams, and the chain's stationary
probability of it is the loss rate.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

T = TypeVar("T")

#: A datagram that is reordered comes this much later; ones behind it do not wait.
REORDER_S = 0.025
QUEUE_S = 0.2
#: Nothing may pile up without bound, whatever the delay is.
MAX_DATAGRAMS = 4096


@dataclass(frozen=True, slots=True)
class Impairment:
    """What the path does. Percent, milliseconds, kbit/s; the defaults do nothing."""

    loss: float = 0.0
    burst: float = 1.0
    """Mean number of datagrams lost in a row; 1: independent losses."""
    delay: float = 0.0
    jitter: float = 0.0
    """Up to so much more delay, evenly distributed; order is kept."""
    reorder: float = 0.0
    duplicate: float = 0.0
    rate: float = 0.0
    """0: no limit. The queue before the bottleneck holds 200 ms."""
    from_s: float = 0.0
    to_s: float | None = None
    """Only in this stretch of the conversation; None: always, from the first datagram on."""

    def __post_init__(self) -> None:
        for percent in ("loss", "reorder", "duplicate"):
            if not 0.0 <= getattr(self, percent) < 100.0:
                raise ValueError(f"{percent} must be from 0 to less than 100 percent")
        for plain in ("delay", "jitter", "rate", "from_s"):
            if not 0.0 <= getattr(self, plain) <= 1e7:
                raise ValueError(f"{plain} must not be negative")
        if not 1.0 <= self.burst <= 1000.0:
            raise ValueError("burst must be from 1 to 1000 datagrams")
        if self.to_s is not None and self.to_s <= self.from_s:
            raise ValueError("the impairment must end after it begins")

    @property
    def active(self) -> bool:
        """Whether it does anything at all."""
        effects = ("loss", "delay", "jitter", "reorder", "duplicate", "rate")
        return any(getattr(self, effect) > 0.0 for effect in effects)

    def in_force(self, t_s: float | None) -> bool:
        """Whether it works at `t_s` of the conversation; None: before its beginning."""
        if self.to_s is None:
            return True
        return t_s is not None and self.from_s <= t_s < self.to_s

    def describe(self) -> dict[str, float]:
        """What differs from doing nothing, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in values.items() if v != f_default(k)}


def f_default(name: str) -> object:
    """Default of one field of `Impairment`."""
    return next(f.default for f in fields(Impairment) if f.name == name)


@dataclass(slots=True)
class LinkCount:
    """What became of the datagrams that went in."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    reordered: int = 0
    duplicated: int = 0


class Link(Generic[T]):
    """One direction. `push` puts a datagram in, `pop` takes out what has arrived.

    `T` is whatever the caller wants back (bytes, or bytes with an address).
    """

    def __init__(self, impairment: Impairment, seed: int) -> None:
        self.count = LinkCount()
        self._impairment = impairment
        self._random = random.Random(seed)
        self._bad = False
        self._busy_until = 0.0
        self._latest = 0.0
        self._serial = 0
        self._heap: list[tuple[float, int, T]] = []

    def push(self, item: T, size: int, now: float, in_force: bool = True) -> float | None:
        """A datagram of `size` bytes enters at `now` (seconds, never backwards).

        Returns when it arrives, its double aside; None when it never does.
        """
        self.count.packets += 1
        self.count.bytes += size
        draws = [self._random.random() for _ in range(5)]
        if not in_force:
            self._bad = False
            return self._deliver(item, now, keeps_order=True)
        if self._is_lost(draws[0]):
            self.count.lost += 1
            return None
        through = self._through_bottleneck(size, now)
        if through is None or len(self._heap) >= MAX_DATAGRAMS:
            self.count.overflowed += 1
            return None
        options = self._impairment
        arrives = through + (options.delay + options.jitter * draws[1]) / 1000
        if draws[2] * 100 < options.reorder:
            self.count.reordered += 1
            came = self._deliver(item, arrives + REORDER_S, keeps_order=False)
        else:
            came = self._deliver(item, arrives, keeps_order=True)
        if draws[3] * 100 < options.duplicate:
            self.count.duplicated += 1
            self._deliver(item, arrives + REORDER_S * draws[4], keeps_order=False)
        return came

    def pop(self, now: float) -> list[T]:
        """Everything that has arrived by `now`, in the order of arrival."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def deadline(self) -> float | None:
        """When the next datagram arrives; None when none is under way."""
        return self._heap[0][0] if self._heap else None

    def _is_lost(self, draw: float) -> bool:
        p = self._impairment.loss / 100
        burst = self._impairment.burst
        if burst <= 1.0 or p == 0.0:
            return draw < p
        # Leaving the bad state: 1 / burst. Entering it: so that p of the time is bad.
        enter = min(1.0, p / (burst * (1.0 - p)))
        self._bad = draw >= 1.0 / burst if self._bad else draw < enter
        return self._bad

    def _through_bottleneck(self, size: int, now: float) -> float | None:
        """When the datagram has left the bottleneck; None when its queue is full."""
        if self._impairment.rate == 0.0:
            return now
        start = max(now, self._busy_until)
        if start - now > QUEUE_S:
            return None
        self._busy_until = start + size * 8 / (self._impairment.rate * 1000)
        return self._busy_until

    def _deliver(self, item: T, at: float, *, keeps_order: bool) -> float:
        if keeps_order:
            at = self._latest = max(at, self._latest)
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, item))
        return at
