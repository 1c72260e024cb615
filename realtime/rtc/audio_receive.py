"""From Opus packets to an unbroken line of samples. No I/O, no clock of its own.

The contract with everything after it: blocks come in order, back to back, at about real
time, and `AudioBlock.index` counts 48 kHz samples of the *capture* clock, unwrapped from
RTP timestamps. What is missing is invented here (`conceal`), what comes too late is
dropped here, so nothing downstream knows about packets.

* In-order packets pass at once: no prefetch, no playout delay (a stock aiortc receiver
  adds 80 ms here).
* A sequence gap holds what follows for a moment (`reorder`: less where packets are lost, more
  where they are swapped), then the gap is filled by exactly the number of samples that the RTP
  timestamps say are missing: from the copy that the next packet carries, if it does (forward
  error correction; then at once), else by concealment.
* When nothing comes for `starve_s` (muted sender, DTX, dead network) silence is filled
  at real-time pace, so the session clock never stops; audio that then arrives for a
  time already filled is dropped. So latency after a loss equals latency before it.
* When *everything* comes too late for `rebase_s` (the path got slower), or timestamps
  jump by more than `MAX_GAP_SAMPLES`, the mapping from RTP time to index is moved
  instead.
* A path that got slower and faster again leaves the line ahead of real time by the silence
  that was filled in between; that is given back packet by packet in pauses of speech.
* Audio faster than real time (a broken or hostile sender) is dropped by a token bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.rates import WIRE_RATE_HZ
from realtime.rtc.conceal import Concealer
from realtime.rtc.reorder import ReorderHold
from realtime.rtc.sequence import Unwrapper

Pcm = NDArray[np.int16]
Decode = Callable[[bytes], Pcm]
#: Payload and samples -> what was lost just before the payload, if it carries a copy.
Recover = Callable[[bytes, int], Pcm | None]

#: Payload -> whether it carries a copy of what was before it.
HasCopy = Callable[[bytes], bool]

MAX_GAP_SAMPLES = WIRE_RATE_HZ
MAX_HELD_PACKETS = 64
FILL_SAMPLES = WIRE_RATE_HZ // 50
#: Ahead of real time by more than this, quiet packets are left out; by more than the other, all.
MAX_LEAD_SAMPLES = WIRE_RATE_HZ * 30 // 1000
MOST_LEAD_SAMPLES = WIRE_RATE_HZ // 2
#: -44 dBFS, the loudest room in which a pause is one.
QUIET_RMS = 200.0
_RESTART_DISTANCE = 3000

#: RFC 6716 section 3.1: frame duration in 48 kHz samples by the five bits of `config`.
_OPUS_FRAME_SAMPLES = (
    [480, 960, 1920, 2880] * 3 + [480, 960] * 2 + [120, 240, 480, 960] * 4
)  # fmt: skip


def opus_samples(payload: bytes) -> int:
    """Return how many 48 kHz samples an Opus packet holds (RFC 6716); 0 if malformed."""
    if not payload:
        return 0
    code = payload[0] & 3
    if code == 3:
        frames = payload[1] & 0x3F if len(payload) > 1 else 0
    else:
        frames = 1 if code == 0 else 2
    samples = frames * _OPUS_FRAME_SAMPLES[payload[0] >> 3]
    return samples if samples <= 5760 else 0


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """A piece of the unbroken line."""

    index: int
    """48 kHz capture sample index of the first sample."""
    pcm: Pcm
    """(n,) int16 mono."""
    concealed: bool
    """Invented here rather than received."""
    arrival_s: float
    """When the packet behind it came in, on the caller's monotonic clock."""


@dataclass(slots=True)
class AudioReceiveStats:
    """Counters since the start; samples are 48 kHz."""

    packets: int = 0
    late_packets: int = 0
    duplicate_packets: int = 0
    reordered_packets: int = 0
    lost_packets: int = 0
    flooded_packets: int = 0
    undecodable_packets: int = 0
    recovered_samples: int = 0
    """Lost, but copied in the packet after."""
    concealed_samples: int = 0
    filled_samples: int = 0
    waited_samples: int = 0
    """Silence before the first packet: nobody spoke yet, so nothing is missing."""
    shortened_samples: int = 0
    """Left out of pauses, because the line was ahead of real time."""
    rebases: int = 0
    held_max: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    timestamp: int
    payload: bytes
    arrival_s: float


class AudioReceiveBuffer:
    """See the module's docstring. Call `push` and `poll` from one thread, times monotonic.

    `decode` turns one Opus payload into (n,) int16 mono at 48 kHz; it may raise
    ValueError, which conceals the packet. `start` begins the fill clock even when no
    packet ever comes.
    """

    def __init__(
        self,
        decode: Decode,
        *,
        hold_s: float = 0.010,
        starve_s: float = 0.060,
        rebase_s: float = 0.300,
        recover: Recover = lambda payload, samples: None,
        has_copy: HasCopy = lambda payload: False,
    ) -> None:
        self.stats = AudioReceiveStats()
        self._decode = decode
        self._recover = recover
        self._has_copy = has_copy
        self._hold = ReorderHold(hold_s)
        self._starve_s = starve_s
        self._rebase_s = rebase_s
        self._conceal = Concealer()
        self._sequence = Unwrapper(16)
        self._timestamp = Unwrapper(32)
        self._held: dict[int, _Held] = {}
        self._next: int | None = None
        self._gap_since: float | None = None
        self._skipped: dict[int, float] = {}
        self._write = 0
        self._offset: int | None = None
        self._late_since: float | None = None
        self._anchor: tuple[float, int] | None = None
        self._began: tuple[float, int] | None = None
        self._tokens = float(WIRE_RATE_HZ)
        self._tokens_at: float | None = None
        self._ready: list[AudioBlock] = []

    @property
    def index(self) -> int:
        """Capture index of the next sample that will come out."""
        return self._write

    @property
    def rtp_offset(self) -> int | None:
        """Capture index minus unwrapped RTP timestamp, now; None before a packet."""
        return self._offset

    @property
    def hold_s(self) -> float:
        """How long a missing packet is waited for now."""
        return self._hold.seconds

    @property
    def depth(self) -> int:
        """Packets held back by a gap now."""
        return len(self._held)

    def start(self, now: float) -> None:
        """Start real-time filling at `now` unless audio already runs."""
        if self._anchor is None:
            self._anchor = self._began = (now, self._write)

    def push(self, sequence: int, timestamp: int, payload: bytes, now: float) -> None:
        """Take one packet: 16-bit sequence number, 32-bit RTP timestamp, Opus payload."""
        self.stats.packets += 1
        seq = self._sequence.unwrap(sequence)
        if self._next is not None and abs(seq - self._next) > _RESTART_DISTANCE:
            self._restart()
            seq = self._sequence.unwrap(sequence)
        if self._next is None:
            self._next = seq
        if seq < self._next:
            self.stats.late_packets += 1
            if (since := self._skipped.pop(seq, None)) is not None:
                self._hold.on_late(now - since)
            return
        if seq in self._held:
            self.stats.duplicate_packets += 1
            return
        if self._held and seq < max(self._held):
            self.stats.reordered_packets += 1
            self._hold.on_late(now - (self._gap_since or now))
        self._held[seq] = _Held(self._timestamp.unwrap(timestamp), payload, now)
        self._release()

    def recover_packet(self, sequence: int, timestamp: int, payload: bytes, now: float) -> None:
        """Take a packet again out of a later one; of use only if it has not come itself."""
        if self._next is None:
            return
        seq = self._sequence.unwrap(sequence)
        if seq >= self._next and seq not in self._held:
            self.stats.recovered_samples += opus_samples(payload)
            self.push(sequence, timestamp, payload, now)

    def reset_stream(self) -> None:
        """The sender changed (new SSRC): what it numbers has nothing to do with the past."""
        self._restart()

    def poll(self, now: float) -> list[AudioBlock]:
        """Return the blocks that are due at `now`, in order."""
        while self._gap_since is not None and now >= self._gap_since + self.hold_s - 1e-9:
            self._skip_gap()
        self._fill(now)
        ready, self._ready = self._ready, []
        return ready

    def deadline(self) -> float | None:
        """When `poll` must be called even if no packet comes; None before any start."""
        due: list[float] = []
        if self._gap_since is not None:
            due.append(self._gap_since + self.hold_s)
        if self._anchor is not None:
            at, index = self._anchor
            filled = (self._write - index + 2 * FILL_SAMPLES) / WIRE_RATE_HZ
            due.append(max(at + self._starve_s, at + filled))
        return min(due) if due else None

    def _restart(self) -> None:
        self._sequence.reset()
        self._timestamp.reset()
        self._held.clear()
        self._skipped.clear()
        self._next = None
        self._gap_since = None
        self._offset = None
        self._late_since = None

    def _take_tokens(self, samples: int, now: float) -> bool:
        """At most a second at once and 5 % faster than real time in the long run."""
        if self._tokens_at is not None:
            gained = (now - self._tokens_at) * WIRE_RATE_HZ * 1.05
            self._tokens = min(float(WIRE_RATE_HZ), self._tokens + gained)
        self._tokens_at = now
        if samples > self._tokens:
            return False
        self._tokens -= samples
        return True

    def _release(self) -> None:
        assert self._next is not None
        while (held := self._held.pop(self._next, None)) is not None:
            self._next += 1
            self._gap_since = None
            self._place(held)
        if not self._held:
            self._gap_since = None
            return
        self.stats.held_max = max(self.stats.held_max, len(self._held))
        self._gap_since = min(held.arrival_s for held in self._held.values())
        if len(self._held) > MAX_HELD_PACKETS or self._is_copied():
            self._skip_gap()

    def _is_copied(self) -> bool:
        """Whether the packet after the gap carries all of it, so that waiting gains nothing."""
        after = self._held.get((self._next or 0) + 1)
        return after is not None and not self._hold.swaps and self._has_copy(after.payload)

    def _skip_gap(self) -> None:
        assert self._next is not None
        first = min(self._held)
        self.stats.lost_packets += first - self._next
        if self._gap_since is not None:
            self._hold.on_gap_given_up()
            for seq in range(max(self._next, first - MAX_HELD_PACKETS), first):
                self._skipped[seq] = self._gap_since
            while len(self._skipped) > MAX_HELD_PACKETS:
                del self._skipped[next(iter(self._skipped))]
        self._next = first
        self._gap_since = None
        self._release()

    def _place(self, held: _Held) -> None:
        """Put one packet on the line: conceal before it, or cut what is already filled."""
        if not self._take_tokens(opus_samples(held.payload), held.arrival_s):
            self.stats.flooded_packets += 1
            return
        copy = self._copy_before(held)
        try:
            pcm = self._decode(held.payload)
        except ValueError:
            self.stats.undecodable_packets += 1
            return
        if self._offset is None:
            self._offset = self._write - held.timestamp
        gap = held.timestamp + self._offset - self._write
        if gap > MAX_GAP_SAMPLES or gap < -2 * MAX_GAP_SAMPLES or self._too_long_late(gap, held):
            self._offset -= gap
            self._late_since = None
            self.stats.rebases += 1
            gap = 0
        if gap > 0 and not self._take_tokens(gap, held.arrival_s):
            self._offset -= gap
            self.stats.rebases += 1
            gap = 0
        if gap > 0:
            self._bridge(gap, copy, held.arrival_s)
        if gap < 0:
            pcm = pcm[-gap:]
        if len(pcm) == 0:
            self.stats.late_packets += 1
            if self._late_since is None:
                self._late_since = held.arrival_s
            return
        self._late_since = None
        if self._too_early(pcm, held.arrival_s):
            self._offset -= len(pcm)
            self.stats.shortened_samples += len(pcm)
            self._anchor = (held.arrival_s, self._write)
            return
        self._emit(self._conceal.push(pcm), False, held.arrival_s)
        self._anchor = (held.arrival_s, self._write)

    def _copy_before(self, held: _Held) -> Pcm | None:
        """What a packet says about the end of the gap before it; asked before it is decoded."""
        gap = 0 if self._offset is None else held.timestamp + self._offset - self._write
        if not 0 < gap <= MAX_GAP_SAMPLES:
            return None
        return self._recover(held.payload, min(gap, opus_samples(held.payload)))

    def _bridge(self, gap: int, copy: Pcm | None, arrival_s: float) -> None:
        """Fill `gap` samples: concealment, then the copy of the last of them, if there is one."""
        missing = gap - (0 if copy is None else len(copy))
        if missing > 0:
            self._emit(self._conceal.conceal(missing), True, arrival_s)
            self.stats.concealed_samples += missing
        if copy is not None:
            self._emit(self._conceal.push(copy), False, arrival_s)
            self.stats.recovered_samples += len(copy)

    def _too_early(self, pcm: Pcm, now: float) -> bool:
        """The line is ahead of real time, and nobody would miss this packet."""
        if self._began is None:
            self._began = (now, self._write)
        at, index = self._began
        lead = self._write - index - (now - at) * WIRE_RATE_HZ
        if lead <= MAX_LEAD_SAMPLES:
            return False
        loudness = float(np.sqrt(np.mean(np.square(pcm, dtype=np.float32))))
        return loudness < QUIET_RMS or lead > MOST_LEAD_SAMPLES

    def _too_long_late(self, gap: int, held: _Held) -> bool:
        late = gap < 0 and self._late_since is not None
        return late and held.arrival_s - (self._late_since or 0.0) > self._rebase_s

    def _fill(self, now: float) -> None:
        if self._anchor is None:
            return
        at, index = self._anchor
        if now - at < self._starve_s - 1e-9:
            return
        target = index + int((now - at) * WIRE_RATE_HZ + 1e-6) - FILL_SAMPLES
        blocks = (target - self._write) // FILL_SAMPLES
        if blocks > MAX_GAP_SAMPLES // FILL_SAMPLES:
            self._anchor = (now, self._write)
            blocks = MAX_GAP_SAMPLES // FILL_SAMPLES
        for _ in range(blocks):
            self._emit(self._conceal.conceal(FILL_SAMPLES), True, now)
            if self.stats.packets:
                self.stats.filled_samples += FILL_SAMPLES
            else:
                self.stats.waited_samples += FILL_SAMPLES

    def _emit(self, pcm: Pcm, concealed: bool, arrival_s: float) -> None:
        self._ready.append(AudioBlock(self._write, pcm, concealed, arrival_s))
        self._write += len(pcm)
