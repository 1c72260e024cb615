"""The bandwidth estimate in a closed loop with a bottleneck, in virtual time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.rtc.bitrate import BitrateController, path_ceiling_bps
from realtime.rtc.estimator import BandwidthEstimator
from realtime.rtc.pacer import PacketPacer
from realtime.rtc.transport_cc import (
    ArrivalLog,
    SendHistory,
    pack_feedback,
    parse_feedback,
)

pytestmark = pytest.mark.unit

CEILING = 2_000_000
DELAY_S = 0.020
BUFFER_S = 1.0
STEP_S = 0.002


@dataclass
class Loop:
    """25 fps video of `target` bit/s -> pacer -> link of `capacity` with a deep queue -> feedback.

    The far clock is 5000 s ahead, and every packet takes `DELAY_S` and some jitter besides.
    """

    capacity: float = 10e6
    loss: float = 0.0
    jitter_s: float = 0.0
    use: float = 1.0
    their_stall_s: float = 0.0
    """Every 700 ms the far program stands still so long, and reads everything at once then."""
    our_stall_s: float = 0.0
    in_order: bool = False
    """Whether jitter keeps the order of packets, as that of most paths does."""
    seed: int = 1
    now: float = 10.0
    queue_s: float = 0.0
    worst_queue_s: float = 0.0
    changes: int = 0
    targets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.pacer: PacketPacer[int] = PacketPacer(CEILING)
        self.history, self.log = SendHistory(), ArrivalLog()
        self.estimator = BandwidthEstimator(path_ceiling_bps(CEILING))
        self.control = BitrateController(CEILING)
        self._arrivals: list[tuple[float, int]] = []
        self._latest = 0.0
        self._reports: list[tuple[float, bytes]] = []
        self._frame_at = self._report_at = self.now

    def run(self, seconds: float) -> None:
        self.worst_queue_s = 0.0
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_S
            self.queue_s = max(0.0, self.queue_s - STEP_S)
            if self.now % 0.7 < self.our_stall_s:
                self._read()
                continue
            if self.now >= self._frame_at:
                # What became late while the program stood still is held, never sent in a heap.
                self._frame_at = max(self._frame_at, self.now - 0.040) + 0.040
                size = self.use * self.control.target / 8 / 25
                for _ in range(max(1, round(size / 1100))):
                    self.pacer.push_video(1100, 1100)
            for size in self.pacer.pop(self.now):
                self._send(size)
            self._read()
            self._listen()

    def _send(self, size: int) -> None:
        sequence = self.history.add(size, self.now)
        if self.rng.random() < self.loss or self.queue_s > BUFFER_S:
            return
        self.queue_s += size * 8 / self.capacity
        self.worst_queue_s = max(self.worst_queue_s, self.queue_s)
        at = self.now + DELAY_S + self.queue_s + self.rng.random() * self.jitter_s
        self._latest = max(self._latest, at) if self.in_order else at
        self._arrivals.append((self._latest, sequence))

    def _read(self) -> None:
        """The far side takes what has arrived, and reports."""
        if self.now % 0.7 < self.their_stall_s:
            return
        stalled = self.their_stall_s and self.now % 0.7 < self.their_stall_s + 2 * STEP_S
        due = sorted(a for a in self._arrivals if a[0] <= self.now)
        self._arrivals = [a for a in self._arrivals if a[0] > self.now]
        for k, (at, sequence) in enumerate(due):
            self.log.add(sequence, 5000 + (self.now + k * 0.0002 if stalled else at))
        if self.now >= self._report_at:
            self._report_at += 0.050
            for feedback in self.log.build(5000 + self.now):
                self._reports.append((self.now + DELAY_S, pack_feedback(feedback)))

    def _listen(self) -> None:
        while self._reports and self._reports[0][0] <= self.now:
            results = self.history.on_feedback(parse_feedback(self._reports.pop(0)[1]))
            estimate = self.estimator.on_results(results, self.now, 2 * DELAY_S)
            if self.control.on_estimate(estimate, self.now):
                self.changes += 1
                self.pacer.set_target(self.control.target)
                self.targets.append(self.control.target)


def test_a_wide_path_leaves_the_rate_at_the_ceiling() -> None:
    loop = Loop()
    loop.run(20)
    assert loop.control.target == CEILING
    assert loop.changes == 0
    assert loop.estimator.delay_overuses == 0


@pytest.mark.parametrize("jitter_s", [0.0, 0.010])
def test_a_narrow_path_is_found_by_delay_without_loss(jitter_s: float) -> None:
    loop = Loop(capacity=800_000, jitter_s=jitter_s)
    loop.run(6)
    loop.run(10)
    assert 350_000 <= loop.control.target <= 800_000
    # A deep queue on the way stays nearly empty: that is the latency.
    assert loop.worst_queue_s < 0.25


def test_a_drop_is_followed_within_two_seconds_and_the_return_climbs_back() -> None:
    loop = Loop()
    loop.run(5)
    loop.capacity = 600_000
    loop.run(2)
    assert loop.control.target <= 600_000
    loop.run(3)
    loop.run(5)
    assert loop.worst_queue_s < 0.25
    loop.capacity = 10e6
    # Without probing: four times as much in ten seconds.
    loop.run(10)
    assert loop.control.target == CEILING
    assert loop.worst_queue_s < 0.05
    # At most one change a second, in place each.
    assert loop.changes <= 25


@pytest.mark.parametrize("stall_s", [0.030, 0.080, 0.150, 0.400])
@pytest.mark.parametrize("whose", ["ours", "theirs", "both"])
def test_a_program_that_stands_still_is_no_full_path(stall_s: float, whose: str) -> None:
    """Neither end's starved loop lowers the rate, whatever its time stamps say."""
    loop = Loop()
    loop.run(3)
    loop.our_stall_s = stall_s if whose != "theirs" else 0.0
    loop.their_stall_s = stall_s if whose != "ours" else 0.0
    loop.run(15)
    # Only both together, standing still in step for more than half of all time, may cost some.
    least = 0.5 if (whose, stall_s) == ("both", 0.400) else 0.9
    assert min([CEILING, *loop.targets]) >= least * CEILING
    loop.our_stall_s = loop.their_stall_s = 0.0
    loop.run(5)
    assert loop.control.target == CEILING


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_narrow_path_is_found_by_starved_programs_too(whose: str) -> None:
    loop = Loop(capacity=800_000)
    loop.our_stall_s = 0.06 if whose == "ours" else 0.0
    loop.their_stall_s = 0.06 if whose == "theirs" else 0.0
    loop.run(8)
    loop.run(10)
    assert 250_000 <= loop.control.target <= 800_000
    assert loop.worst_queue_s < 0.35


def test_random_loss_of_a_radio_path_costs_no_rate() -> None:
    loop = Loop(loss=0.03)
    loop.run(20)
    assert loop.control.target == CEILING


@pytest.mark.parametrize("jitter_s", [0.030, 0.060])
@pytest.mark.parametrize("use", [1.0, 0.2, 0.1])
def test_jitter_and_loss_of_a_radio_path_are_no_queue(use: float, jitter_s: float) -> None:
    """Least of all for a sender that uses little: it could not show that the path takes more."""
    loop = Loop(loss=0.03, jitter_s=jitter_s, use=use, in_order=True)
    loop.run(60)
    assert min(loop.targets, default=CEILING) >= 0.9 * CEILING


def test_the_rate_comes_back_on_a_path_that_goes_on_losing() -> None:
    loop = Loop(loss=0.03, jitter_s=0.02, capacity=600_000, in_order=True)
    loop.run(8)
    assert loop.control.target < 600_000
    loop.capacity = 10e6
    loop.run(30)
    assert loop.control.target >= 0.75 * CEILING


def test_heavy_loss_lowers_the_rate() -> None:
    loop = Loop(loss=0.25)
    loop.run(1)
    assert loop.estimator.loss == pytest.approx(0.25, abs=0.1)
    loop.run(10)
    assert loop.control.target < CEILING // 2


def test_an_estimate_that_is_not_used_is_not_raised() -> None:
    loop = Loop(capacity=1_200_000)
    loop.run(8)
    low = loop.estimator.bps
    loop.capacity, loop.use = 10e6, 0.2
    loop.run(10)
    assert loop.estimator.bps <= low * 1.3
    loop.use = 1.0
    loop.run(30)
    assert loop.control.target == CEILING


def test_a_ceiling_is_kept_and_what_the_path_takes_is_remembered() -> None:
    loop = Loop()
    loop.run(2)
    loop.control.set_ceiling(300_000)
    loop.run(10)
    assert loop.control.target == 300_000
    loop.control.set_ceiling(CEILING)
    loop.run(1)
    assert loop.control.target == CEILING
    loop.estimator.raise_ceiling(path_ceiling_bps(2 * CEILING))
    loop.control.set_ceiling(2 * CEILING)
    loop.run(12)
    assert loop.control.target == 2 * CEILING


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(2e5, 5e6), st.floats(0, 0.15), st.floats(0, 0.03)),
        min_size=1, max_size=4,
    ),
    st.integers(0, 1000),
)  # fmt: skip
def test_after_any_weather_the_queue_empties_and_the_rate_returns(
    weather: list[tuple[float, float, float]], seed: int
) -> None:
    loop = Loop(seed=seed)
    for loop.capacity, loop.loss, loop.jitter_s in weather:
        loop.run(2)
    loop.capacity, loop.loss, loop.jitter_s = 10e6, 0.0, 0.0
    loop.run(2)
    loop.run(1)
    assert loop.worst_queue_s < 0.015
    loop.run(40)
    assert loop.control.target == CEILING
