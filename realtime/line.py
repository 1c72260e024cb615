"""One unbroken line of sound on the session clock, from packets that come as they like.

The *session clock* counts 48 kHz samples. Packets may come out of order (held up to
`REORDER_SAMPLES`), gaps become silence, what comes too late is dropped. When nothing comes,
`poll` fills silence `DEADLINE_NS` after a frame was due, and at once when the microphone has been
silent on the wire for `STALL_NS`. All of it is counted.

No I/O. Time is an injected monotonic clock in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.rates import FRAME_SAMPLES_48K, WIRE_RATE_HZ

Pcm = NDArray[np.int16]

DEADLINE_NS = 60_000_000
STALL_NS = 1_000_000_000
REORDER_SAMPLES = WIRE_RATE_HZ // 50
REORDER_PACKETS = 16
#: A timestamp that is further off than this is a new start, not a gap.
JUMP_SAMPLES = WIRE_RATE_HZ
#: Sound that keeps coming too late for this long moves the clock instead of being dropped.
LATE_LIMIT_SAMPLES = WIRE_RATE_HZ // 5
#: After the loop itself stood still, at most this many frames are caught up.
CATCH_UP_FRAMES = 25
_SLEW = 0.001


@dataclass(slots=True)
class PipelineStats:
    """Counters since the start; samples are 48 kHz."""

    audio_samples: int = 0
    """Received and used."""
    gap_samples: int = 0
    """Missing between packets: silence."""
    filled_samples: int = 0
    """Never came in time: silence by the clock."""
    late_samples: int = 0
    """Came after their place was filled: dropped."""
    reordered: int = 0
    """Packets that had to wait for an earlier one."""
    reanchors: int = 0
    """Times the sender's clock was mapped anew."""
    ticks: int = 0
    skipped_ms: int = 0
    """Session time that never happened because the loop stood still."""
    webcam_frames: int = 0


class SoundLine:
    """See the module's docstring.

    `take(piece, now)` is called with every stretch of the line in order, at most a frame long;
    `need()` says up to which sample sound is needed for the next frame.
    """

    def __init__(
        self,
        take: Callable[[Pcm, int], None],
        need: Callable[[], int],
        stats: PipelineStats,
        clock: Callable[[], int],
    ) -> None:
        self.head = 0
        """Session-clock number of the next sample to come."""
        self.offset: int | None = None
        """Session sample minus the sender's number of the same sample."""
        self.origin_ns: int | None = None
        """When session sample 0 was, or would have been, said."""
        self.stats = stats
        self._take_piece = take
        self._need = need
        self._clock = clock
        self._pending: dict[int, Pcm] = {}
        self._audio_ns: int | None = None
        self._late = 0
        self._heard = 0

    def start(self) -> None:
        """Start the clock now, whether or not sound ever comes. Idempotent."""
        if self.origin_ns is None:
            self.origin_ns = self._clock()

    def restart(self) -> None:
        """Go on from where the line is, as if nothing had passed since; another sender follows."""
        self.origin_ns = self._clock() - duration_ns(self.head)
        self.offset = self._audio_ns = None
        self._pending.clear()
        self._late = 0

    def push(self, mono: Pcm, capture: int) -> None:
        """Take (n,) int16 whose first sample the sender calls `capture`."""
        now = self._clock()
        start = self._place(capture, now)
        if start > self.head:
            self._pending.setdefault(start, mono)
            held = sum(map(len, self._pending.values()))
            if held <= REORDER_SAMPLES and len(self._pending) < REORDER_PACKETS:
                return
            self._fill_gap(now)
        else:
            self._take(start, mono, now)
        self._release(now)

    def poll(self) -> None:
        """Fill with silence what should have come by now."""
        if self.origin_ns is None:
            return
        now = self._clock()
        frames = 0
        while self.next_deadline_ns() <= now:
            if frames >= CATCH_UP_FRAMES:
                self.stats.skipped_ms += (now - self.next_deadline_ns()) // 1_000_000
                self.origin_ns = now - duration_ns(self._need())
                break
            frames += 1
            self._fill_to(self._need(), now)

    def next_deadline_ns(self) -> int:
        """When `poll` must be called next, on the injected clock; far off before any start."""
        if self.origin_ns is None:
            return 1 << 62
        slack = 0 if self._stalled(self._clock()) else DEADLINE_NS
        return self.origin_ns + duration_ns(self._need()) + slack

    def _stalled(self, now: int) -> bool:
        return self._audio_ns is None or now - self._audio_ns > STALL_NS

    def _place(self, capture: int, now: int) -> int:
        """Session sample of a packet; maps the sender's clock anew where that is wiser."""
        if self.offset is None:
            self.offset = self.head - capture
        else:
            away = capture + self.offset - self.head
            hopeless = self._late > LATE_LIMIT_SAMPLES and away < 0
            if self._stalled(now) or abs(away) > JUMP_SAMPLES or hopeless:
                self.offset -= away
                self.stats.reanchors += away != 0
                self._pending.clear()
                self._late = 0
                self._audio_ns = None
        return capture + self.offset

    def _fill_gap(self, now: int) -> None:
        gap = min(self._pending) - self.head
        self.stats.gap_samples += gap
        self._append(np.zeros(gap, np.int16), now)

    def _release(self, now: int) -> None:
        """Take what waited and has become contiguous."""
        while self._pending and (start := min(self._pending)) <= self.head:
            self.stats.reordered += 1
            self._take(start, self._pending.pop(start), now)

    def _take(self, start: int, mono: Pcm, now: int) -> None:
        """Append received sound; what lies before the head came too late."""
        late = min(len(mono), self.head - start)
        fresh = len(mono) - late
        self.stats.late_samples += late
        # What was heard before is a duplicate; only what silence took the place of is missed.
        missed = max(0, min(start + late - self._heard, late))
        self._late = max(0, self._late + missed - fresh // 2)
        if fresh == 0:
            return
        self.stats.audio_samples += fresh
        self._append(mono[late:], now)
        self._heard = self.head
        self._follow(now)

    def _follow(self, now: int) -> None:
        """Keep the origin where packets arrive earliest; let it drift later only slowly."""
        arrival = now - duration_ns(self.head)
        if self.origin_ns is None or self._stalled(now) or arrival < self.origin_ns:
            self.origin_ns = arrival
        elif self._audio_ns is not None:
            slew = int((now - self._audio_ns) * _SLEW)
            self.origin_ns += min(arrival - self.origin_ns, slew)
        self._audio_ns = now

    def _fill_to(self, target: int, now: int) -> None:
        """Silence up to session sample `target`, around whatever waits out of order."""
        while self.head < target:
            self._release(now)
            end = min([target, *self._pending]) if self._pending else target
            if end <= self.head:
                continue
            self.stats.filled_samples += end - self.head
            self._append(np.zeros(end - self.head, np.int16), now)

    def _append(self, mono: Pcm, now: int) -> None:
        """Put sound on the session clock, at most a frame at a time."""
        for begin in range(0, len(mono), FRAME_SAMPLES_48K):
            piece = mono[begin : begin + FRAME_SAMPLES_48K]
            self.head += len(piece)
            self._take_piece(piece, now)


def duration_ns(samples: int) -> int:
    """Duration of 48 kHz samples in nanoseconds."""
    return samples * 1_000_000_000 // WIRE_RATE_HZ
