"""What one session's frames took and what became of them; survives a change of peer.

Percentiles for the session's own statistics, the same durations for the server's metrics.
Belongs to the session's loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter

from realtime.metrics import Metrics
from realtime.protocol import StageMs
from realtime.rtc import PeerStats
from realtime.stages import Percentiles, StageRecorder


class Tally:
    """See the module's docstring."""

    def __init__(self, metrics: Metrics) -> None:
        self.frames = 0
        """Sent."""
        self.late = 0
        self.held = 0
        """Not drawn, whatever the reason."""
        self.due = 0
        """Asked of the worker to be drawn."""
        self.encode_ns = 0.0
        """Moving mean of the time to encode; 0 before the first frame."""
        self._metrics = metrics
        self._stages = StageRecorder()
        self._added = Percentiles()
        self._counted = _counted(metrics)
        self._seen = dict.fromkeys(self._counted, 0.0)

    def record(self, spans: Mapping[str, int]) -> None:
        """Stages of one frame or webcam picture, nanoseconds by name."""
        self._stages.add_spans(spans)
        for name, duration_ns in spans.items():
            self._metrics.stage.labels(name).observe(duration_ns / 1e9)

    def on_held(self, reason: str) -> None:
        """A frame was not drawn."""
        self.held += 1
        self.late += reason == "late"
        self._metrics.frames.labels(reason).inc()

    def on_sent(self, encode_ns: int, *, key: bool, since_offer_ns: int) -> None:
        """A frame was encoded and leaves."""
        if self.frames == 0:
            self._metrics.time_to_first_frame.observe(since_offer_ns / 1e9)
        self.frames += 1
        weight = 0.1 if self.encode_ns else 1.0
        self.encode_ns += weight * (encode_ns - self.encode_ns)
        self._metrics.frames.labels("sent").inc()
        self._metrics.key_frames.inc(key)
        self.record({"encode": encode_ns})

    def on_added(self, duration_ns: int) -> None:
        """What the server added to one frame: mic packet in to avatar packet out."""
        self._added.add(duration_ns)
        self._metrics.added_latency.observe(duration_ns / 1e9)

    def on_skew(self, skew_ns: int | None) -> None:
        """How much later than its sound one picture left, where both are known."""
        if skew_ns is not None:
            self._metrics.av_skew.observe(skew_ns / 1e9)

    def on_peer(self, stats: PeerStats) -> None:
        """Count what the peer's counters grew by since the last call."""
        for name, (counter, unit) in self._counted.items():
            value = float(getattr(stats, name))
            counter.inc(max(0.0, value - self._seen[name]) * unit)
            self._seen[name] = value

    def new_peer(self) -> None:
        """Another peer counts from zero."""
        self._seen = dict.fromkeys(self._counted, 0.0)

    def added(self) -> StageMs:
        """Percentiles of `on_added`."""
        return self._added.summary()

    def stages(self) -> dict[str, StageMs]:
        """Percentiles of every stage."""
        return self._stages.summary()


def _counted(metrics: Metrics) -> dict[str, tuple[Counter, float]]:
    """Counters of `PeerStats` by name: where each is summed up over peers, and its unit there."""
    repairs, requests = metrics.repair_packets.labels, metrics.key_frame_requests.labels
    return {
        "concealed_ms": (metrics.audio_concealed, 1e-3),
        "filled_ms": (metrics.audio_filled, 1e-3),
        "recovered_ms": (metrics.audio_recovered, 1e-3),
        "audio_lost": (metrics.lost_packets.labels("audio"), 1.0),
        "video_lost": (metrics.lost_packets.labels("video"), 1.0),
        "nacks_sent": (repairs("asked"), 1.0),
        "recovered_packets": (repairs("recovered"), 1.0),
        "nacks_received": (repairs("asked_of_us"), 1.0),
        "retransmitted": (repairs("answered"), 1.0),
        "copies_sent": (repairs("unasked"), 1.0),
        "redundant_sent": (repairs("carried"), 1.0),
        "plis_sent": (requests("sent"), 1.0),
        "plis_received": (requests("received"), 1.0),
    }
