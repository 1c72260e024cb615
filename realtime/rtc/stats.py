"""One typed snapshot of a connection's figures, and the small meters behind it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

_WINDOW = 128


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of the last values, in milliseconds; zeros when there are none."""

    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0


class Meter:
    """The last values of something that is measured in milliseconds."""

    def __init__(self, window: int = _WINDOW) -> None:
        self._values: deque[float] = deque(maxlen=window)

    def add(self, ms: float) -> None:
        """Take one value."""
        self._values.append(ms)

    def spread(self) -> Spread:
        """Percentiles of what is remembered."""
        if not self._values:
            return Spread()
        return Spread(*(round(float(v), 3) for v in np.percentile(self._values, (50, 95, 99))))


class RateMeter:
    """Bits per second over the last second."""

    def __init__(self) -> None:
        self._sent: deque[tuple[float, int]] = deque()
        self._bytes = 0

    def add(self, size: int, now: float) -> None:
        """`size` bytes left at monotonic `now`."""
        self._sent.append((now, size))
        self._bytes += size
        self._forget(now)

    def bps(self, now: float) -> int:
        """Mean over the last second."""
        self._forget(now)
        return 8 * self._bytes

    def _forget(self, now: float) -> None:
        while self._sent and now - self._sent[0][0] > 1.0:
            self._bytes -= self._sent.popleft()[1]


class FreezeMeter:
    """Freezes of a picture, as W3C webrtc-stats defines `freezeCount`.

    A frame that comes later than three mean intervals, and at least 150 ms later than one,
    ends a freeze that began with the frame before it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total_ms = 0.0
        self._intervals: deque[float] = deque(maxlen=30)
        self._last_s: float | None = None

    def on_frame(self, now: float) -> None:
        """A frame is shown at monotonic `now`."""
        last, self._last_s = self._last_s, now
        if last is None:
            return
        interval = now - last
        if self._intervals:
            mean = sum(self._intervals) / len(self._intervals)
            if interval > max(3 * mean, mean + 0.150):
                self.count += 1
                self.total_ms += interval * 1000
        self._intervals.append(interval)


@dataclass(frozen=True, slots=True)
class PeerStats:
    """A snapshot of one connection; counters since the start, `None` where nothing is known."""

    # Microphone in.
    audio_packets: int = 0
    audio_lost: int = 0
    audio_late: int = 0
    audio_depth: int = 0
    """Packets held behind a gap now."""
    recovered_ms: float = 0.0
    """Lost, but copied in the packet after (forward error correction)."""
    concealed_ms: float = 0.0
    filled_ms: float = 0.0
    waited_ms: float = 0.0
    """Silence before the first packet; nothing was missing."""
    reorder_hold_ms: float = 0.0
    """How long a missing packet is waited for now."""
    shortened_ms: float = 0.0
    """Left out of pauses after the path got faster again."""
    # Webcam in.
    video_packets: int = 0
    video_lost: int = 0
    video_depth: int = 0
    """Packets that wait for others now."""
    webcam_frames: int = 0
    nacks_sent: int = 0
    """Packets asked for again, counted each time."""
    recovered_packets: int = 0
    """Missing at first, and then there: retransmitted, copied or late."""
    plis_sent: int = 0
    freezes: int = 0
    freeze_ms: float = 0.0
    # Pictures out.
    video_codec: str = ""
    encoder: str = ""
    frames_sent: int = 0
    frames_replaced: int = 0
    """Gave way to a newer one before the encoder began."""
    key_frames: int = 0
    key_frame_requests: int = 0
    """PLI, FIR, viewers that joined, and requests of this program."""
    nacks_received: int = 0
    """Packets asked for again."""
    retransmitted: int = 0
    copies_sent: int = 0
    """Packets of pictures sent twice of our own accord, because the path loses some."""
    redundant_sent: int = 0
    """Voice packets that carried the one before them once more, for the same reason."""
    plis_received: int = 0
    """Key frames that the receiver asked for (PLI or FIR)."""
    target_bps: int = 0
    ceiling_bps: int = 0
    actual_bps: int = 0
    """Video payload in the last second."""
    encode: Spread = Spread()
    capture_to_send: Spread = Spread()
    """From the capture of a frame's sound to its last packet given to the pacer."""
    # The path.
    packets_sent: int = 0
    bytes_sent: int = 0
    round_trip_ms: float | None = None
    estimate_bps: int = 0
    feedback: str = "none"
    """Where the estimate comes from: transport-cc, remb or none."""
    path_loss: float = 0.0
    """Share of our packets that the other side reported as lost in the last second."""
    pacer_packets: int = 0
    pacer_max_ms: float = 0.0
    malformed_packets: int = 0
