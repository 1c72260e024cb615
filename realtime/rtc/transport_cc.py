"""Transport-wide feedback: when every packet of a connection arrived.

Wire format and bookkeeping of draft-holmer-rmcat-transport-wide-cc-extensions-01, without
I/O. The receiving side logs arrivals and builds reports; the sending side keeps what it
sent and turns reports into `PacketResult`s for `estimator`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from realtime.rtc.sequence import Unwrapper

FEEDBACK_FORMAT = 15
FEEDBACK_INTERVAL_S = 0.050
#: A report about more packets than this is refused: 50 ms of 40,000 packets a second.
MAX_STATUSES = 2048
_KEEP_S = 0.5
_MAX_LOG = 4096
_MAX_HISTORY = 8192
_TICK_US = 250
_REFERENCE_US = 64_000
_RESTART_DISTANCE = 8192


class FeedbackError(ValueError):
    """The feedback cannot be understood."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One report. Sequence numbers are 16-bit, times microseconds since `reference` began."""

    base: int
    count: int
    reference: int
    """24-bit time of the first arrival in units of 64 ms."""
    number: int
    """8-bit counter of reports."""
    deltas_us: tuple[int | None, ...]
    """Arrival after `reference` for `base`, `base + 1`, …; None: not received."""


def parse_feedback(fci: bytes) -> Feedback:
    """Parse what follows the two SSRCs of an RTPFB packet, format 15. Raises FeedbackError."""
    if len(fci) < 8:
        raise FeedbackError("truncated header")
    base, count, reference, number = *struct.unpack_from("!HH", fci), fci[4:7], fci[7]
    if not 0 < count <= MAX_STATUSES:
        raise FeedbackError(f"{count} packet statuses")
    symbols: list[int] = []
    at = 8
    while len(symbols) < count:
        if at + 2 > len(fci):
            raise FeedbackError("truncated statuses")
        symbols += _chunk_symbols(int.from_bytes(fci[at : at + 2]), count - len(symbols))
        at += 2
    time_us = 0
    deltas: list[int | None] = []
    for symbol in symbols:
        size = {0: 0, 1: 1, 2: 2}.get(symbol)
        if size is None:
            raise FeedbackError("reserved status symbol")
        if at + size > len(fci):
            raise FeedbackError("truncated deltas")
        if size:
            time_us += int.from_bytes(fci[at : at + size], signed=size == 2) * _TICK_US
        deltas.append(time_us if size else None)
        at += size
    return Feedback(base, count, int.from_bytes(reference), number, tuple(deltas))


def _chunk_symbols(chunk: int, room: int) -> list[int]:
    if not chunk & 0x8000:
        # A run of nothing would loop for ever; it becomes the symbol that is refused.
        return [(chunk >> 13) & 3] * min(chunk & 0x1FFF, room) or [3]
    if chunk & 0x4000:
        return [(chunk >> shift) & 3 for shift in range(12, -2, -2)][:room]
    return [(chunk >> shift) & 1 for shift in range(13, -1, -1)][:room]


def pack_feedback(feedback: Feedback) -> bytes:
    """Inverse of `parse_feedback`. Deltas must lie within 16-bit ticks of each other."""
    symbols, deltas, last_us = [], [], 0
    for delta in feedback.deltas_us:
        if delta is None:
            symbols.append(0)
            continue
        ticks = (delta - last_us) // _TICK_US
        last_us += ticks * _TICK_US
        small = 0 <= ticks <= 255
        symbols.append(1 if small else 2)
        deltas.append(ticks.to_bytes(1 if small else 2, signed=not small))
    header = struct.pack("!HH", feedback.base, feedback.count)
    header += feedback.reference.to_bytes(3) + bytes([feedback.number])
    return header + _pack_symbols(symbols) + b"".join(deltas)


def _pack_symbols(symbols: list[int]) -> bytes:
    """Runs of seven or more as a run, everything else seven to a chunk."""
    out, at = [], 0
    while at < len(symbols):
        run = 1
        while at + run < len(symbols) and symbols[at + run] == symbols[at] and run < 0x1FFF:
            run += 1
        if run >= 7 or at + run == len(symbols):
            out.append(symbols[at] << 13 | run)
            at += run
            continue
        chunk = 0xC000
        for i, symbol in enumerate(symbols[at : at + 7]):
            chunk |= symbol << (12 - 2 * i)
        out.append(chunk)
        at += 7
    return struct.pack(f"!{len(out)}H", *out)


class ArrivalLog:
    """When packets came in; builds the reports about them. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._sequence = Unwrapper(16)
        self._arrivals: dict[int, int] = {}
        self._from: int | None = None
        self._newest: int | None = None
        self._number = 0

    @property
    def pending(self) -> bool:
        """Whether there is something to report."""
        return self._from is not None and self._newest is not None and self._newest >= self._from

    def add(self, sequence: int, now: float) -> None:
        """A packet with this 16-bit transport sequence number came in."""
        seq = self._sequence.unwrap(sequence)
        if self._newest is not None and abs(seq - self._newest) > _RESTART_DISTANCE:
            self._sequence.reset()
            self._arrivals.clear()
            self._from = self._newest = None
            seq = self._sequence.unwrap(sequence)
        if seq in self._arrivals:
            return
        self._arrivals[seq] = int(now * 1e6)
        self._newest = seq if self._newest is None else max(self._newest, seq)
        # One that comes late corrects the report that called it lost.
        self._from = seq if self._from is None else min(self._from, seq)
        if len(self._arrivals) > _MAX_LOG:
            self._forget(int(now * 1e6))

    def build(self, now: float) -> list[Feedback]:
        """Reports about everything that came in since the last call."""
        reports = []
        while self.pending:
            assert self._from is not None
            assert self._newest is not None
            known = sorted(seq for seq in self._arrivals if seq >= self._from)
            if not known:
                break
            reports.append(self._report(known))
        self._forget(int(now * 1e6))
        return reports

    def _report(self, known: list[int]) -> Feedback:
        base = known[0]
        reference = self._arrivals[base] // _REFERENCE_US
        zero = last = reference * _REFERENCE_US
        deltas: list[int | None] = []
        for seq in known:
            at = self._arrivals[seq]
            hole = seq - base - len(deltas)
            # Another report takes what does not fit into a 16-bit delta or a bounded report.
            if len(deltas) + hole >= MAX_STATUSES or abs(at - last) >= 0x7FFF * _TICK_US:
                break
            deltas += [None] * hole
            deltas.append(at - zero)
            last = at
        self._from = base + len(deltas)
        self._number = (self._number + 1) & 0xFF
        number = (self._number - 1) & 0xFF
        return Feedback(base & 0xFFFF, len(deltas), reference & 0xFFFFFF, number, tuple(deltas))

    def _forget(self, now_us: int) -> None:
        oldest = now_us - int(_KEEP_S * 1e6)
        kept = {seq: at for seq, at in self._arrivals.items() if at >= oldest}
        self._arrivals = dict(sorted(kept.items())[-_MAX_LOG // 2 :])


@dataclass(frozen=True, slots=True)
class PacketResult:
    """What became of one sent packet; times in seconds, each on its own side's clock."""

    sent_s: float
    arrival_s: float | None
    """None: reported as not received."""
    size: int
    """Bytes on the wire above UDP."""


class SendHistory:
    """What was sent under which transport sequence number. One loop."""

    def __init__(self) -> None:
        self._next = 0
        self._sent: dict[int, tuple[float, int]] = {}
        self._reference = Unwrapper(24)

    def add(self, size: int, now: float) -> int:
        """Note a packet that leaves now; returns its 16-bit transport sequence number."""
        sequence = self._next & 0xFFFF
        self._sent[self._next] = (now, size)
        self._next += 1
        if len(self._sent) > _MAX_HISTORY:
            del self._sent[next(iter(self._sent))]
        return sequence

    def on_feedback(self, feedback: Feedback) -> list[PacketResult]:
        """Match a report with what was sent, in sending order; unknown packets are left out."""
        zero_us = self._reference.unwrap(feedback.reference) * _REFERENCE_US
        newest = self._next - 1
        first = newest - ((newest - feedback.base) & 0xFFFF)
        results = []
        for i, delta in enumerate(feedback.deltas_us):
            sent = self._sent.get(first + i)
            if sent is None:
                continue
            arrival = None if delta is None else (zero_us + delta) / 1e6
            results.append(PacketResult(sent[0], arrival, sent[1]))
            # A packet called lost may still come; one that came is settled.
            if delta is not None:
                del self._sent[first + i]
        return results
