"""Who is let in: measured costs against budgets, addresses against their rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.admission import RENDER_BUDGET, Demand, admit, headroom
from realtime.limits import MAX_ADDRESSES, AddressRates, address_key, client_address
from realtime.load import BusyMeter, Cost, WorkerLoad
from realtime.loop_watch import LagAlarm
from tests.fakes import FakeClock

pytestmark = pytest.mark.unit


def load(frame_ms: float = 0.0, webcam_ms: float = 0.0) -> WorkerLoad:
    return WorkerLoad(0.0, frame_ms * 1e6, frame_ms * 1e6, webcam_ms * 1e6, 1, 0)


def places(frame_ms: float, webcam_ms: float = 0.0, **more: float) -> int:
    """How many sessions of one kind are let in, one after another."""
    count = 0
    while count < 200 and admit(Demand(count, count, load(frame_ms, webcam_ms), **more)).admitted:  # type: ignore[arg-type]
        count += 1
    return count


def test_one_session_is_always_possible_on_an_idle_server() -> None:
    assert admit(Demand(0, 0, load(1000.0), encode_ns=1e9, loop_busy=1.0)).admitted


@pytest.mark.parametrize(("frame_ms", "expected"), [(25.0, 1), (15.0, 2), (5.0, 6), (0.5, 68)])
def test_as_many_as_the_measured_cost_of_a_frame_allows(frame_ms: float, expected: int) -> None:
    assert places(frame_ms) == expected
    assert expected == 1 or expected * 25 * frame_ms / 1000 <= RENDER_BUDGET


def test_reading_webcams_counts_too() -> None:
    assert places(5.0, webcam_ms=8.0) < places(5.0)
    quiet = Demand(3, 0, load(5.0, 8.0))
    busy = Demand(3, 3, load(5.0, 8.0))
    assert headroom(busy) < headroom(quiet)


def test_encoders_and_the_loop_can_be_short_as_well() -> None:
    assert admit(Demand(3, 0, load(1.0), encode_ns=10e6, encode_threads=1)).scarce == "encode"
    assert admit(Demand(3, 0, load(1.0), encode_ns=10e6, encode_threads=2)).admitted
    assert admit(Demand(2, 0, load(1.0), loop_busy=0.55)).scarce == "loop"
    assert admit(Demand(2, 0, load(1.0), loop_busy=0.3)).admitted


@given(
    sessions=st.integers(0, 50),
    frame_ms=st.floats(0, 100),
    webcam_ms=st.floats(0, 50),
    loop=st.floats(0, 1),
)
def test_a_dearer_world_never_lets_more_in(
    sessions: int, frame_ms: float, webcam_ms: float, loop: float
) -> None:
    here = Demand(sessions, sessions, load(frame_ms, webcam_ms), loop_busy=loop)
    dearer = Demand(sessions, sessions, load(frame_ms * 1.5, webcam_ms), loop_busy=loop)
    assert admit(here).admitted >= admit(dearer).admitted
    assert 0.0 <= headroom(here) <= 1.0
    assert sessions == 0 or admit(here).admitted == (not admit(here).scarce)


# --- load ---------------------------------------------------------------------------------


def test_a_cost_follows_within_a_second_and_remembers_its_tail() -> None:
    cost = Cost()
    for _ in range(100):
        cost.add(10)
    assert cost.mean_ns == pytest.approx(10)
    for _ in range(50):
        cost.add(20)
    assert 19 < cost.mean_ns <= 20
    for _ in range(10):
        cost.add(500)
    assert cost.p95_ns == 500


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=60))
def test_busy_is_the_share_of_the_last_second(plan: list[tuple[int, int]]) -> None:
    clock = FakeClock(0)
    meter = BusyMeter(clock)
    worked: list[tuple[int, int]] = []
    for idle_ms, work_ms in plan:
        start = clock.advance(idle_ms)
        end = clock.advance(work_ms)
        meter.add(start, end)
        worked.append((start, end))
    now = clock()
    width = 100_000_000
    window = 1_000_000_000 - width + now % width
    exact = sum(max(0, end - max(start, now - window)) for start, end in worked)
    assert meter.fraction() == pytest.approx(min(1.0, exact / window), abs=1e-6)


def test_a_loop_that_is_blocked_once_or_often_late_is_told_now_and_then() -> None:
    alarm = LagAlarm()
    told = [alarm.note(0.004, k / 10) for k in range(300)]
    assert not any(told)
    assert alarm.note(0.080, 30.0) == "the event loop was blocked for 80 ms"
    assert not any(alarm.note(0.080, 30.0 + k / 10) for k in range(1, 99))
    # Every fifth wake-up is 15 ms late: no single one is an alarm, together they are.
    alarm = LagAlarm()
    told = [alarm.note(0.015 if k % 5 == 0 else 0.001, k / 10) for k in range(400)]
    times = [k for k, text in enumerate(told) if text]
    assert times[0] == 99
    assert len(times) in (3, 4)
    assert "20 times in 100" in told[99]


# --- addresses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("x" * 999, "x" * 64),
    ],
)
def test_an_ipv6_household_is_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


def test_forwarded_addresses_are_believed_only_from_proxies_and_from_the_end() -> None:
    proxies = {"10.0.0.1", "10.0.0.2"}
    assert client_address("198.51.100.1", "203.0.113.9", proxies) == "198.51.100.1"
    assert client_address("198.51.100.1", "203.0.113.9", set()) == "198.51.100.1"
    assert client_address("10.0.0.1", "203.0.113.9", proxies) == "203.0.113.9"
    assert client_address("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.0.0.2", proxies) == "203.0.113.9"
    assert client_address("10.0.0.1", "nonsense", proxies) == "10.0.0.1"
    assert client_address("10.0.0.1", "", proxies) == "10.0.0.1"


@given(st.text(max_size=400))
def test_no_header_makes_a_client_of_what_is_no_address(forwarded: str) -> None:
    client = client_address("10.0.0.1", forwarded, {"10.0.0.1"})
    assert client == "10.0.0.1" or len(address_key(client)) <= 45


def test_every_address_has_its_own_rate_in_bounded_memory() -> None:
    clock = FakeClock()
    rates = AddressRates(10.0, 5, clock.monotonic)
    assert [rates.allow("192.0.2.1") for _ in range(7)] == [True] * 5 + [False] * 2
    assert rates.allow("192.0.2.2")
    clock.advance(100)
    assert [rates.allow("192.0.2.1") for _ in range(2)] == [True, False]
    for k in range(MAX_ADDRESSES + 500):
        rates.allow(f"2001:db8:{k // 65536:x}:{k % 65536:x}::1")
    assert len(rates) == MAX_ADDRESSES
    assert all(AddressRates(0.0, 1, clock.monotonic).allow("192.0.2.1") for _ in range(100))
