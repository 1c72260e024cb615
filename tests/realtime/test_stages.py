"""Percentiles of the last durations, in fixed memory."""

from __future__ import annotations

import pytest

from realtime.protocol import StageMs
from realtime.stages import Percentiles, StageRecorder

pytestmark = pytest.mark.unit


def test_percentiles_cover_the_last_durations_in_fixed_memory() -> None:
    stage = Percentiles(capacity=100)
    assert stage.summary() == StageMs(0.0, 0.0, 0.0)
    for i in range(1000):
        stage.add(i * 1_000_000)
    assert len(stage) == 100
    summary = stage.summary()
    assert summary.p50 == pytest.approx(949.5)
    assert summary.p95 == pytest.approx(994.05, abs=0.01)
    assert 997 < summary.p99 <= 999
    with pytest.raises(ValueError, match="capacity"):
        Percentiles(capacity=0)


def test_stages_are_recorded_by_name_and_bounded() -> None:
    recorder = StageRecorder(["draw"])
    assert recorder.summary() == {}
    recorder.add_spans({"draw": 2_000_000, "compose": 1_000_000})
    recorder.add("draw", 4_000_000)
    assert recorder.summary()["draw"].p50 == 3.0
    assert recorder.summary()["compose"].p50 == 1.0
    for i in range(30):
        recorder.add(f"stage {i}", 1)
    with pytest.raises(ValueError, match="too many stages"):
        recorder.add("one more", 1)
