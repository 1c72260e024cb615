"""What a receiver reports about itself, into the server's metrics and the session's trace."""

from __future__ import annotations

from realtime.metrics import Metrics
from realtime.protocol import ClientStats
from realtime.trace import Trace

#: Durations that are both figures of the metric and counters of the trace.
FIGURES = ("jitter_buffer_ms", "voice_buffer_ms", "decode_ms", "present_ms", "glass_ms", "rtt_ms")
_PLAIN = ("fps", "av_skew_ms", "jitter_ms", "freeze_ms", "frames_dropped", "packets_lost")


class ReceiverLog:
    """Takes each report of one receiver once. Belongs to the session's loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last: ClientStats | None = None

    def take(self, report: ClientStats | None, trace: Trace | None, now_ns: int) -> None:
        """Note `report` unless it was noted before; zeros are unknown and left out."""
        if report is None or report is self._last:
            return
        before = self._last.freezes if self._last is not None else 0
        self._metrics.receiver_freezes.inc(max(0, report.freezes - before))
        self._last = report
        for figure in FIGURES:
            ms = getattr(report, figure)
            if ms > 0:
                self._metrics.received.labels(figure.removesuffix("_ms")).observe(ms / 1000)
        if trace is not None:
            for name in (*FIGURES, *_PLAIN):
                trace.counter(
                    f"receiver {name}", now_ns, "receiver", **{name: getattr(report, name)}
                )
