"""Prometheus metrics: names, units, labels, isolation."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from realtime.metrics import Metrics
from realtime.rtc import PeerStats
from realtime.tally import Tally

pytestmark = pytest.mark.unit

UNITLESS = {
    "visavis_sessions", "visavis_sessions_ended", "visavis_sessions_refused",
    "visavis_engine_ready", "visavis_frames", "visavis_key_frames", "visavis_control_messages",
    "visavis_portraits_uploaded", "visavis_sessions_parked", "visavis_sessions_resumed",
    "visavis_quality_level", "visavis_quality_changes", "visavis_worker_restarts", "visavis_abuse",
    "visavis_receiver_freezes", "visavis_key_frame_requests",
}  # fmt: skip


def test_names_carry_units_and_labels_are_few() -> None:
    metrics = Metrics()
    metrics.frames.labels("sent").inc()
    metrics.stage.labels("draw").observe(0.01)
    families = list(text_string_to_metric_families(metrics.text().decode()))
    ours = [
        family
        for family in families
        if family.name.startswith("visavis_") and not family.name.endswith("_created")
    ]
    assert len(ours) >= 15
    for family in ours:
        assert family.documentation.endswith(".")
        named = family.name.endswith(("_seconds", "_ratio", "_bytes", "_packets"))
        assert family.name in UNITLESS or named, family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= {"reason", "result", "stage", "figure", "kind", "resource"}
    assert any(family.name == "process_resident_memory_bytes" for family in families)


def test_two_servers_in_one_process_do_not_share_counts() -> None:
    one, two = Metrics(), Metrics()
    one.frames.labels("sent").inc(3)
    two.frames.labels("sent").inc()
    assert b'visavis_frames_total{result="sent"} 1.0' in two.text()


def test_what_was_lost_and_won_back_is_summed_over_sessions_and_peers() -> None:
    metrics = Metrics()
    one, two = Tally(metrics), Tally(metrics)
    one.on_peer(PeerStats(concealed_ms=500.0, recovered_ms=20.0, nacks_sent=3, plis_received=1))
    one.on_peer(PeerStats(concealed_ms=700.0, recovered_ms=20.0, nacks_sent=5, plis_received=1))
    two.on_peer(PeerStats(concealed_ms=100.0, retransmitted=4, copies_sent=9, audio_lost=2))
    one.new_peer()
    one.on_peer(PeerStats(concealed_ms=50.0, recovered_packets=2, plis_sent=1))
    told = metrics.text().decode()
    for line in (
        "visavis_audio_concealed_seconds_total 0.85",
        "visavis_audio_recovered_seconds_total 0.02",
        'visavis_repair_packets_total{kind="asked"} 5.0',
        'visavis_repair_packets_total{kind="recovered"} 2.0',
        'visavis_repair_packets_total{kind="answered"} 4.0',
        'visavis_repair_packets_total{kind="unasked"} 9.0',
        'visavis_lost_packets_total{kind="audio"} 2.0',
        'visavis_key_frame_requests_total{kind="sent"} 1.0',
        'visavis_key_frame_requests_total{kind="received"} 1.0',
    ):
        assert line in told.splitlines(), line
