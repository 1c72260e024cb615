"""Which packets of a picture leave twice while the path loses some. No I/O.

A lost packet of a picture is repaired by a retransmission, which takes a round trip, and two
when the last packet of a frame is lost, because only the next frame shows that it is missing.
On a path of 3 % loss that happens to every eighth frame. So while the receiver reports loss, a
frame's packets follow once more behind it, as retransmissions nobody had to ask for (RFC 4588;
receivers drop what they have). The copies are taken out of the rate that the pictures have
anyway: never does more go into a path because it loses.

Loss beyond `MOST_LOSS` is a full path, not a bad one; then nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Share of packets that the other side reports as lost, in about a second.
LEAST_LOSS, MOST_LOSS = 0.015, 0.10
#: So long after the last report of loss packets still leave twice.
HOLD_S = 10.0
#: Share of the pictures' rate that is left for copies: of what is beyond a third of the ceiling,
#: and of what a narrow path has.
SHARE, NARROW_SHARE = 0.5, 0.25
KEEP_OF_CEILING = 0.3
#: Larger frames are key frames: they are paced, and a copy would hold up what follows.
MAX_PACKETS = 12
_SAVED_S = 0.2


class Protection:
    """See the module's docstring. Times are monotonic seconds, sizes bytes. One loop."""

    def __init__(self) -> None:
        self.copies_sent = 0
        self._until_s = float("-inf")
        self._saved_bytes = 0.0
        self._at_s: float | None = None

    def note_loss(self, share: float, now: float) -> None:
        """The other side reports this share of packets as lost, 0 .. 1."""
        if share > MOST_LOSS:
            self._until_s = now
        elif share >= LEAST_LOSS:
            self._until_s = now + HOLD_S

    def active(self, now: float) -> bool:
        """Whether packets leave twice now."""
        return now < self._until_s

    def encoder_bps(self, total_bps: int, ceiling_bps: int, now: float) -> int:
        """What is left for the encoder of the pictures' rate, copies taken off."""
        if not self.active(now):
            return total_bps
        keep = min((1.0 - NARROW_SHARE) * total_bps, KEEP_OF_CEILING * ceiling_bps)
        return int(max(keep, (1.0 - SHARE) * total_bps))

    def choose(self, sizes: Sequence[int], total_bps: int, now: float) -> list[int]:
        """Places of the packets of one frame that leave again after it, in order.

        `total_bps` is the rate that frames and copies share. Where it is not enough for all,
        the last packets come first: nothing after them would show that they are missing.
        """
        self._save(total_bps, now)
        self._saved_bytes -= sum(sizes)
        chosen: list[int] = []
        if self.active(now) and sizes:
            most = len(sizes) if len(sizes) <= MAX_PACKETS else 1
            for place in range(len(sizes) - 1, len(sizes) - 1 - most, -1):
                if sizes[place] > self._saved_bytes:
                    break
                self._saved_bytes -= sizes[place]
                chosen.append(place)
        # A key frame may leave a debt, but not one that outlives it.
        self._saved_bytes = max(self._saved_bytes, -_SAVED_S * total_bps / 8)
        self.copies_sent += len(chosen)
        return chosen[::-1]

    def _save(self, total_bps: int, now: float) -> None:
        passed = 0.0 if self._at_s is None else max(0.0, now - self._at_s)
        self._at_s = now
        most = _SAVED_S * total_bps / 8
        self._saved_bytes = min(most, self._saved_bytes + passed * total_bps / 8)
