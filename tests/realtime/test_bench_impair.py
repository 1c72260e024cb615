"""The bad network: byte-exact in virtual time, its statistics, and its place under WebRTC."""

from __future__ import annotations

import asyncio
import itertools
import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.bench.impair import MAX_DATAGRAMS, QUEUE_S, REORDER_S, Impairment, Link
from realtime.bench.path import PathLoop, UdpPath, use_path
from realtime.bench.transit import TransitLog

pytestmark = pytest.mark.unit


def play(
    impairment: Impairment, count: int, *, seed: int = 3, gap_s: float = 0.010, size: int = 100
) -> list[tuple[float, bytes]]:
    """Send `count` numbered datagrams, one every `gap_s`; (time, datagram) of what arrives."""
    link: Link[bytes] = Link(impairment, seed)
    arrived = []
    sent = 0
    while sent < count or link.deadline() is not None:
        next_send = sent * gap_s if sent < count else float("inf")
        deadline = link.deadline()
        if deadline is not None and deadline <= next_send:
            arrived += [(deadline, item) for item in link.pop(deadline)]
        else:
            data = sent.to_bytes(4, "big") * (size // 4)
            link.push(data, len(data), next_send)
            sent += 1
    return arrived


def numbers(arrived: list[tuple[float, bytes]]) -> list[int]:
    return [int.from_bytes(data[:4], "big") for _, data in arrived]


def test_a_path_without_impairment_changes_nothing() -> None:
    arrived = play(Impairment(), 50)
    assert numbers(arrived) == list(range(50))
    assert [at for at, _ in arrived] == [k * 0.010 for k in range(50)]
    assert all(data == k.to_bytes(4, "big") * 25 for k, (_, data) in enumerate(arrived))
    assert not Impairment().active


def test_the_same_seed_is_the_same_network_byte_for_byte() -> None:
    bad = Impairment(loss=10, burst=3, delay=20, jitter=15, reorder=5, duplicate=5, rate=400)
    one, same, other = play(bad, 400), play(bad, 400), play(bad, 400, seed=4)
    assert one == same
    assert one != other


def test_one_effect_does_not_move_another() -> None:
    """The n-th datagram is lost or not whatever else the path does."""
    plain = set(range(300)) - set(numbers(play(Impairment(loss=10), 300)))
    jittery = Impairment(loss=10, delay=50, jitter=20, reorder=10)
    assert plain == set(range(300)) - set(numbers(play(jittery, 300)))
    assert 10 < len(plain) < 60


def test_losses_have_the_asked_rate_and_burst_length() -> None:
    count = 60_000
    for burst in (1.0, 5.0):
        got = set(numbers(play(Impairment(loss=8, burst=burst), count, gap_s=0.001, size=4)))
        lost = [k not in got for k in range(count)]
        assert sum(lost) / count == pytest.approx(0.08, abs=0.012)
        runs = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
        expected = burst if burst > 1 else 1 / (1 - 0.08)
        assert sum(lost) / runs == pytest.approx(expected, rel=0.12)


def test_delay_and_jitter_keep_order_and_bounds() -> None:
    arrived = play(Impairment(delay=40, jitter=30), 500)
    assert numbers(arrived) == list(range(500))
    delays = [at - k * 0.010 for k, (at, _) in enumerate(arrived)]
    assert min(delays) >= 0.040
    assert max(delays) <= 0.070 + 1e-9
    assert max(delays) - min(delays) > 0.020


def test_reordered_datagrams_come_later_and_hold_nobody_up() -> None:
    arrived = play(Impairment(reorder=10), 300)
    order = numbers(arrived)
    assert sorted(order) == list(range(300))
    late = [k for at, data in arrived if at > (k := int.from_bytes(data[:4], "big")) * 0.010 + 1e-9]
    assert 10 < len(late) < 60
    assert order != sorted(order)
    at = {int.from_bytes(data[:4], "big"): when for when, data in arrived}
    for k in range(300):
        assert at[k] == pytest.approx(k * 0.010 + (REORDER_S if k in late else 0.0))


def test_duplicates_are_copies() -> None:
    arrived = play(Impairment(duplicate=20), 300)
    order = numbers(arrived)
    assert set(order) == set(range(300))
    assert 30 < len(order) - 300 < 90
    assert max(order.count(k) for k in range(300)) == 2


def test_a_bottleneck_spaces_datagrams_and_its_queue_is_bounded() -> None:
    # 100 bytes every 10 ms are 80 kbit/s; at 40 kbit/s each takes 20 ms.
    link: Link[int] = Link(Impairment(rate=40), 1)
    for k in range(400):
        link.push(k, 100, k * 0.010)
    out: list[tuple[float, int]] = []
    while (deadline := link.deadline()) is not None:
        out += [(deadline, item) for item in link.pop(deadline)]
    steps = {round(b - a, 6) for (a, _), (b, _) in itertools.pairwise(out)}
    assert min(steps) == pytest.approx(0.020)
    assert max(at - k * 0.010 for at, k in out) <= QUEUE_S + 0.020 + 1e-9
    assert link.count.overflowed == 400 - len(out) > 150


def test_a_stretch_begins_and_ends_and_forgets_its_burst() -> None:
    bad = Impairment(loss=99, burst=100, from_s=15, to_s=17)
    assert [bad.in_force(t) for t in (None, 14.9, 15.0, 16.9, 17.0)] == [
        False, False, True, True, False,
    ]  # fmt: skip
    assert Impairment(loss=1).in_force(None)
    link: Link[int] = Link(bad, 1)
    for k in range(200):
        link.push(k, 10, k * 0.01, in_force=50 <= k < 100)
    got = link.pop(10.0)
    assert got[:50] == list(range(50))
    assert got[-100:] == list(range(100, 200))
    assert link.count.lost >= 40


def test_nothing_piles_up_without_bound() -> None:
    link: Link[int] = Link(Impairment(delay=10_000), 1)
    for k in range(MAX_DATAGRAMS + 500):
        link.push(k, 10, 0.0)
    assert link.count.overflowed == 500
    assert len(link.pop(11.0)) == MAX_DATAGRAMS


@pytest.mark.parametrize(
    "wrong",
    [{"loss": 100}, {"loss": -1}, {"burst": 0.5}, {"delay": -1}, {"from_s": 3, "to_s": 3},
     {"rate": float("nan")}],
)  # fmt: skip
def test_impossible_networks_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|burst"):
        Impairment(**wrong)  # type: ignore[arg-type]


@given(
    loss=st.floats(0, 60), burst=st.floats(1, 20), jitter=st.floats(0, 100),
    reorder=st.floats(0, 50), duplicate=st.floats(0, 50), rate=st.sampled_from([0.0, 64.0, 500.0]),
    seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_books_balance(
    loss: float, burst: float, jitter: float, reorder: float, duplicate: float, rate: float,
    seed: int,
) -> None:  # fmt: skip
    link: Link[int] = Link(Impairment(loss, burst, 0, jitter, reorder, duplicate, rate), seed)
    for k in range(120):
        link.push(k, 50, k * 0.005)
    got = link.pop(1e9)
    count = link.count
    assert count.packets == 120
    assert count.bytes == 6000
    assert len(got) == 120 - count.lost - count.overflowed + count.duplicated
    assert link.deadline() is None


class Echo(asyncio.DatagramProtocol):
    """Remembers what comes."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lost: list[object] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.got.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


def test_sockets_of_a_task_go_through_its_path_and_others_do_not() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        plain, server = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
        target = plain.get_extra_info("sockname")
        path = UdpPath(Impairment(loss=50, from_s=0, to_s=1000), seed=1)

        async def client() -> None:
            use_path(path)
            transport, echo = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
            assert isinstance(echo, Echo)
            assert echo.transport is transport
            for k in range(20):
                transport.sendto(b"before %d" % k, target)
            path.begin()
            for k in range(200):
                transport.sendto(b"during %d" % k, target)
            address = transport.get_extra_info("sockname")
            plain.sendto(b"answer", address)
            async with asyncio.timeout(5):
                while path.down.count.packets < 1 or len(server.got) < 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            transport.close()
            assert transport.is_closing()

        await asyncio.create_task(client())
        await asyncio.sleep(0.05)
        assert isinstance(server, Echo)
        assert [data for data in server.got if data.startswith(b"before")] == [
            b"before %d" % k for k in range(20)
        ]
        count = path.up.count
        assert count.packets == 220
        assert 60 < count.lost < 140
        assert len(server.got) == 220 - count.lost
        assert path.down.count.packets == 1
        path.close()
        plain.close()

    with asyncio.Runner(loop_factory=PathLoop) as runner:
        runner.run(main())


def rtp(ssrc: int, timestamp: int, kind: int = 96) -> bytes:
    return struct.pack("!BBHII", 0x80, kind, 0, timestamp, ssrc) + b"payload"


def test_the_time_under_way_is_known_of_every_media_packet() -> None:
    log = TransitLog()
    for k in range(50):
        log.note(rtp(1, (2**32 - 960 + 480 * k) % 2**32), k * 0.01, k * 0.01 + 0.005)
        # Three packets a picture, the last of the eleventh is lost; its copy is another stream's.
        for part in range(3):
            lost = k == 10 and part == 2
            log.note(rtp(2, 3600 * k), k * 0.04, None if lost else k * 0.04 + 0.01 * (part + 1))
    log.note(rtp(3, 36_000), 0.5, 0.6)
    log.note(rtp(2, 7, kind=200), 0.0, 0.1)
    log.note(b"\x16\xfe\xfd handshake of DTLS", 0.0, 0.1)
    log.note(b"", 0.0, 0.1)
    voice = log.stepping(480)
    assert len(voice.took) == 50
    assert voice.took == pytest.approx(0.005)
    last = log.carrying([3600 * k for k in range(50)]).last()
    assert len(last) == 50
    assert last[3600] == pytest.approx(0.03)
    assert math.isnan(last[36_000])
    assert len(TransitLog().stepping(480).took) == 0
    assert TransitLog().carrying([1]).last() == {}


def test_a_link_tells_when_each_datagram_arrives() -> None:
    link: Link[int] = Link(Impairment(loss=30, delay=20, jitter=10, reorder=10), 3)
    told = {k: link.push(k, 10, k * 0.01) for k in range(200)}
    came: dict[int, float] = {}
    while (deadline := link.deadline()) is not None:
        came |= dict.fromkeys(link.pop(deadline), deadline)
    assert {k: at for k, at in told.items() if at is not None} == came
    assert sum(at is None for at in told.values()) == link.count.lost > 30


def test_settings_are_told_only_where_they_differ() -> None:
    assert Impairment().describe() == {}
    bad = replace(Impairment(), loss=3.0, jitter=30.0)
    assert bad.describe() == {"loss": 3.0, "jitter": 30.0}
