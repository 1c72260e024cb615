"""The unbroken line of sound: whatever the network does, nothing moves and nothing grows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from realtime.line import CATCH_UP_FRAMES, DEADLINE_NS
from tests.realtime.pipeline_rig import AHEAD, FRAME, PACKET, Rig, noise

pytestmark = pytest.mark.unit


# --- what the network does --------------------------------------------------------------


def test_packets_out_of_order_are_put_in_order() -> None:
    rig, signal = Rig(), noise(48_000)
    packets = [(s, signal[s : s + 480]) for s in range(0, 48_000, 480)]
    packets[10], packets[11] = packets[11], packets[10]
    packets[31], packets[33] = packets[33], packets[31]
    for start, pcm in packets:
        rig.push(pcm, start)
        rig.wait(10)
    rig.check_line()
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])
    assert rig.pipeline.stats.reordered > 0
    assert rig.pipeline.stats.gap_samples == 0
    assert rig.pipeline.stats.late_samples == 0


def test_a_lost_packet_becomes_silence_and_nothing_moves() -> None:
    rig, signal = Rig(), noise(48_000)
    for start in range(0, 48_000, PACKET):
        rig.wait(20)
        if start != 10 * PACKET:
            rig.push(signal[start : start + PACKET], start)
    rig.check_line()
    expected = signal.copy()
    expected[10 * PACKET : 11 * PACKET] = 0
    np.testing.assert_array_equal(rig.sound, expected[: len(rig.sound)])
    assert rig.pipeline.stats.gap_samples == PACKET
    assert len(rig.ticks) == (48_000 - AHEAD) // FRAME + 1
    lateness = (rig.at[-1] - rig.at[0]) - (len(rig.ticks) - 1) * 40_000_000
    assert lateness == 0, "latency after a loss equals latency before it"


def test_sound_that_comes_after_its_place_was_filled_is_dropped() -> None:
    rig, signal = Rig(), noise(48_000)
    rig.talk(signal[:9600])
    rig.wait(150)
    filled = rig.pipeline.stats.filled_samples
    assert filled > 0
    assert rig.push(signal[9600 : 9600 + PACKET], 9600) == []
    assert rig.pipeline.stats.late_samples == PACKET
    rig.push(signal[:PACKET], 0)
    rig.check_line()
    assert not rig.sound[9600 : 9600 + PACKET].any()


def test_a_packet_that_is_partly_late_is_used_from_the_head_on() -> None:
    rig, signal = Rig(), noise(48_000)
    rig.talk(signal[:9600])
    head = rig.pipeline.session_sample
    rig.push(signal[head - 300 : head + 5000], head - 300)
    assert rig.pipeline.stats.late_samples == 300
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])


def test_duplicates_change_nothing() -> None:
    rig, signal = Rig(), noise(24_000)
    for start in range(0, 24_000, PACKET):
        rig.push(signal[start : start + PACKET], start)
        rig.push(signal[start : start + PACKET], start)
        rig.wait(20)
    rig.check_line()
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])


loss = st.lists(st.tuples(st.booleans(), st.integers(0, 45)), min_size=60, max_size=60)


@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(loss)
def test_any_loss_and_jitter_keeps_the_line_whole(plan: list[tuple[bool, int]]) -> None:
    rig, signal = Rig(), noise(60 * PACKET)
    # The first packet comes first; never is everything lost for a second.
    arrivals = [
        (20 * (i + 1) + (jitter if i else 0), i)
        for i, (lost, jitter) in enumerate(plan)
        if not lost or i % 8 == 0
    ]
    now = 0
    for at, i in sorted(arrivals):
        rig.wait(at - now)
        now = at
        rig.push(signal[i * PACKET : (i + 1) * PACKET], i * PACKET)
    rig.wait(200)
    rig.check_line()
    stats = rig.pipeline.stats
    assert stats.reanchors == 0
    sound = rig.sound[: len(signal)]
    heard = sound != 0
    np.testing.assert_array_equal(sound[heard], signal[: len(sound)][heard])
    line = stats.audio_samples + stats.gap_samples + stats.filled_samples
    assert line == rig.pipeline.session_sample


def test_without_a_microphone_ticks_come_on_time_from_the_start() -> None:
    rig = Rig()
    assert rig.poll() == []
    start = rig.clock()
    rig.pipeline.start()
    rig.wait(1000)
    rig.check_line()
    due = [start + (40 * f + 80) * 1_000_000 for f in range(len(rig.ticks))]
    assert rig.at == due
    assert not rig.sound.any()
    assert rig.pipeline.stats.filled_samples == rig.pipeline.session_sample


def test_a_stalled_sender_is_filled_60_ms_after_due_then_at_once() -> None:
    rig = Rig()
    rig.talk(noise(48_000))
    count, last = len(rig.ticks), rig.at[-1]
    rig.wait(3000)
    rig.check_line()
    assert rig.at[count] == last + 40_000_000 + DEADLINE_NS
    assert rig.at[-1] - last == (len(rig.ticks) - count) * 40_000_000, "on time after a second"
    assert not rig.ticks[-1].audio.any()


@pytest.mark.parametrize("capture", [48_000, 48_000 + 5 * 48_000 + 777])
def test_a_microphone_that_comes_back_is_heard_at_once(capture: int) -> None:
    rig, signal = Rig(), noise(96_000)
    rig.talk(signal[:48_000])
    rig.wait(5000)
    before = len(rig.ticks)
    rig.talk(signal[48_000:], capture)
    rig.check_line()
    assert rig.pipeline.stats.reanchors == 1
    assert rig.pipeline.stats.late_samples == 0
    voice = np.concatenate([t.audio for t in rig.ticks[before:]])
    assert np.count_nonzero(voice) > 40_000


@pytest.mark.parametrize("step_ms", [90, 150, 400])
def test_a_path_that_got_slower_is_followed(step_ms: int) -> None:
    rig, signal = Rig(), noise(48_000 * 6)
    rig.talk(signal[:48_000])
    rig.wait(step_ms)
    rig.talk(signal[48_000:], 48_000)
    rig.check_line()
    stats = rig.pipeline.stats
    assert stats.late_samples <= 48_000 // 2, "not dropped for ever"
    end = rig.ticks[-50:]
    voice = np.concatenate([t.audio for t in end])
    assert (voice != 0).mean() > 0.99
    assert np.diff(rig.at[-50:]).max() == 40_000_000


def test_a_path_that_got_faster_is_followed_at_once() -> None:
    rig, signal = Rig(), noise(48_000 * 3)
    rig.talk(signal[:48_000])
    rig.push(signal[48_000:52_800], 48_000)
    rig.talk(signal[52_800:], 52_800)
    rig.check_line()
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])


@pytest.mark.parametrize("ppm", [-600, 600])
def test_a_microphone_with_a_drifting_clock_is_followed(ppm: int) -> None:
    rig, signal = Rig(), noise(PACKET)
    for i in range(50 * 120):
        rig.wait(20 * (1 + ppm / 1e6))
        rig.push(signal, i * PACKET)
    stats = rig.pipeline.stats
    assert stats.filled_samples == 0
    assert stats.late_samples == 0


@pytest.mark.parametrize("jump", [10_000_000, -10_000_000])
def test_a_jump_of_the_senders_numbers_is_a_new_start_not_a_gap(jump: int) -> None:
    rig, signal = Rig(), noise(96_000)
    rig.talk(signal[:48_000])
    rig.talk(signal[48_000:], 48_000 + jump)
    rig.check_line()
    assert rig.pipeline.stats.reanchors == 1
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])


def test_a_loop_that_stood_still_catches_up_by_a_bounded_number_of_frames() -> None:
    rig = Rig()
    rig.pipeline.start()
    rig.wait(400)
    before = len(rig.ticks)
    rig.clock.advance(60_000)
    rig.poll()
    assert len(rig.ticks) - before == CATCH_UP_FRAMES
    assert rig.pipeline.stats.skipped_ms > 55_000
    rig.wait(1000)
    assert 24 <= len(rig.ticks) - before - CATCH_UP_FRAMES <= 26
    rig.check_line()
