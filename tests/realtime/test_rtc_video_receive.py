"""The video receive buffer in virtual time, under scripted loss, reordering and duplication."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from realtime.rtc.video_receive import EncodedFrame, Fragment, VideoReceiveBuffer

pytestmark = pytest.mark.unit

FRAME_S = 1 / 30
TICKS = 3000


@dataclass
class Network:
    """Frames of three fragments at 30 fps; answers NACKs after `rtt` unless told not to."""

    buffer: VideoReceiveBuffer = field(default_factory=VideoReceiveBuffer)
    rtt: float = 0.030
    answers: bool = True
    first_sequence: int = 65500
    first_timestamp: int = 2**32 - 7000
    now: float = 50.0
    frames: list[tuple[float, EncodedFrame]] = field(default_factory=list)
    nacks: list[tuple[float, int]] = field(default_factory=list)
    plis: list[float] = field(default_factory=list)
    resends: list[tuple[float, int]] = field(default_factory=list)
    keys: set[int] = field(default_factory=lambda: {0})

    def fragment(self, number: int) -> Fragment:
        frame, part = divmod(number, 3)
        return Fragment(
            sequence=(self.first_sequence + number) & 0xFFFF,
            timestamp=(self.first_timestamp + frame * TICKS) & 0xFFFFFFFF,
            marker=part == 2,
            data=f"{frame}.{part} ".encode(),
            key_start=part == 0 and frame in self.keys,
        )

    def deliver(self, number: int, at: float) -> None:
        self.advance(at)
        self.buffer.push(self.fragment(number), self.now)
        self._poll()

    def frame(self, frame: int, lost: tuple[int, ...] = ()) -> None:
        for part in range(3):
            if part not in lost:
                self.deliver(frame * 3 + part, self.send_time(frame) + part * 1e-4)

    def send_time(self, frame: int) -> float:
        return 50.0 + frame * FRAME_S

    def advance(self, until: float) -> None:
        while True:
            due = self.buffer.deadline()
            resend = min(self.resends, default=None)
            candidates = [t for t in (due, resend[0] if resend else None) if t is not None]
            if not candidates or min(candidates) > until:
                break
            self.now = max(self.now, min(candidates))
            if resend is not None and resend[0] <= self.now:
                self.resends.remove(resend)
                self.buffer.push(self.fragment(resend[1]), self.now)
            self._poll()
        self.now = max(self.now, until)

    def _poll(self) -> None:
        due = self.buffer.poll(self.now)
        self.frames += [(self.now, frame) for frame in due.frames]
        for seq in due.nack:
            number = (seq - self.first_sequence) & 0xFFFF
            self.nacks.append((self.now, number))
            if self.answers:
                self.resends.append((self.now + self.rtt, number))
        if due.pli:
            self.plis.append(self.now)

    def shown(self) -> list[int]:
        return [int(frame.data.split(b".")[0]) for _, frame in self.frames]


def test_a_frame_is_released_by_its_marker_not_by_the_next_frame() -> None:
    net = Network()
    for k in range(40):
        net.frame(k)
    assert net.shown() == list(range(40))
    for k, (at, frame) in enumerate(net.frames):
        assert at == pytest.approx(net.send_time(k) + 2e-4)
        assert frame.data == f"{k}.0 {k}.1 {k}.2 ".encode()
    stamps = [frame.timestamp for _, frame in net.frames]
    assert [b - a for a, b in pairwise(stamps)] == [TICKS] * 39
    assert net.plis == []
    assert net.nacks == []


def test_a_lost_fragment_is_asked_for_at_once_and_nothing_overtakes_it() -> None:
    net = Network()
    net.frame(0)
    net.frame(1, lost=(1,))
    for k in range(2, 10):
        net.frame(k)
    net.advance(51.0)
    assert net.shown() == list(range(10))
    assert net.nacks[0] == (pytest.approx(net.send_time(1) + 2e-4), 4)
    assert net.frames[1][0] == pytest.approx(net.send_time(1) + 2e-4 + net.rtt)
    assert net.plis == []
    assert net.buffer.stats.recovered_packets == 1


def test_unanswered_nacks_repeat_every_round_trip_then_give_up_and_ask_for_a_key_frame() -> None:
    net = Network(answers=False)
    net.buffer.round_trip_s = 0.030
    net.keys = {0, 20}
    net.frame(0)
    net.frame(1, lost=(1,))
    for k in range(2, 26):
        net.frame(k)
    asked = [at - net.nacks[0][0] for at, _ in net.nacks]
    assert asked == pytest.approx([0.0, 0.030, 0.060])
    gave_up = net.plis[0] - (net.send_time(1) + 2e-4)
    assert gave_up == pytest.approx(0.150)
    assert net.shown() == [0, *range(20, 26)]
    # PLI again while no key frame comes, but not more often than every 400 ms.
    assert all(b - a >= 0.4 - 1e-6 for a, b in pairwise(net.plis))
    assert net.frames[1][0] == pytest.approx(net.send_time(20) + 2e-4)


def test_a_key_frame_ends_the_wait_for_what_came_before_it() -> None:
    net = Network(answers=False)
    net.keys = {0, 3}
    net.frame(0)
    net.frame(1, lost=(0, 1, 2))
    for k in range(2, 6):
        net.frame(k)
    net.advance(net.send_time(12))
    assert net.shown() == [0, 3, 4, 5]


def test_fragments_in_any_order_and_twice() -> None:
    net = Network(answers=False)
    net.frame(0)
    order = list(range(3, 30))
    random.Random(3).shuffle(order)
    for number in order + order:
        net.deliver(number, net.now + 1e-4)
    assert net.shown() == list(range(10))
    assert net.buffer.stats.duplicate_packets >= 27


def test_a_stream_joined_in_the_middle_starts_at_a_key_frame() -> None:
    net = Network()
    net.keys = {14}
    for k in range(10, 20):
        net.frame(k)
    assert net.shown() == list(range(14, 20))
    assert len(net.plis) == 1


def test_padding_and_lost_markers_do_not_stall() -> None:
    net = Network()
    net.frame(0)
    net.buffer.push(
        Fragment((net.first_sequence + 3) & 0xFFFF, net.first_timestamp, False, b"", False), net.now
    )
    net.first_sequence += 1
    net.frame(1)
    no_marker = net.fragment(8)
    net.deliver(6, net.now)
    net.deliver(7, net.now)
    net.buffer.push(
        Fragment(no_marker.sequence, no_marker.timestamp, False, no_marker.data, False), net.now
    )
    net.frame(3)
    assert net.shown() == [0, 1, 2, 3]


def test_memory_is_bounded_when_a_hole_is_never_filled() -> None:
    net = Network(answers=False)
    net.frame(0)
    for number in range(4, 3000):
        net.buffer.push(net.fragment(number), net.now)
    assert net.buffer.depth <= 1025


def test_a_restarted_sender_is_followed() -> None:
    net = Network()
    for k in range(3):
        net.frame(k)
    net.first_sequence, net.first_timestamp, net.keys = 20000, 5, {3}
    for k in range(3, 6):
        net.frame(k)
    assert net.shown() == list(range(6))


def test_a_decoder_failure_asks_for_a_key_frame_and_skips_to_it() -> None:
    net = Network()
    net.keys = {0, 5}
    for k in range(3):
        net.frame(k)
    net.buffer.request_key_frame()
    for k in range(3, 8):
        net.frame(k)
    assert net.shown() == [0, 1, 2, 5, 6, 7]
    assert len(net.plis) == 1
