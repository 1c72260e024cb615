"""What a bad path adds to a picture's way, in virtual time with the bench's own impairment.

Voice goes up, is assembled by the real receive buffer, becomes a frame after what the server
takes, and comes down as packets through the other direction, past the real receive buffer of
pictures. Only aiortc, codecs and clocks are left out. The path alone costs what it costs; what
loss adds to that is ours to keep small.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest

from realtime.bench.impair import Impairment, Link
from realtime.rtc.audio_receive import AudioBlock, AudioReceiveBuffer
from realtime.rtc.protection import Protection
from realtime.rtc.video_receive import Fragment, VideoReceiveBuffer

pytestmark = pytest.mark.unit

SECONDS = 24
PACKET = 1150
VOICE = 160
TOTAL_BPS = 2_000_000
LOOKAHEAD_S = 0.080
WARM_FRAMES = 25


@dataclass
class Conversation:
    """One person, one server, one bad path. `added` are the pictures' delays, lookahead off."""

    impairment: Impairment
    protected: bool
    seed: int = 1
    now: float = 0.0
    seen: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.up: Link[tuple[str, Any]] = Link(self.impairment, 2 * self.seed)
        self.down: Link[tuple[str, Any]] = Link(self.impairment, 2 * self.seed + 1)
        self.voice = AudioReceiveBuffer(lambda _: np.full(480, 1, np.int16))
        self.pictures = VideoReceiveBuffer()
        self.protection = Protection()
        self.sent: dict[int, Fragment] = {}
        self._events: list[tuple[float, int, str, Any]] = []
        self._count = self._number = self._next_frame = 0
        self._key = True

    def run(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        for k in range(SECONDS * 100):
            self._at((k + 1) * 0.01, "speak", k)
            # The returned voice and both sides' reports share the path and keep its order.
            self._at((k + 1) * 0.01, "down", ("voice", None, VOICE))
            if k % 5 == 0:
                self._at((k + 1) * 0.01, "down", ("report", None, 80))
                self._at((k + 1) * 0.01, "up", ("report", None, 80))
        while self._events:
            self.now, _, what, value = heapq.heappop(self._events)
            getattr(self, f"_on_{what}")(value)
        last = self._next_frame - WARM_FRAMES
        frames = [f for f in self.seen if WARM_FRAMES < f < last]
        assert len(frames) > 0.98 * (last - WARM_FRAMES)
        return np.array([(self.seen[f] - f / 25 - LOOKAHEAD_S) * 1000 for f in frames])

    def _at(self, when: float, what: str, value: Any = None) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, what, value))

    def _on_speak(self, k: int) -> None:
        self._on_up(("voice", k, VOICE))

    def _on_up(self, datagram: tuple[str, Any, int]) -> None:
        self._put(self.up, "server", datagram)

    def _on_down(self, datagram: tuple[str, Any, int]) -> None:
        self._put(self.down, "client", datagram)

    def _put(self, link: Link[tuple[str, Any]], end: str, datagram: tuple[str, Any, int]) -> None:
        what, value, size = datagram
        link.push((what, value), size, self.now)
        if (due := link.deadline()) is not None:
            self._at(due, end)

    def _on_server(self, _: None) -> None:
        for what, value in self.up.pop(self.now):
            if what == "voice":
                # Opus configuration 30 is CELT, 10 ms.
                self.voice.push(value & 0xFFFF, value * 480, bytes([30 << 3]), self.now)
                self._hear()
            elif what == "nack":
                twice = self.protected and self.protection.active(self.now)
                for sequence in value * (2 if twice else 1):
                    self._on_down(("picture", sequence, PACKET))
            elif what == "pli":
                self._key = True
        if (due := self.up.deadline()) is not None:
            self._at(due, "server")

    def _hear(self) -> None:
        blocks: list[AudioBlock] = self.voice.poll(self.now)
        if blocks:
            line = blocks[-1].index + len(blocks[-1].pcm)
            while line >= (self._next_frame + 2) * 1920:
                # Networks, drawing, encoding: as the bench has measured them.
                self._at(
                    self.now + max(0.012, self.rng.gauss(0.022, 0.005)), "frame", self._next_frame
                )
                self._next_frame += 1
        if (due := self.voice.deadline()) is not None and due < SECONDS:
            self._at(max(due, self.now + 0.001), "hold")

    def _on_hold(self, _: None) -> None:
        due = self.voice.deadline()
        if due is not None and due <= self.now + 1e-9:
            self._hear()

    def _on_frame(self, frame: int) -> None:
        key, self._key = self._key, False
        count = 12 if key else self.rng.choice((3, 4))
        first = self._number
        for part in range(count):
            sequence = self._number & 0xFFFF
            self._number += 1
            self.sent[sequence] = Fragment(
                sequence, frame * 3600, part == count - 1, b"%d " % frame, key and part == 0
            )
            self._on_down(("picture", sequence, PACKET))
        if self.protected:
            self.protection.note_loss(self.impairment.loss / 100, self.now)
            for place in self.protection.choose([PACKET] * count, TOTAL_BPS, self.now):
                self._on_down(("picture", (first + place) & 0xFFFF, PACKET))

    def _on_client(self, _: None) -> None:
        for what, value in self.down.pop(self.now):
            if what == "picture":
                self.pictures.push(self.sent[value], self.now)
                self._look()
        if (due := self.down.deadline()) is not None:
            self._at(due, "client")

    def _on_wait(self, _: None) -> None:
        due = self.pictures.deadline()
        if due is not None and due <= self.now + 1e-9:
            self._look()

    def _look(self) -> None:
        due = self.pictures.poll(self.now)
        for frame in due.frames:
            self.seen[int(frame.data.split()[0])] = self.now
        if due.nack:
            self._on_up(("nack", due.nack, 60))
        if due.pli:
            self._on_up(("pli", None, 60))
        if (again := self.pictures.deadline()) is not None:
            self._at(max(again, self.now + 0.001), "wait")


@cache
def p95(loss: float, jitter: float, protected: bool, seed: int = 1) -> float:
    added = Conversation(Impairment(loss=loss, jitter=jitter), protected, seed).run()
    return float(np.percentile(added, 95))


def test_the_path_alone_explains_what_a_jittery_path_costs() -> None:
    """Order is kept, so every packet waits for the slowest before it: 2 x (20 to 30) ms."""
    assert 40 <= p95(0, 30, False) - p95(0, 0, False) <= 56


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_loss_costs_a_protected_picture_next_to_nothing(seed: int) -> None:
    lossless = p95(0, 30, False, seed)
    assert p95(3, 30, True, seed) <= lossless + 5
    # Without protection every eighth picture waits for a round trip and a late discovery.
    assert p95(3, 30, False, seed) >= lossless + 20


def test_bursts_are_survived_as_well() -> None:
    bursts = Impairment(loss=3, burst=3, jitter=30)
    protected = Conversation(bursts, True).run()
    plain = Conversation(bursts, False).run()
    assert np.percentile(protected, 95) < np.percentile(plain, 95) - 10


# --- what is sent twice -------------------------------------------------------------------


def test_nothing_is_sent_twice_on_a_path_that_loses_nothing() -> None:
    protection = Protection()
    for k in range(100):
        protection.note_loss(0.005, k / 25)
        assert protection.choose([1000] * 4, TOTAL_BPS, k / 25) == []
        assert protection.encoder_bps(TOTAL_BPS, TOTAL_BPS, k / 25) == TOTAL_BPS


def test_loss_is_answered_at_once_and_forgotten_after_ten_quiet_seconds() -> None:
    protection = Protection()
    protection.choose([1000], TOTAL_BPS, 0.5)
    protection.note_loss(0.03, 1.0)
    assert protection.choose([1000] * 4, TOTAL_BPS, 1.0) == [0, 1, 2, 3]
    protection.note_loss(0.0, 1.1)
    assert protection.active(10.9)
    assert not protection.active(11.1)


def test_a_full_path_is_not_filled_further() -> None:
    protection = Protection()
    protection.note_loss(0.03, 1.0)
    protection.note_loss(0.25, 1.2)
    assert not protection.active(1.2)
    assert protection.choose([1000] * 4, TOTAL_BPS, 1.2) == []


@pytest.mark.parametrize("total_bps", [150_000, 400_000, 1_000_000, 2_000_000])
def test_frames_and_copies_share_one_rate(total_bps: int) -> None:
    """An encoder that uses all it may: both together stay below what it would have had alone."""
    protection, sent, last, rng = Protection(), 0, 0, random.Random(3)
    for k in range(2500):
        now = k / 25
        protection.note_loss(0.03, now)
        bps = protection.encoder_bps(total_bps, 2_000_000, now)
        assert bps >= total_bps // 2
        frame = int(bps / 8 / 25 * rng.uniform(0.6, 1.4))
        count = -(-frame // 1150)
        sizes = [frame // count] * count
        chosen = protection.choose(sizes, total_bps, now)
        # From the last one on, which nothing after it would show to be missing.
        assert chosen == list(range(count - len(chosen), count))
        sent += sum(sizes) + sum(sizes[place] for place in chosen)
        last += bool(chosen)
    assert sent * 8 / 100 <= 1.03 * total_bps
    assert last > (0.9 if total_bps >= 1_000_000 else 0.3) * 2500


def test_a_key_frame_is_not_doubled() -> None:
    protection = Protection()
    protection.note_loss(0.03, 1.0)
    protection.choose([1000], TOTAL_BPS, 1.0)
    assert protection.choose([1100] * 35, TOTAL_BPS, 2.0) == [34]
