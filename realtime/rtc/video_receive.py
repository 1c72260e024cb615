"""From RTP fragments to encoded video frames. No I/O, no clock of its own.

A frame is released the moment its last fragment (RTP marker) is in and everything before
it has been released: a stock aiortc receiver waits for the next frame's timestamp
(33 ms). Missing fragments are asked for again every round trip, at most `MAX_NACKS`
times; what is still missing after `give_up_s` is given up: everything up to the next key
frame is dropped and a key frame is asked for (PLI), at most every `pli_interval_s`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from realtime.rtc.sequence import Unwrapper

MAX_NACKS = 3
MAX_FRAGMENTS = 1024
_RESTART_DISTANCE = 3000


@dataclass(frozen=True, slots=True)
class Fragment:
    """One RTP packet of video, payload descriptor removed."""

    sequence: int
    """16-bit RTP sequence number."""
    timestamp: int
    """32-bit RTP timestamp, 90 kHz."""
    marker: bool
    data: bytes
    """Empty for padding."""
    key_start: bool
    """First fragment of a key frame."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """One complete frame, in decoding order."""

    timestamp: int
    """Unwrapped RTP timestamp, 90 kHz."""
    data: bytes
    key: bool


@dataclass(slots=True)
class VideoReceiveStats:
    """Counters since the start."""

    packets: int = 0
    frames: int = 0
    duplicate_packets: int = 0
    recovered_packets: int = 0
    lost_packets: int = 0
    nacks: int = 0
    plis: int = 0
    dropped_frames: int = 0


@dataclass(slots=True)
class Poll:
    """What is due: frames to decode, sequence numbers to ask for, whether to send a PLI."""

    frames: list[EncodedFrame] = field(default_factory=list)
    nack: list[int] = field(default_factory=list)
    pli: bool = False


@dataclass(slots=True)
class _Missing:
    since: float
    asked_at: float = -1.0
    asked: int = 0


class VideoReceiveBuffer:
    """See the module's docstring. Call from one thread with monotonic times."""

    def __init__(self, *, give_up_s: float = 0.150, pli_interval_s: float = 0.400) -> None:
        self.stats = VideoReceiveStats()
        self.round_trip_s = 0.050
        self._give_up_s = give_up_s
        self._pli_interval_s = pli_interval_s
        self._sequence = Unwrapper(16)
        self._timestamp = Unwrapper(32)
        self._stored: dict[int, tuple[Fragment, int]] = {}
        self._missing: dict[int, _Missing] = {}
        self._next: int | None = None
        self._highest = 0
        self._need_key = True
        self._pli_at: float | None = None

    @property
    def depth(self) -> int:
        """Fragments waiting for others."""
        return len(self._stored)

    def push(self, fragment: Fragment, now: float) -> None:
        """Take one fragment."""
        self.stats.packets += 1
        seq = self._sequence.unwrap(fragment.sequence)
        if self._next is not None and abs(seq - self._next) > _RESTART_DISTANCE:
            self._restart()
            seq = self._sequence.unwrap(fragment.sequence)
        if self._next is None:
            self._next = seq
            self._highest = seq - 1
        if seq < self._next or seq in self._stored:
            self.stats.duplicate_packets += 1
            return
        if seq > self._highest:
            for hole in range(max(self._highest + 1, self._next), seq):
                self._missing[hole] = _Missing(now)
            self._highest = seq
        elif self._missing.pop(seq, None) is not None:
            self.stats.recovered_packets += 1
        self._stored[seq] = (fragment, self._timestamp.unwrap(fragment.timestamp))
        if len(self._stored) > MAX_FRAGMENTS:
            self._give_up()

    def request_key_frame(self) -> None:
        """The decoder lost track: drop up to the next key frame and ask for one."""
        self._need_key = True

    def restart(self) -> None:
        """The sender changed (new SSRC): what it numbers has nothing to do with the past."""
        self._restart()

    def poll(self, now: float) -> Poll:
        """Return everything due at `now`."""
        result = Poll()
        if any(now - m.since >= self._give_up_s - 1e-9 for m in self._missing.values()):
            self._give_up()
        self._assemble(result.frames)
        for seq, missing in self._missing.items():
            if missing.asked < MAX_NACKS and now >= self._ask_at(missing) - 1e-9:
                missing.asked += 1
                missing.asked_at = now
                result.nack.append(seq & 0xFFFF)
        self.stats.nacks += len(result.nack)
        if self._wants_key() and now >= self._next_pli():
            self._pli_at = now
            self.stats.plis += 1
            result.pli = True
        return result

    def deadline(self) -> float | None:
        """When `poll` must be called even if no packet comes."""
        due = [m.since + self._give_up_s for m in self._missing.values()]
        due += [self._ask_at(m) for m in self._missing.values() if m.asked < MAX_NACKS]
        if self._wants_key() and self._pli_at is not None:
            due.append(self._next_pli())
        return min(due) if due else None

    def _ask_at(self, missing: _Missing) -> float:
        if missing.asked == 0:
            return missing.since
        return missing.asked_at + max(self.round_trip_s, 0.010)

    def _wants_key(self) -> bool:
        """A key frame is needed and none is on its way in."""
        if not self._need_key or self._next is None:
            return False
        return not any(fragment.key_start for fragment, _ in self._stored.values())

    def _next_pli(self) -> float:
        return float("-inf") if self._pli_at is None else self._pli_at + self._pli_interval_s

    def _restart(self) -> None:
        self._sequence.reset()
        self._timestamp.reset()
        self._stored.clear()
        self._missing.clear()
        self._next = None
        self._need_key = True

    def _assemble(self, frames: list[EncodedFrame]) -> None:
        assert self._next is not None or not self._stored
        if self._next is None:
            return
        if self._need_key:
            self._skip_to_key()
        while (end := self._frame_end()) is not None:
            parts = [self._stored.pop(seq) for seq in range(self._next, end + 1)]
            self._next = end + 1
            data = b"".join(part.data for part, _ in parts)
            if not data:
                continue
            key = any(part.key_start for part, _ in parts)
            if self._need_key and not key:
                self.stats.dropped_frames += 1
                continue
            self._need_key = False
            self.stats.frames += 1
            frames.append(EncodedFrame(parts[-1][1], data, key))

    def _frame_end(self) -> int | None:
        """Last sequence number of the frame that starts at `_next`, if all of it is here."""
        assert self._next is not None
        seq = self._next
        while (stored := self._stored.get(seq)) is not None:
            fragment, timestamp = stored
            if fragment.marker or not fragment.data:
                return seq
            following = self._stored.get(seq + 1)
            if following is not None and following[1] != timestamp:
                return seq
            seq += 1
        return None

    def _skip_to_key(self) -> None:
        """Move to the first key frame start at hand; a gap before it no longer matters."""
        assert self._next is not None
        starts = [seq for seq, (fragment, _) in self._stored.items() if fragment.key_start]
        if not starts:
            return
        self._drop_before(min(starts))

    def _give_up(self) -> None:
        """Stop waiting: drop what cannot be decoded any more."""
        self._need_key = True
        starts = [
            seq
            for seq, (fragment, _) in self._stored.items()
            if fragment.key_start and seq > min(self._missing, default=-1)
        ]
        self._drop_before(min(starts) if starts else self._highest + 1)

    def _drop_before(self, seq: int) -> None:
        assert self._next is not None
        self.stats.lost_packets += sum(1 for hole in self._missing if hole < seq)
        self._missing = {hole: m for hole, m in self._missing.items() if hole >= seq}
        dropped = {s for s in self._stored if s < seq}
        self.stats.dropped_frames += len({self._stored[s][1] for s in dropped})
        for s in dropped:
            del self._stored[s]
        self._next = max(self._next, seq)
