"""Prometheus metrics: names, units, labels, isolation."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from realtime.metrics import Metrics

pytestmark = pytest.mark.unit

UNITLESS = {
    "visavis_sessions", "visavis_sessions_ended", "visavis_sessions_refused",
    "visavis_engine_ready", "visavis_frames", "visavis_key_frames", "visavis_control_messages",
    "visavis_portraits_uploaded", "visavis_sessions_parked", "visavis_sessions_resumed",
    "visavis_quality_level", "visavis_quality_changes", "visavis_worker_restarts", "visavis_abuse",
    "visavis_receiver_freezes",
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
        named = family.name.endswith(("_seconds", "_ratio", "_bytes"))
        assert family.name in UNITLESS or named, family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= {"reason", "result", "stage", "figure", "kind", "resource"}
    assert any(family.name == "process_resident_memory_bytes" for family in families)


def test_two_servers_in_one_process_do_not_share_counts() -> None:
    one, two = Metrics(), Metrics()
    one.frames.labels("sent").inc(3)
    two.frames.labels("sent").inc()
    assert b'visavis_frames_total{result="sent"} 1.0' in two.text()
