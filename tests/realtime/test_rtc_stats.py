"""The meters behind `RtcPeer.stats()`, in virtual time."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.rtc.stats import FreezeMeter, Meter, PeerStats, RateMeter, Spread

pytestmark = pytest.mark.unit


def test_percentiles_of_the_last_values() -> None:
    meter = Meter(100)
    assert meter.spread() == Spread(0.0, 0.0, 0.0)
    for k in range(300):
        meter.add(float(k))
    spread = meter.spread()
    assert 248 <= spread.p50_ms <= 251
    assert spread.p50_ms < spread.p95_ms < spread.p99_ms <= 299


def test_a_rate_forgets_after_a_second() -> None:
    rate = RateMeter()
    for k in range(50):
        rate.add(1000, 10 + k * 0.020)
    assert rate.bps(10.98) == 400_000
    assert rate.bps(11.5) < 250_000
    assert rate.bps(13.0) == 0


def test_freezes_are_counted_as_browsers_count_them() -> None:
    meter = FreezeMeter()
    now = 5.0
    for _ in range(30):
        meter.on_frame(now)
        now += 0.040
    # A frame in four is no freeze, a pause of 150 ms and more is.
    meter.on_frame(now + 0.080)
    assert meter.count == 0
    meter.on_frame(now + 0.080 + 0.300)
    assert meter.count == 1
    assert meter.total_ms == pytest.approx(300)


@given(st.lists(st.floats(0.001, 0.1), max_size=200), st.floats(0.5, 20))
def test_one_long_pause_is_one_freeze(intervals: list[float], pause: float) -> None:
    meter = FreezeMeter()
    now = 0.0
    for interval in [0.04, 0.04, *intervals]:
        meter.on_frame(now)
        now += interval
    before = meter.count
    meter.on_frame(now + pause)
    assert meter.count == before + 1
    assert len(meter._intervals) <= 30


def test_a_snapshot_of_nothing_is_all_zeros() -> None:
    stats = PeerStats()
    assert dataclasses.asdict(stats)["encode"] == {"p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0}
    assert stats.round_trip_ms is None
    assert stats.feedback == "none"
