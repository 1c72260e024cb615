"""How much picture a session gets when machine or network cannot give all of it. Pure.

One ladder, walked a rung at a time, in the order that costs a person least: fewer pictures,
then smaller ones, then a lower bit rate, then a still one with the voice going on. (A single
late frame is held before any of this, see `realtime.schedule`.)

    full ─> half rate ─> third ─> smaller ─> smallest ─> thrifty ─> frozen
      <─ up: one rung at a time, after quiet seconds, and only when it is predicted to fit ─

* Down after `DOWN_NS` of trouble: frames that should have been drawn came late, or the path
  carries less than the rung needs. Frozen only when nearly all pictures of the thriftiest rung
  come late, or the path is too narrow for any and loses packets: an estimate alone can be wrong
  (a stalled machine looks like a full path), and a still picture could not correct it.
* Up after `UP_NS` without trouble, when the cost of the higher rung fits what is free and the
  path carries `ROOM` times what it needs. A step up that had to be taken back doubles the wait
  for the next try (up to `MAX_UP_NS`), so a machine at its limit settles instead of swinging.
  An estimate of the path cannot grow beyond what is sent, so after `BLIND_WAITS` as long a rung
  is tried without its promise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from models.rates import FPS

Reason = Literal["none", "machine", "network"]

DOWN_NS = 1_000_000_000
#: A path that is far too narrow for the rung is not worth a second's wait.
DOWN_FAST_NS = 500_000_000
UP_NS = 4_000_000_000
MAX_UP_NS = 128_000_000_000
#: A step up that is taken back within this long was one too many.
REGRET_NS = 20_000_000_000
LATE_SHARE = 0.2
FREEZE_SHARE = 0.8
#: Share of the worker's time that a step up may plan with.
BUSY_LIMIT = 0.85
ROOM = 1.25
BLIND_WAITS = 2
#: Share of lost packets from which on a narrow estimate is believed altogether.
FREEZE_LOSS = 0.1
SIZES = (512, 384, 256)
_FLOORS_BPS = {512: 450_000, 384: 280_000, 256: 160_000}


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder."""

    name: str
    every: int
    """Every how many-th frame is drawn: 1, 2, 3; 0: none."""
    size: int
    """Side of the picture, pixels."""
    need_bps: int
    """The least bit rate of the picture at which this rung looks better than the next lower."""
    ceiling_bps: int | None = None
    """Most that the encoder may use; None: as much as the size deserves."""

    @property
    def fps(self) -> float:
        """Pictures a second."""
        return FPS / self.every if self.every else 0.0


def ladder(size: int) -> tuple[Rung, ...]:
    """Return the rungs of a session that was opened with `size` pixels, best first."""
    full = _FLOORS_BPS.get(size, 450_000)
    rungs = [
        Rung("full", 1, size, full),
        Rung("half rate", 2, size, int(full * 0.7)),
        Rung("third rate", 3, size, int(full * 0.55)),
    ]
    for smaller in (side for side in SIZES if side < size):
        rungs.append(Rung(f"{smaller} px", 3, smaller, int(_FLOORS_BPS[smaller] * 0.55)))
    least = rungs[-1].size
    rungs.append(Rung("thrifty", 3, least, 45_000, ceiling_bps=100_000))
    rungs.append(Rung("frozen", 0, least, 0, ceiling_bps=100_000))
    # Rates fall with every rung, or a narrow path would find no place.
    assert all(high.need_bps > low.need_bps for high, low in pairwise(rungs))
    return tuple(rungs)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a session measured during the last quarter second."""

    due: int
    """Frames that should have been drawn."""
    late: int
    """Those of them that were held because they came late."""
    busy: float
    """Share of the worker's time that is taken, by everybody, 0 .. 1."""
    frame_ns: float
    """Cost of one drawn frame."""
    path_bps: int | None = None
    """What the network is believed to carry besides the voice; None: nothing is known."""
    loss: float = 0.0
    """Share of our packets that the other side reported as lost, 0 .. 1."""


class Degrader:
    """One session's place on its ladder. One loop; time is passed in, nanoseconds."""

    def __init__(self, size: int, now_ns: int) -> None:
        self.rungs = ladder(size)
        self.level = 0
        """Index of the present rung; 0 is full quality."""
        self.reason: Reason = "none"
        """Why the session is not at full quality."""
        self.changes = 0
        self._since_ns = now_ns
        self._trouble_ns = dict.fromkeys(("machine", "network"), 0)
        self._quiet_since_ns = now_ns
        self._at_ns = now_ns
        self._wait_up_ns = UP_NS
        self._raised_ns: int | None = None
        self._late = 0.0
        self._due = 0.0

    @property
    def rung(self) -> Rung:
        """What the session gets now."""
        return self.rungs[self.level]

    def draws(self, frame_index: int) -> bool:
        """Whether this frame is drawn."""
        every = self.rung.every
        return every > 0 and frame_index % every == 0

    def update(self, conditions: Conditions, now_ns: int) -> bool:
        """Take what was measured since the last call; True if the rung changed."""
        passed = max(0, now_ns - self._at_ns)
        self._at_ns = now_ns
        machine = self._overloaded(conditions, passed)
        network, narrow = self._narrow(conditions)
        self._note("machine", machine, passed)
        self._note("network", network, passed)
        if machine or network:
            self._quiet_since_ns = now_ns
        last = self.level == len(self.rungs) - 1
        if not last and self._trouble_ns["network"] >= (DOWN_FAST_NS if narrow else DOWN_NS):
            return self._move(1, "network", now_ns)
        if not last and self._trouble_ns["machine"] >= DOWN_NS:
            return self._move(1, "machine", now_ns)
        if self._may_rise(conditions, now_ns):
            return self._move(-1, self.reason, now_ns)
        return False

    # --- trouble ----------------------------------------------------------------------

    def _overloaded(self, c: Conditions, passed: int) -> bool:
        """Whether too many frames of about the last second came late."""
        keep = 0.5 ** (passed / 500_000_000)
        self._late = self._late * keep + c.late
        self._due = self._due * keep + c.due
        if self._due < 1.0:
            return False
        share = self._late / self._due
        to_freeze = self.level == len(self.rungs) - 2
        return share > (FREEZE_SHARE if to_freeze else LATE_SHARE)

    def _narrow(self, c: Conditions) -> tuple[bool, bool]:
        """Whether the path carries too little for this rung, and for the one below as well."""
        if c.path_bps is None or self.level == len(self.rungs) - 1:
            return False, False
        below = self.rungs[self.level + 1]
        if below.every == 0 and c.loss < FREEZE_LOSS:
            return False, False
        return c.path_bps < self.rung.need_bps, c.path_bps < below.need_bps

    def _note(self, kind: str, trouble: bool, passed: int) -> None:
        # Trouble fades three times as slowly as it grows, so that a pulse does not hide it.
        old = self._trouble_ns[kind]
        self._trouble_ns[kind] = old + passed if trouble else max(0, old - passed // 3)

    # --- moving -----------------------------------------------------------------------

    def _may_rise(self, c: Conditions, now_ns: int) -> bool:
        quiet_ns = now_ns - max(self._quiet_since_ns, self._since_ns)
        if self.level == 0 or quiet_ns < self._wait_up_ns:
            return False
        higher = self.rungs[self.level - 1]
        more = (higher.fps - self.rung.fps) * c.frame_ns / 1e9
        fits = more <= 0.0 or c.busy + more <= BUSY_LIMIT
        carries = c.path_bps is None or c.path_bps >= ROOM * higher.need_bps
        return fits and (carries or quiet_ns >= BLIND_WAITS * self._wait_up_ns)

    def _move(self, step: int, reason: Reason, now_ns: int) -> bool:
        if step > 0:
            self.reason = reason
            if self._raised_ns is not None and now_ns - self._raised_ns < REGRET_NS:
                self._wait_up_ns = min(MAX_UP_NS, 2 * self._wait_up_ns)
            self._raised_ns = None
        else:
            if self._raised_ns is not None:
                # The step up before this one has held, so patience has done its work.
                self._wait_up_ns = UP_NS
            self._raised_ns = now_ns
        self.level += step
        self.changes += 1
        if self.level == 0:
            self.reason = "none"
        self._since_ns = self._quiet_since_ns = now_ns
        self._trouble_ns = dict.fromkeys(self._trouble_ns, 0)
        self._late = self._due = 0.0
        return True
