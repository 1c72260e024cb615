"""Makes the ladder of quality (`realtime.degrade`) real for one session.

It measures, decides and applies. Belongs to the session's loop.
"""

from __future__ import annotations

from collections.abc import Callable

from realtime.degrade import Conditions, Degrader
from realtime.link import Link
from realtime.load import WorkerLoad
from realtime.pipeline import Pipeline
from realtime.protocol import Quality
from realtime.rtc import PeerStats, ceiling_bps
from realtime.tally import Tally

#: What the voice takes of a path: 64 kb/s in a hundred packets a second with all their headers.
VOICE_BPS = 110_000
#: Signs besides the estimate that a path is full, and how long they count.
LOSS = 0.02
RTT_RISE_MS = 150.0
CONGESTED_NS = 3_000_000_000


class Adaptation:
    """See the module's docstring. `size` and `video_bps` are what the session has at best."""

    def __init__(
        self,
        size: int,
        video_bps: int,
        pipeline: Pipeline,
        tally: Tally,
        clock: Callable[[], int],
    ) -> None:
        self._size, self._video_bps = size, video_bps
        self._pipeline, self._tally, self._clock = pipeline, tally, clock
        self._degrader = Degrader(size, clock())
        self._seen = (0, 0, 0)
        self._least_rtt_ms = float("inf")
        self._congested_ns: int | None = None

    @property
    def level(self) -> int:
        """Rung of the ladder; 0 is full quality."""
        return self._degrader.level

    def draws(self, frame_index: int) -> bool:
        """Whether this frame shall be drawn."""
        return self._degrader.draws(frame_index)

    def quality(self) -> Quality:
        """What the page is told."""
        rung = self._degrader.rung
        return Quality(
            self._degrader.level, rung.name, round(rung.fps, 2), rung.size, self._degrader.reason
        )

    def restart(self, link: Link) -> None:
        """Another peer, perhaps on another network: begin at full quality."""
        self._degrader = Degrader(self._size, self._clock())
        self._seen = (self._tally.due, self._tally.late, 0)
        self._least_rtt_ms, self._congested_ns = float("inf"), None
        self._apply(link)

    def update(self, link: Link, peer: PeerStats, load: WorkerLoad) -> bool:
        """Take what happened since the last call; True if the quality changed."""
        seen = (self._tally.due, self._tally.late, peer.frames_replaced)
        due, late, replaced = (max(0, new - old) for new, old in zip(seen, self._seen, strict=True))
        self._seen = seen
        path = None
        if peer.feedback != "none" and self._congested(peer):
            path = max(0, peer.estimate_bps - VOICE_BPS)
        conditions = Conditions(
            due, late + replaced, load.busy, load.frame_ns, path, peer.path_loss
        )
        if not self._degrader.update(conditions, self._clock()):
            return False
        self._apply(link)
        return True

    def _congested(self, peer: PeerStats) -> bool:
        """Whether anything but the estimate says that the path is full.

        An estimate from delays falls as well when this machine or the other one stands still for a
        moment; then nothing is lost and packets do not take longer on their way.
        """
        rtt = peer.round_trip_ms
        if rtt is not None:
            self._least_rtt_ms = min(self._least_rtt_ms, rtt)
        longer = rtt is not None and rtt > self._least_rtt_ms + RTT_RISE_MS
        if longer or peer.path_loss >= LOSS:
            self._congested_ns = self._clock()
        at = self._congested_ns
        return at is not None and self._clock() - at < CONGESTED_NS

    def _apply(self, link: Link) -> None:
        rung = self._degrader.rung
        self._pipeline.set_size(rung.size)
        link.limit_video(rung.ceiling_bps or min(self._video_bps, ceiling_bps(rung.size)))
