"""When a packet may leave: a token bucket in which sound never waits. No I/O.

A 512 px key frame is 35 packets; sent as one burst they overflow a small queue on the way
and delay the voice behind them. An average frame leaves at once (the bucket holds one);
what is more leaves at `PACING_FACTOR` times the target rate, or faster where needed so that
nothing waits longer than `MAX_WAIT_S`.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from models.rates import FPS

PACING_FACTOR = 2.5
MAX_WAIT_S = 0.040
MAX_PACKETS = 2048
#: Timers are no finer; a wake-up for less than this would send single packets.
MIN_STEP_S = 0.002
_MIN_BURST_BYTES = 6000

T = TypeVar("T")


class PacketPacer(Generic[T]):
    """See the module's docstring. Times are monotonic seconds; sizes bytes. One loop."""

    def __init__(self, target_bps: int) -> None:
        self.dropped = 0
        self._audio: deque[tuple[T, int]] = deque()
        self._repairs: deque[tuple[T, int]] = deque()
        self._video: deque[tuple[T, int]] = deque()
        self._video_bytes = 0
        self._rate = 0.0
        self._burst = 0.0
        self._drain = 0.0
        self._at: float | None = None
        self.set_target(target_bps)
        self._tokens = self._burst

    def __len__(self) -> int:
        return len(self._audio) + len(self._repairs) + len(self._video)

    @property
    def queued_bytes(self) -> int:
        """Video bytes that wait."""
        return self._video_bytes

    def set_target(self, bps: int) -> None:
        """The encoder aims at `bps` now."""
        self._rate = PACING_FACTOR * bps / 8
        self._burst = max(_MIN_BURST_BYTES, bps / 8 / FPS)

    def push_audio(self, item: T, size: int) -> None:
        """Add a packet that leaves before everything else."""
        self._audio.append((item, size))
        if len(self._audio) > MAX_PACKETS:
            self._audio.popleft()
            self.dropped += 1

    def push_video(self, item: T, size: int, *, repair: bool = False) -> bool:
        """Add a packet; a repair (a retransmission) leaves before the other pictures.

        False if too much waits: then all waiting video is dropped, and the caller must ask
        its encoder for a key frame.
        """
        if len(self._video) + len(self._repairs) >= MAX_PACKETS:
            self.dropped += len(self._video) + len(self._repairs) + 1
            self._clear_video()
            return False
        (self._repairs if repair else self._video).append((item, size))
        self._video_bytes += size
        # So fast that all that waits now is gone in time.
        self._drain = max(self._drain, self._video_bytes / MAX_WAIT_S)
        return True

    def pop(self, now: float) -> list[T]:
        """Return what may leave at `now`, in order. Sound is paid for, but never waits."""
        self._refill(now)
        out = []
        while self._audio:
            item, size = self._audio.popleft()
            self._tokens = max(-self._burst, self._tokens - size)
            out.append(item)
        while (waiting := self._repairs or self._video) and self._tokens > 0:
            item, size = waiting.popleft()
            self._tokens -= size
            self._video_bytes -= size
            out.append(item)
        if not waiting:
            self._drain = 0.0
        return out

    def deadline(self, now: float) -> float | None:
        """When `pop` gives something next; None when nothing waits."""
        if self._audio:
            return now
        if not self._video and not self._repairs:
            return None
        wait = max(0.0, -self._tokens) / max(self._rate, self._drain, 1.0)
        return now + max(MIN_STEP_S, wait)

    def clear(self) -> None:
        """Forget what waits."""
        self._audio.clear()
        self._clear_video()

    def _clear_video(self) -> None:
        self._repairs.clear()
        self._video.clear()
        self._video_bytes = 0

    def _refill(self, now: float) -> None:
        if self._at is not None and now > self._at:
            rate = max(self._rate, self._drain)
            self._tokens = min(self._burst, self._tokens + (now - self._at) * rate)
        self._at = now
