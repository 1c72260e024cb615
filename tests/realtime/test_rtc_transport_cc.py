"""Transport-wide feedback: byte-exact wire format, and both sides' bookkeeping."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.rtc.transport_cc import (
    MAX_STATUSES,
    ArrivalLog,
    Feedback,
    FeedbackError,
    SendHistory,
    pack_feedback,
    parse_feedback,
)

pytestmark = pytest.mark.unit

MS = 0.001


def test_one_received_one_lost_one_late_is_these_bytes() -> None:
    # Worked out by hand from the draft: base 0x0102, four packets, reference 3 * 64 ms.
    feedback = Feedback(0x0102, 4, 3, 9, (1000, None, 65_000, 64_500))
    fci = bytes.fromhex("0102 0004 000003 09  d280  04 0100 fffe".replace(" ", ""))
    assert pack_feedback(feedback) == fci
    assert parse_feedback(fci) == feedback


def test_a_run_and_a_one_bit_vector_are_read() -> None:
    run = bytes.fromhex("ffff 0003 000000 00  2003  00 04 04".replace(" ", ""))
    assert parse_feedback(run).deltas_us == (0, 1000, 2000)
    vector = bytes.fromhex("0000 0003 000000 00  a800  04 08".replace(" ", ""))
    assert parse_feedback(vector).deltas_us == (1000, None, 3000)


@pytest.mark.parametrize(
    "fci",
    [
        "",
        "000000010000",
        "0000 0000 000000 00",
        "0000 0001 000000 00",
        "0000 0001 000000 00 6001",
        "0000 0001 000000 00 2001",
        "0000 0001 000000 00 0000",
        "0000 ffff 000000 00 1fff 1fff 1fff 1fff 1fff 1fff 1fff 1fff",
    ],
)
def test_malformed_feedback_is_named(fci: str) -> None:
    with pytest.raises(FeedbackError):
        parse_feedback(bytes.fromhex(fci.replace(" ", "")))


@given(st.binary(max_size=200))
def test_random_bytes_are_feedback_or_a_feedback_error(data: bytes) -> None:
    try:
        feedback = parse_feedback(data)
    except FeedbackError:
        return
    assert len(feedback.deltas_us) == feedback.count <= MAX_STATUSES


@given(
    st.lists(st.one_of(st.none(), st.integers(-120, 40_000)), min_size=1, max_size=300),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFF),
)
def test_what_is_packed_is_parsed(steps: list[int | None], base: int, reference: int) -> None:
    at, deltas = 0, []
    for step in steps:
        at += 0 if step is None else step // 250 * 250
        deltas.append(None if step is None else at)
    if not any(step is not None for step in steps):
        return
    feedback = Feedback(base, len(deltas), reference, 7, tuple(deltas))
    assert parse_feedback(pack_feedback(feedback)) == feedback


def exchange(seed: int, count: int, start: int) -> tuple[dict[int, float], dict[int, float]]:
    """Send `count` packets through loss, jitter and duplication; (true, reported) arrivals."""
    rng = random.Random(seed)
    history, log = SendHistory(), ArrivalLog()
    history._next = start
    events: list[tuple[float, int, int]] = []
    for k in range(count):
        at = 50.0 + k * 4 * MS
        sequence = history.add(1000, at)
        if rng.random() > 0.1:
            for _ in range(1 + (rng.random() < 0.05)):
                events.append((at + 0.030 + rng.random() * 0.030, k, sequence))
    true: dict[int, float] = {}
    reported: dict[int, float] = {}
    report_at = 50.05
    for at, k, sequence in [*sorted(events), (60.0 + count * 4 * MS, -1, 0)]:
        while report_at < at and report_at < 59.0 + count * 4 * MS:
            for feedback in log.build(report_at):
                received = history.on_feedback(parse_feedback(pack_feedback(feedback)))
                for result in received:
                    if result.arrival_s is not None:
                        number = round((result.sent_s - 50.0) / (4 * MS))
                        assert number not in reported
                        reported[number] = result.arrival_s
            report_at += 0.050
        if k >= 0:
            true.setdefault(k, at)
            log.add(sequence, at)
    assert len(log._arrivals) <= 4096
    return true, reported


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 65_500, 3 * 65_536 - 40]))
def test_every_arrival_is_reported_once_to_a_quarter_millisecond(seed: int, start: int) -> None:
    true, reported = exchange(seed, 400, start)
    assert reported.keys() == true.keys()
    # A tick of rounding per packet of a report can add up to no more than one tick each way.
    assert all(abs(reported[k] - true[k]) <= 0.0003 for k in true)


def test_a_report_spans_the_reference_time_wrap() -> None:
    history = SendHistory()
    first, second = history.add(10, 1.0), history.add(10, 1.1)
    wrap = 1 << 24
    a = history.on_feedback(Feedback(first, 1, wrap - 1, 0, (0,)))[0].arrival_s
    b = history.on_feedback(Feedback(second, 1, 1, 1, (0,)))[0].arrival_s
    assert a is not None
    assert b is not None
    assert b - a == pytest.approx(2 * 0.064)


def test_memory_stays_bounded_when_nobody_answers_and_when_numbers_jump() -> None:
    history, log = SendHistory(), ArrivalLog()
    for k in range(20_000):
        history.add(100, k * MS)
        log.add(k & 0xFFFF, k * MS / 100)
    assert len(history._sent) <= 8192
    assert len(log._arrivals) <= 4096
    log.add(40_000, 1.0)
    reports = log.build(1.0)
    assert [r.base for r in reports] == [40_000]
    assert not log.pending
    assert log.build(1.1) == []


def test_a_long_silence_between_two_packets_makes_two_reports() -> None:
    log = ArrivalLog()
    log.add(1, 10.0)
    log.add(2, 20.0)
    reports = log.build(20.0)
    assert [(r.base, r.count) for r in reports] == [(1, 1), (2, 1)]
    assert [r.number for r in reports] == [0, 1]
