"""When the returned voice leaves, and how far it and the picture are apart.

The pipeline hands out sound a video frame at a time, 40 ms at once; sent like that, every
receiver's jitter buffer would grow by those 40 ms. So it leaves in 10 ms packets at the
pace it was spoken, each later than its frame's due time by its place in the frame plus
`lag_ns`, the time that pictures usually take, followed slowly, less `LEAD_NS`. Picture and
voice of one frame then reach a person together, and a late picture never holds the voice back.

No I/O: the session calls `pop` at `deadline_ns`. All times are of one monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.rates import WIRE_RATE_HZ

Pcm = NDArray[np.int16]

PACKET_SAMPLES = WIRE_RATE_HZ // 100
PACKET_NS = 10_000_000
#: Half a second; more can only pile up when nobody calls `pop`, and then the oldest goes.
MAX_PACKETS = 50
MAX_LAG_NS = 120_000_000
START_LAG_NS = 15_000_000
#: The voice leaves this much before its picture: receivers need longer to play sound than to
#: show a picture (Chromium about 30 ms), and do not correct differences as small as that.
LEAD_NS = 15_000_000
_LAG_STEP_NS = 250_000
#: The first pictures set the lag at once; later ones only move it.
_FIRST_PICTURES = 9


@dataclass(frozen=True, slots=True)
class AudioPacket:
    """10 ms of the returned voice."""

    index: int
    """48 kHz session-clock number of the first sample."""
    pcm: Pcm
    """(480,) int16."""


class AudioPacer:
    """See the module's docstring. Belongs to one loop."""

    def __init__(self) -> None:
        self.lag_ns = START_LAG_NS
        self.dropped = 0
        self._first: list[int] = []
        self._queue: deque[tuple[int, AudioPacket]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, pcm: Pcm, index: int, ready_ns: int) -> None:
        """Take the sound of one frame, (k * 480,) int16, which became due at `ready_ns`.

        What is still waiting of earlier frames leaves no later than the start of this one,
        so a frame that came late cannot delay the following ones.
        """
        first_ns = ready_ns + max(0, self.lag_ns - LEAD_NS)
        while self._queue and self._queue[-1][0] > first_ns:
            # Pull the late ones forward, from the back until one is early enough.
            late = [self._queue.pop()]
            while self._queue and self._queue[-1][0] > first_ns:
                late.append(self._queue.pop())
            self._queue.extend((first_ns, packet) for _, packet in reversed(late))
        for k in range(len(pcm) // PACKET_SAMPLES):
            chunk = pcm[k * PACKET_SAMPLES : (k + 1) * PACKET_SAMPLES]
            packet = AudioPacket(index + k * PACKET_SAMPLES, chunk)
            self._queue.append((first_ns + k * PACKET_NS, packet))
        while len(self._queue) > MAX_PACKETS:
            self._queue.popleft()
            self.dropped += 1

    def pop(self, now_ns: int) -> list[AudioPacket]:
        """Return the packets that are due, in order."""
        due = []
        while self._queue and self._queue[0][0] <= now_ns:
            due.append(self._queue.popleft()[1])
        return due

    def deadline_ns(self) -> int | None:
        """When the next packet is due; None when none waits."""
        return self._queue[0][0] if self._queue else None

    def on_picture(self, delay_ns: int) -> None:
        """A picture left `delay_ns` after its frame became due: follow the usual delay.

        The median of the first pictures is taken over at once: from the start value, small
        steps would leave a slow machine out of sync for half a minute. Later, steps of a
        quarter millisecond make `lag_ns` a running median.
        """
        if len(self._first) < _FIRST_PICTURES:
            self._first.append(delay_ns)
            self.lag_ns = min(MAX_LAG_NS, max(0, int(np.median(self._first))))
            return
        step = _LAG_STEP_NS if delay_ns > self.lag_ns else -_LAG_STEP_NS
        if abs(delay_ns - self.lag_ns) > _LAG_STEP_NS:
            self.lag_ns = min(MAX_LAG_NS, max(0, self.lag_ns + step))


class SkewMeter:
    """How much later than its sound a picture leaves, over the last frames. One loop."""

    def __init__(self, window: int = 50) -> None:
        self._window = window
        self._voices: OrderedDict[int, int] = OrderedDict()
        self._pictures: OrderedDict[int, int] = OrderedDict()
        self._skews: deque[int] = deque(maxlen=window)

    def on_voice(self, frame_index: int, sent_ns: int) -> int | None:
        """The first sound of a frame left; returns the frame's skew if both are known."""
        return self._match(frame_index, sent_ns, self._voices, self._pictures, -1)

    def on_picture(self, frame_index: int, sent_ns: int) -> int | None:
        """The picture of a frame left; returns the frame's skew if both are known."""
        return self._match(frame_index, sent_ns, self._pictures, self._voices, 1)

    @property
    def skew_ms(self) -> float:
        """Median of the last frames; positive when pictures are late."""
        return float(np.median(self._skews)) / 1e6 if self._skews else 0.0

    def _match(
        self,
        index: int,
        sent_ns: int,
        mine: OrderedDict[int, int],
        others: OrderedDict[int, int],
        sign: int,
    ) -> int | None:
        other_ns = others.pop(index, None)
        if other_ns is None:
            mine[index] = sent_ns
            while len(mine) > self._window:
                mine.popitem(last=False)
            return None
        skew = sign * (sent_ns - other_ns)
        self._skews.append(skew)
        return skew
