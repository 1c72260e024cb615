"""The ladder of quality: its order, its patience, and that it never swings. Virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.degrade import (
    MAX_UP_NS,
    ROOM,
    SIZES,
    Conditions,
    Degrader,
    Reason,
    ladder,
)

pytestmark = pytest.mark.unit

S = 1_000_000_000
STEP_NS = S // 4
Path = Callable[[float], int | None]


@dataclass
class Machine:
    """One worker and one path, simulated: frames that do not fit into its time come late."""

    cost_ms: Callable[[float], float] = lambda t: 10.0
    path_bps: Path = lambda t: None
    size: int = 512
    others: Callable[[float], float] = lambda t: 0.0
    """Share of the worker's time that other sessions take."""
    now: int = 0
    degrader: Degrader = field(init=False)
    history: list[tuple[float, int, Reason]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.degrader = Degrader(self.size, self.now)

    def run(self, seconds: float) -> None:
        """Go on for `seconds`, a quarter second at a time."""
        for _ in range(round(seconds * 4)):
            self.now += STEP_NS
            t = self.now / S
            rung = self.degrader.rung
            cost_ns, others = self.cost_ms(t) * 1e6, self.others(t)
            due = rung.fps / 4
            fits = max(0.0, (1.0 - others) * STEP_NS / cost_ns)
            late = max(0.0, due - fits)
            busy = min(1.0, others + (due - late) * cost_ns / STEP_NS)
            path = self.path_bps(t)
            lost = 0.0 if path is None else max(0.0, 1.0 - path / max(1, rung.need_bps))
            told = Conditions(round(due), round(late), busy, cost_ns, path, lost)
            if self.degrader.update(told, self.now):
                self.history.append((t, self.degrader.level, self.degrader.reason))

    @property
    def level(self) -> int:
        return self.degrader.level

    @property
    def name(self) -> str:
        return self.degrader.rung.name


@pytest.mark.parametrize("size", SIZES)
def test_the_ladder_costs_less_with_every_rung_in_the_agreed_order(size: int) -> None:
    rungs = ladder(size)
    assert (rungs[0].every, rungs[0].size, rungs[0].ceiling_bps) == (1, size, None)
    assert [rung.every for rung in rungs[:3]] == [1, 2, 3]
    assert {rung.size for rung in rungs[:3]} == {size}, "rate falls before size"
    sizes = [rung.size for rung in rungs]
    assert sizes == sorted(sizes, reverse=True)
    assert rungs[-2].ceiling_bps is not None, "the encoder's target comes after the size"
    assert rungs[-1].every == 0, "frozen comes last"
    assert all(high.need_bps > low.need_bps for high, low in pairwise(rungs))


def test_a_machine_with_time_stays_at_full_quality() -> None:
    machine = Machine(cost_ms=lambda t: 30.0)
    machine.run(120)
    assert machine.history == []
    assert all(machine.degrader.draws(k) for k in range(50))


def test_a_starved_machine_lowers_the_rate_first_and_returns_when_it_is_free_again() -> None:
    machine = Machine(cost_ms=lambda t: 60.0 if 10 <= t <= 40 else 10.0)
    machine.run(10)
    assert machine.level == 0
    machine.run(3)
    assert (machine.name, machine.degrader.reason) == ("half rate", "machine")
    assert [machine.degrader.draws(k) for k in range(4)] == [True, False, True, False]
    machine.run(27)
    assert machine.name == "half rate", "60 ms fit 12.5 pictures a second: no lower, no higher"
    machine.run(15)
    assert (machine.level, machine.degrader.reason) == (0, "none")
    assert len(machine.history) == 2


def test_one_late_frame_changes_nothing() -> None:
    degrader = Degrader(512, 0)
    for k in range(1, 400):
        late = 1 if k % 20 == 0 else 0
        assert not degrader.update(Conditions(6, late, 0.7, 28e6), k * STEP_NS)
    assert degrader.level == 0


def test_only_a_machine_that_can_draw_nothing_freezes_the_picture() -> None:
    slow = Machine(cost_ms=lambda t: 200.0)
    slow.run(60)
    assert slow.name == "thrifty", "5 late pictures a second are better than none"
    stuck = Machine(cost_ms=lambda t: 5000.0 if t <= 30 else 10.0)
    stuck.run(30)
    assert stuck.name == "frozen"
    assert not any(stuck.degrader.draws(k) for k in range(100))
    stuck.run(60)
    assert stuck.level == 0, "back to full quality by itself"


def test_a_narrow_path_walks_down_and_back_up_rung_by_rung() -> None:
    machine = Machine(path_bps=lambda t: 100_000 if 10 <= t <= 40 else 2_000_000)
    machine.run(14)
    assert machine.degrader.reason == "network"
    machine.run(26)
    assert machine.name == "256 px"
    machine.run(60)
    assert machine.level == 0
    levels = [level for _, level, _ in machine.history]
    assert all(abs(a - b) == 1 for a, b in pairwise([0, *levels])), "one rung at a time"
    assert sorted(levels[:4]) == levels[:4]
    ups = [t for t, level, _ in machine.history if t > 40]
    assert all(b - a >= 4 for a, b in pairwise(ups)), "up is patient"


def test_a_path_for_nothing_but_the_voice_freezes() -> None:
    machine = Machine(path_bps=lambda t: 20_000)
    machine.run(5)
    assert machine.name == "frozen"


def test_an_estimate_that_collapses_without_loss_does_not_freeze_and_is_tried_again() -> None:
    degrader, now = Degrader(512, 0), 0
    levels = []
    for k in range(4 * 90):
        now += STEP_NS
        path = 0 if 20 <= k < 40 else min(60_000 + 1000 * k, 2 * degrader.rung.need_bps)
        degrader.update(Conditions(2, 0, 0.1, 8e6, path if k >= 20 else None), now)
        levels.append(degrader.rung.name)
    assert "frozen" not in levels
    assert "thrifty" in levels
    assert levels[-1] == "full", "in a minute or so, without any promise of the estimate"


@given(
    cost_ms=st.floats(2, 400),
    path=st.none() | st.integers(10_000, 3_000_000),
    others=st.floats(0, 0.95),
    size=st.sampled_from(SIZES),
)
@settings(max_examples=30, deadline=None)
def test_constant_conditions_settle(
    cost_ms: float, path: int | None, others: float, size: int
) -> None:
    machine = Machine(lambda t: cost_ms, lambda t: path, size, lambda t: others)
    machine.run(900)
    late = [t for t, _, _ in machine.history if t > 300]
    # Once settled, a try upwards costs at most one change up and one down per longest wait.
    assert len(late) <= 2 * (600 * S // MAX_UP_NS + 1)
    if path is not None and machine.degrader.rung.every:
        below = machine.degrader.rungs[machine.level + 1]
        assert path >= below.need_bps, "at most one rung above what the path carries"


@given(
    jitter=st.lists(st.floats(0.9, 1.1), min_size=16, max_size=16),
    level=st.sampled_from([60_000, 110_000, 200_000, 300_000, 400_000]),
)
@settings(max_examples=25, deadline=None)
def test_an_estimate_that_jitters_within_the_hysteresis_does_not_swing(
    jitter: list[float], level: int
) -> None:
    """±10 % lie within the room of a quarter that a step up asks for."""
    machine = Machine(path_bps=lambda t: int(level * jitter[int(t * 4) % 16]))
    machine.run(120)
    before = len(machine.history)
    machine.run(300)
    # Two tries that had to be taken back, each later than twice the one before.
    assert len(machine.history) - before <= 4
    assert ROOM > 1.1 / 0.9


def test_an_estimate_that_grows_only_with_what_is_sent_does_not_trap_a_session() -> None:
    machine = Machine()
    machine.path_bps = lambda t: 60_000 if t <= 20 else int(1.1 * machine.degrader.rung.need_bps)
    machine.run(20)
    assert machine.name == "thrifty"
    machine.run(180)
    assert machine.level == 0


@given(st.lists(st.tuples(st.floats(2, 300), st.integers(20_000, 2_000_000)), max_size=8))
@settings(max_examples=25, deadline=None)
def test_whatever_happened_full_quality_returns(script: list[tuple[float, int]]) -> None:
    length = len(script) * 15

    def part(t: float) -> tuple[float, int]:
        return script[int(t // 15)] if t < length else (8.0, 4_000_000)

    machine = Machine(lambda t: part(t)[0], lambda t: part(t)[1])
    machine.run(length)
    machine.run(20 + 7 * MAX_UP_NS / S)
    assert (machine.level, machine.degrader.reason) == (0, "none")
