"""After any burst the delay is what it was: voice and pictures, in virtual time.

Two seconds after a network that lost, delayed, doubled and swapped packets is well again,
what comes out is exactly as old as before. Nothing that is held may grow meanwhile.
"""

from __future__ import annotations

import heapq
import random
import struct
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.rtc.audio_receive import AudioReceiveBuffer, Pcm
from realtime.rtc.video_receive import Fragment, VideoReceiveBuffer

pytestmark = pytest.mark.unit

PATH_S = 0.020
BEFORE_S, BURST_S, AFTER_S = 2.0, 2.0, 4.0
RECOVERED_S = BEFORE_S + BURST_S + 2.0
WITHIN_S = 0.005


@dataclass(frozen=True)
class Weather:
    """What the network does to packets sent during the burst."""

    loss: float
    jitter_s: float
    double: float
    stall_s: float
    """At the burst's start everything is held back so long, and then comes at once."""
    slower_s: float
    """Added to every packet."""
    seed: int

    def arrivals(self, sent_s: float, rng: random.Random) -> list[float]:
        """When (copies of) a packet arrive; none: lost."""
        if not BEFORE_S <= sent_s < BEFORE_S + BURST_S:
            return [sent_s + PATH_S]
        if rng.random() < self.loss:
            return []
        copies = 2 if rng.random() < self.double else 1
        stalled = max(0.0, BEFORE_S + self.stall_s - sent_s)
        base = sent_s + PATH_S + self.slower_s + stalled
        return [base + rng.random() * self.jitter_s for _ in range(copies)]


WEATHER = st.builds(
    Weather,
    loss=st.sampled_from([0.0, 0.03, 0.2, 0.6, 1.0]),
    jitter_s=st.sampled_from([0.0, 0.005, 0.030, 0.150]),
    double=st.sampled_from([0.0, 0.2]),
    stall_s=st.sampled_from([0.0, 0.05, 0.4, 1.5]),
    slower_s=st.sampled_from([0.0, 0.08, 0.5]),
    seed=st.integers(0, 10_000),
)


def decode(payload: bytes) -> Pcm:
    return np.full(480, struct.unpack("!L", payload[1:])[0] % 30000 + 1001, np.int16)


@settings(max_examples=60, deadline=None)
@given(WEATHER)
def test_voice_is_as_fresh_as_before(weather: Weather) -> None:
    rng = random.Random(weather.seed)
    buffer = AudioReceiveBuffer(decode)
    events = sorted(
        (at, number)
        for number in range(int((BEFORE_S + BURST_S + AFTER_S) * 100))
        for at in weather.arrivals(number / 100, rng)
    )
    out: list[tuple[float, float]] = []
    line = 0

    def poll(now: float) -> None:
        nonlocal line
        for block in buffer.poll(now):
            assert block.index == line
            line += len(block.pcm)
            if not block.concealed:
                out.append((now, (int(block.pcm[-1]) - 1001) / 100))

    for at, number in events:
        while (due := buffer.deadline()) is not None and due <= at:
            poll(due)
        # Opus configuration 30 is CELT, 10 ms.
        data = bytes([30 << 3]) + struct.pack("!L", number)
        buffer.push((65_000 + number) & 0xFFFF, (number * 480 + 2**32 - 9) & 0xFFFFFFFF, data, at)
        poll(at)
        assert buffer.depth <= 64
    before = [now - sent for now, sent in out if 1.0 < sent < BEFORE_S - 0.1]
    after = [now - sent for now, sent in out if sent > RECOVERED_S]
    assert len(after) >= 190
    assert max(after) <= max(before) + WITHIN_S
    # The line is as long as the time that passed, give or take what the path's changes cost.
    lasted = BEFORE_S + BURST_S + AFTER_S
    assert lasted - 0.25 <= line / 48000 <= lasted + weather.slower_s + weather.stall_s + 0.3


@settings(max_examples=60, deadline=None)
@given(WEATHER)
def test_pictures_are_as_fresh_as_before(weather: Weather) -> None:
    rng = random.Random(weather.seed)
    buffer = VideoReceiveBuffer()
    buffer.round_trip_s = 2 * PATH_S
    sent: dict[int, Fragment] = {}
    events: list[tuple[float, int, str, int]] = []
    out: list[tuple[float, float]] = []
    order = 0

    def at(when: float, what: str, value: int) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (when, order, what, value))

    def poll(now: float) -> None:
        due = buffer.poll(now)
        out.extend((now, int(frame.data.split(b" ")[0]) / 25) for frame in due.frames)
        for sequence in due.nack:
            at(now + PATH_S, "nack", sequence)
        if due.pli:
            at(now + PATH_S, "pli", 0)

    for frame in range(int((BEFORE_S + BURST_S + AFTER_S) * 25)):
        at(frame / 25, "frame", frame)
    want_key, number = True, 65_000
    while events:
        now, _, what, value = heapq.heappop(events)
        while (due := buffer.deadline()) is not None and due <= now:
            poll(due)
        if what == "frame":
            parts = 12 if want_key else 3
            for part in range(parts):
                sequence = number & 0xFFFF
                sent[sequence] = Fragment(
                    sequence, value * 3600 & 0xFFFFFFFF, part == parts - 1,
                    b"%d %d " % (value, part), want_key and part == 0,
                )  # fmt: skip
                for arrival in weather.arrivals(now, rng):
                    at(arrival, "packet", sequence)
                number += 1
            want_key = False
        elif what == "pli":
            want_key = True
        elif what == "nack" and value in sent:
            for arrival in weather.arrivals(now, rng):
                at(arrival, "packet", value)
        elif what == "packet":
            buffer.push(sent[value], now)
            poll(now)
            assert buffer.depth <= 1025
    shown = [frame for _, frame in out]
    assert shown == sorted(set(shown))
    before = [now - frame for now, frame in out if 1.0 < frame < BEFORE_S - 0.1]
    after = [now - frame for now, frame in out if frame > RECOVERED_S]
    assert len(after) >= 48
    assert max(after) <= max(before) + WITHIN_S


def test_a_path_that_swings_does_not_make_the_session_run_ahead() -> None:
    """Slower by 150 ms every other second: silence is filled, and given back in pauses."""

    def spoken(payload: bytes) -> Pcm:
        number = struct.unpack("!L", payload[1:])[0]
        pause = number % 200 > 140
        return np.full(480, 0 if pause else 3000, np.int16)

    buffer = AudioReceiveBuffer(spoken)
    buffer.start(0.0)
    leads, spoken_samples = [], 0
    events = sorted(
        (k / 100 + PATH_S + (0.150 if k // 100 % 2 else 0.0), k) for k in range(60 * 100)
    )
    for at, number in events:
        while (due := buffer.deadline()) is not None and due <= at:
            buffer.poll(due)
        data = bytes([30 << 3]) + struct.pack("!L", number)
        buffer.push(number & 0xFFFF, number * 480, data, at)
        spoken_samples += sum(int((b.pcm == 3000).sum()) for b in buffer.poll(at))
        leads.append(buffer.index / 48_000 - at)
    assert max(leads) < 0.5
    assert max(leads[-500:]) < max(leads[:1000]) + 0.1
    assert buffer.stats.shortened_samples > 48_000
    # Without it the session would be three seconds ahead by now.
    assert leads[-1] < 0.25
    assert spoken_samples > 0.75 * 0.7 * 60 * 48_000
