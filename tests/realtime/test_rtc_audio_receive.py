"""The audio receive buffer in virtual time, under scripted loss, reordering and duplication."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.rtc.audio_receive import AudioBlock, AudioReceiveBuffer, Pcm, opus_samples

pytestmark = pytest.mark.unit

PACKET = 960
PACKET_S = 0.020


def decode(payload: bytes) -> Pcm:
    """Payload = TOC of a 20 ms mono packet + number; decodes to that number + 1001, 960 times."""
    if len(payload) != 5:
        raise ValueError("bad packet")
    return np.full(PACKET, struct.unpack("!L", payload[1:])[0] % 30000 + 1001, np.int16)


def payload(number: int) -> bytes:
    return bytes([1 << 3]) + struct.pack("!L", number)


@dataclass
class Network:
    """Delivers packet k at time k * 20 ms + delay, and polls whenever the buffer asks."""

    buffer: AudioReceiveBuffer = field(default_factory=lambda: AudioReceiveBuffer(decode))
    first_sequence: int = 65530
    first_timestamp: int = 2**32 - 5000
    now: float = 100.0
    out: list[tuple[float, AudioBlock]] = field(default_factory=list)

    def advance(self, until: float) -> None:
        while (due := self.buffer.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self._poll()
        self.now = max(self.now, until)

    def deliver(self, number: int, *, at: float | None = None, shift: int = 0) -> None:
        self.advance(self.send_time(number) if at is None else at)
        self.buffer.push(
            (self.first_sequence + number) & 0xFFFF,
            (self.first_timestamp + number * PACKET + shift) & 0xFFFFFFFF,
            payload(number),
            self.now,
        )
        self._poll()

    def send_time(self, number: int) -> float:
        return 100.0 + number * PACKET_S

    def _poll(self) -> None:
        self.out += [(self.now, block) for block in self.buffer.poll(self.now)]

    def check_line(self) -> None:
        """Indices are contiguous and every block is non-empty."""
        at = 0
        for _, block in self.out:
            assert block.index == at
            assert len(block.pcm) > 0
            at += len(block.pcm)

    def number_at(self, index: int) -> int | None:
        """Which packet is heard at a capture index; None when concealed."""
        for _, block in self.out:
            if block.index <= index < block.index + len(block.pcm):
                return None if block.concealed else int(block.pcm[index - block.index]) - 1001
        raise AssertionError(f"nothing at {index}")


def test_in_order_packets_pass_at_once_across_both_wraps() -> None:
    net = Network()
    for k in range(50):
        net.deliver(k)
    assert len(net.out) == 50
    assert all(at == pytest.approx(net.send_time(k)) for k, (at, _) in enumerate(net.out))
    net.check_line()
    assert not any(block.concealed for _, block in net.out)


def test_a_lost_packet_costs_ten_ms_once_and_the_gap_is_exact() -> None:
    net = Network()
    for k in range(3000 + 10):
        if k != 7:
            net.deliver(k)
    net.check_line()
    assert net.number_at(7 * PACKET + 500) is None
    assert net.number_at(8 * PACKET + 500) == 8
    delay = {block.index: at - net.send_time(block.index // PACKET) for at, block in net.out}
    assert delay[8 * PACKET] == pytest.approx(0.010, abs=1e-6)
    assert delay[6 * PACKET] == pytest.approx(0.0, abs=1e-6)
    # A minute after the loss nothing of it is left.
    assert delay[3005 * PACKET] == pytest.approx(0.0, abs=1e-6)
    assert net.buffer.stats.lost_packets == 1
    assert net.buffer.stats.concealed_samples == PACKET


def test_a_swapped_pair_within_the_hold_is_put_right() -> None:
    net = Network()
    net.deliver(0)
    net.deliver(2, at=100.022)
    net.deliver(1, at=100.026)
    net.deliver(3)
    net.check_line()
    assert [net.number_at(k * PACKET + 500) for k in range(4)] == [0, 1, 2, 3]
    assert net.buffer.stats.lost_packets == 0
    assert net.buffer.stats.reordered_packets == 1


def test_a_packet_that_comes_after_the_hold_is_late() -> None:
    net = Network()
    net.deliver(0)
    net.deliver(2, at=100.022)
    net.deliver(1, at=100.040)
    net.deliver(3)
    net.check_line()
    assert net.number_at(PACKET + 500) is None
    assert net.number_at(2 * PACKET + 500) == 2
    assert net.buffer.stats.late_packets == 1


def test_duplicates_change_nothing() -> None:
    net = Network()
    for k in range(5):
        net.deliver(k)
        net.deliver(k)
    net.deliver(6)
    net.deliver(6)
    net.deliver(5, at=net.now)
    net.check_line()
    assert [net.number_at(k * PACKET + 500) for k in range(7)] == list(range(7))
    assert net.buffer.stats.late_packets == 5
    assert net.buffer.stats.duplicate_packets == 1


def test_two_gaps_wait_one_hold_not_two() -> None:
    net = Network()
    for k in (0, 2, 4):
        net.deliver(k, at=100.0 + k * 1e-4)
    net.advance(100.012)
    assert net.number_at(4 * PACKET + 500) == 4
    net.check_line()


def test_silence_without_packets_is_filled_in_real_time_and_the_clock_never_stops() -> None:
    net = Network()
    for k in range(10):
        net.deliver(k)
    net.advance(net.send_time(110))
    filled = net.buffer.index / 48000
    elapsed = net.now - 100.0
    assert elapsed - 0.045 <= filled <= elapsed + PACKET_S
    net.check_line()
    late = [at - (100.0 + (b.index + len(b.pcm)) / 48000) for at, b in net.out[20:]]
    assert max(late) < 0.03
    # DTX ends: the next packets carry their true timestamps and play at once.
    for k in range(110, 120):
        net.deliver(k)
    net.check_line()
    assert net.number_at(115 * PACKET + 500) == 115
    assert net.out[-1][0] == pytest.approx(net.send_time(119))


def test_a_clock_without_any_packet_starts_when_told() -> None:
    net = Network()
    net.buffer.start(net.now)
    net.advance(101.0)
    assert net.buffer.index == pytest.approx(48000, abs=2 * PACKET)
    for k in range(100, 110):
        net.deliver(k)
    net.check_line()
    assert not net.out[-1][1].concealed


def test_a_delay_spike_drops_what_is_too_late_and_keeps_the_latency() -> None:
    net = Network()
    for k in range(20):
        net.deliver(k)
    for k in range(20, 45):
        net.deliver(k, at=net.send_time(45))
    for k in range(45, 60):
        net.deliver(k)
    net.check_line()
    assert net.number_at(50 * PACKET + 500) == 50
    by_index = {block.index: at for at, block in net.out}
    assert by_index[59 * PACKET] == pytest.approx(net.send_time(59))
    assert net.buffer.stats.rebases == 0


def test_a_path_that_got_slower_for_good_is_followed() -> None:
    net = Network()
    for k in range(20):
        net.deliver(k)
    slower = 0.5
    for k in range(20, 120):
        net.deliver(k, at=net.send_time(k) + slower)
    net.check_line()
    assert net.buffer.stats.rebases == 1
    assert not net.out[-1][1].concealed
    # From then on nothing waits: packet k is heard the moment it comes.
    assert net.out[-1][0] == pytest.approx(net.send_time(119) + slower)


def test_a_timestamp_jump_moves_the_mapping_instead_of_inventing_minutes() -> None:
    net = Network()
    for k in range(5):
        net.deliver(k)
    for k in range(5, 10):
        net.deliver(k, shift=48000 * 600)
    net.check_line()
    assert net.buffer.index == 10 * PACKET
    assert net.buffer.stats.rebases == 1


def test_a_restarted_sender_continues_the_line() -> None:
    net = Network()
    for k in range(5):
        net.deliver(k)
    net.first_sequence, net.first_timestamp = 12345, 999
    for k in range(5, 10):
        net.deliver(k)
    net.buffer.reset_stream()
    net.first_sequence, net.first_timestamp = 7, 5
    for k in range(10, 15):
        net.deliver(k)
    net.check_line()
    assert net.buffer.index == 15 * PACKET
    assert [net.number_at(k * PACKET + 500) for k in range(15)] == list(range(15))


def test_audio_faster_than_real_time_is_dropped() -> None:
    net = Network()
    for k in range(2000):
        net.deliver(k, at=100.0 + k * PACKET_S / 20)
    elapsed = net.now - 100.0
    assert net.buffer.index / 48000 < elapsed * 1.05 + 1.1
    assert net.buffer.stats.flooded_packets > 1000


def test_tiny_packets_with_long_gaps_cannot_buy_time_either() -> None:
    net = Network()
    for k in range(500):
        net.deliver(k, at=100.0 + k * 0.005, shift=k * 40_000)
    assert net.buffer.index / 48000 < (net.now - 100.0) * 1.05 + 1.1


def test_an_undecodable_packet_is_concealed() -> None:
    net = Network()
    for k in range(3):
        net.deliver(k)
    net.buffer.push((net.first_sequence + 3) & 0xFFFF, 0, b"\x08", net.send_time(3))
    for k in range(4, 8):
        net.deliver(k)
    net.check_line()
    assert net.number_at(3 * PACKET + 500) is None
    assert net.number_at(4 * PACKET + 500) == 4
    assert net.buffer.stats.undecodable_packets == 1


@pytest.mark.parametrize(
    ("payload_bytes", "samples"),
    [
        (b"", 0),
        (bytes([0 << 3]), 480),
        (bytes([1 << 3]), 960),
        (bytes([3 << 3]), 2880),
        (bytes([13 << 3]), 960),
        (bytes([16 << 3]), 120),
        (bytes([30 << 3 | 1]), 960),
        (bytes([31 << 3 | 3, 3]), 2880),
        (bytes([31 << 3 | 3]), 0),
        (bytes([3 << 3 | 3, 63]), 0),
    ],
)
def test_opus_duration_from_its_first_bytes(payload_bytes: bytes, samples: int) -> None:
    assert opus_samples(payload_bytes) == samples


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lost=st.sets(st.integers(1, 199), max_size=60),
    jitter_ms=st.lists(st.integers(0, 40), min_size=200, max_size=200),
    copies=st.sets(st.integers(1, 199), max_size=20),
)
def test_any_loss_and_jitter_leaves_one_line_without_lasting_delay(
    lost: set[int], jitter_ms: list[int], copies: set[int]
) -> None:
    net = Network()
    arrivals = [(net.send_time(k) + jitter_ms[k] / 1000, k) for k in range(200) if k not in lost]
    arrivals += [(net.send_time(k) + 0.05, k) for k in copies - lost]
    arrivals += [(net.send_time(k), k) for k in range(210, 240)]
    for at, k in sorted(arrivals):
        net.deliver(k, at=at)
    net.check_line()
    heard = [
        int(block.pcm[500]) - 1
        for _, block in net.out
        if len(block.pcm) == PACKET and not block.concealed
    ]
    assert heard == sorted(set(heard))
    # The clean tail: right sample, right place, no delay at all.
    first = min(arrivals)[1]
    assert net.buffer.stats.rebases > 0 or net.out[-1][1].index == (239 - first) * PACKET
    assert net.out[-1][0] == pytest.approx(net.send_time(239))
    assert not net.out[-1][1].concealed


# --- how long a missing packet is waited for ----------------------------------------------


def test_where_packets_are_lost_and_never_swapped_nothing_waits_long() -> None:
    net = Network()
    waits = []
    for k in range(400):
        if k % 20:
            net.deliver(k)
        if k % 20 == 5:
            waits.append(net.buffer.hold_s)
    net.check_line()
    assert waits[0] == pytest.approx(0.010 * 0.7, abs=0.004)
    assert waits[-1] == pytest.approx(0.002)
    # The line began with packet 1.
    received = [(at, block) for at, block in net.out[-40:] if not block.concealed]
    delays = [at - net.send_time(1 + block.index // PACKET) for at, block in received]
    assert max(delays) == pytest.approx(0.002, abs=1e-6)


def test_where_packets_are_swapped_they_are_waited_for_again() -> None:
    net = Network()
    for k in range(200):
        if k % 10:
            net.deliver(k)
    assert net.buffer.hold_s == pytest.approx(0.002)
    before = net.buffer.stats.lost_packets
    # From now on every tenth packet overtakes the one before it by 8 ms.
    for k in range(200, 400, 10):
        for j in (*range(k, k + 8), k + 9):
            net.deliver(j, at=max(net.now, net.send_time(j) - (0.020 if j == k + 9 else 0.0)))
        net.deliver(k + 8, at=net.now + 0.008)
    assert net.buffer.stats.lost_packets - before == 1, "the first one taught it"
    assert 0.008 <= net.buffer.hold_s <= 0.020
    net.check_line()


def test_a_copy_in_the_next_packet_is_used_at_once_unless_packets_are_swapped() -> None:
    def recover(data: bytes, samples: int) -> Pcm:
        return np.full(samples, struct.unpack("!L", data[1:])[0] % 30000 + 1000, np.int16)

    def network() -> Network:
        return Network(AudioReceiveBuffer(decode, recover=recover, has_copy=lambda data: True))

    net = network()
    for k in (0, 1, 3, 4):
        net.deliver(k)
    by_index = {block.index: at for at, block in net.out}
    assert by_index[3 * PACKET] == pytest.approx(net.send_time(3))
    assert net.buffer.stats.recovered_samples == PACKET
    assert net.buffer.stats.concealed_samples == 0
    # Two in a row: the copy holds the last one only, so the usual wait comes first.
    early = net.send_time(4) + 0.030
    net.deliver(7, at=early)
    assert net.out[-1][1].index == 4 * PACKET
    net.advance(early + 0.010)
    assert net.buffer.stats.concealed_samples == PACKET
    net.check_line()

    swapped = network()
    swapped.deliver(0)
    swapped.deliver(2, at=100.022)
    swapped.deliver(1, at=100.025)
    swapped.deliver(4, at=100.062)
    swapped.deliver(3, at=100.065)
    swapped.deliver(5)
    assert swapped.number_at(3 * PACKET + 500) == 3
    assert swapped.buffer.stats.late_packets == 1
    swapped.check_line()


def test_silence_before_anybody_speaks_is_not_missing() -> None:
    net = Network()
    net.buffer.start(net.now)
    net.advance(101.0)
    assert net.buffer.stats.waited_samples == net.buffer.index > 40_000
    assert net.buffer.stats.filled_samples == 0
    for k in range(50, 60):
        net.deliver(k)
    net.advance(net.now + 0.5)
    assert net.buffer.stats.filled_samples > 15_000
