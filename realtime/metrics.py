"""Prometheus metrics of one server: units in the names, few labels, never a client's id."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

LATENCY_BUCKETS_S = (
    0.002, 0.005, 0.010, 0.015, 0.020, 0.025, 0.030, 0.040, 0.050, 0.075, 0.1, 0.15, 0.25, 0.5,
)  # fmt: skip
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """All metrics, in a registry of their own. Event loop only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        r = self.registry
        self.sessions = Gauge("visavis_sessions", "Sessions open now.", registry=r)
        self.sessions_total = Counter(
            "visavis_sessions_ended", "Sessions that ended, by reason.", ["reason"], registry=r
        )
        self.refused = Counter(
            "visavis_sessions_refused", "Sessions that were refused, by reason.", ["reason"],
            registry=r,
        )  # fmt: skip
        self.engine_ready = Gauge("visavis_engine_ready", "1 when the engine is warm.", registry=r)
        self.frames = Counter(
            "visavis_frames", "Video frames by what became of them.", ["result"], registry=r
        )
        self.added_latency = Histogram(
            "visavis_added_latency_seconds",
            "Mic packet in to avatar packet out, less the algorithmic part.",
            buckets=LATENCY_BUCKETS_S, registry=r,
        )  # fmt: skip
        self.stage = Histogram(
            "visavis_stage_seconds", "Duration of one stage of a frame.", ["stage"],
            buckets=LATENCY_BUCKETS_S, registry=r,
        )  # fmt: skip
        self.time_to_first_frame = Histogram(
            "visavis_first_frame_seconds", "Offer received to first frame sent.",
            buckets=(0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0), registry=r,
        )  # fmt: skip
        self.av_skew = Histogram(
            "visavis_av_skew_seconds", "How much later than its sound a picture leaves.",
            buckets=(-0.08, -0.04, -0.02, -0.01, 0.0, 0.01, 0.02, 0.04, 0.08), registry=r,
        )  # fmt: skip
        self.audio_concealed = Counter(
            "visavis_audio_concealed_seconds", "Sound invented for lost packets.", registry=r
        )
        self.audio_filled = Counter(
            "visavis_audio_filled_seconds", "Silence filled while nothing came.", registry=r
        )
        self.audio_recovered = Counter(
            "visavis_audio_recovered_seconds",
            "Lost sound that the next packet carried a copy of (Opus FEC, RED).", registry=r,
        )  # fmt: skip
        self.lost_packets = Counter(
            "visavis_lost_packets", "Received media packets that never came in time, by kind.",
            ["kind"], registry=r,
        )  # fmt: skip
        self.repair_packets = Counter(
            "visavis_repair_packets",
            "Webcam packets asked for (NACK) and recovered; ours asked_of_us, answered (RTX), sent "
            "twice unasked, and carried in the next voice packet (RED).",
            ["kind"], registry=r,
        )  # fmt: skip
        self.key_frame_requests = Counter(
            "visavis_key_frame_requests", "Key frames asked for (PLI, FIR), by direction.",
            ["kind"], registry=r,
        )  # fmt: skip
        self.key_frames = Counter("visavis_key_frames", "Key frames encoded.", registry=r)
        self.messages = Counter(
            "visavis_control_messages", "Control messages by result.", ["result"], registry=r
        )
        self.parked = Gauge(
            "visavis_sessions_parked", "Sessions that wait for their vanished peer.", registry=r
        )
        self.resumed = Counter(
            "visavis_sessions_resumed", "Sessions that got a new peer.", registry=r
        )
        self.quality_level = Gauge(
            "visavis_quality_level", "Highest rung of degradation of any session, 0: full.",
            registry=r,
        )  # fmt: skip
        self.quality_changes = Counter(
            "visavis_quality_changes", "Steps on the ladder of quality, by what caused them.",
            ["reason"], registry=r,
        )  # fmt: skip
        self.worker_busy = Gauge(
            "visavis_worker_busy_ratio", "Share of the render worker's time in use.", registry=r
        )
        self.worker_headroom = Gauge(
            "visavis_headroom_ratio", "Share of the scarcest budget that is free.", registry=r
        )
        self.frame_cost = Gauge(
            "visavis_frame_cost_seconds", "Cost of one drawn frame, mean and 95th percentile.",
            ["figure"], registry=r,
        )  # fmt: skip
        self.worker_restarts = Counter(
            "visavis_worker_restarts", "Render threads that were replaced.", registry=r
        )
        self.loop_busy = Gauge(
            "visavis_loop_busy_ratio", "Share of its time that the event loop computes.", registry=r
        )
        self.abuse = Counter(
            "visavis_abuse", "Refused bytes from outside, by what was wrong.", ["kind"], registry=r
        )
        self.received = Histogram(
            "visavis_receiver_seconds", "What receivers report once a second, by figure.",
            ["figure"], buckets=LATENCY_BUCKETS_S, registry=r,
        )  # fmt: skip
        self.receiver_freezes = Counter(
            "visavis_receiver_freezes", "Times a receiver's picture stood still.", registry=r
        )
        self.portraits = Gauge("visavis_portraits_uploaded", "Uploads in memory.", registry=r)
        self.loop_lag = Histogram(
            "visavis_loop_lag_seconds", "How late the event loop wakes a timer.",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5), registry=r,
        )  # fmt: skip

    def text(self) -> bytes:
        """The exposition format, UTF-8."""
        return generate_latest(self.registry)
