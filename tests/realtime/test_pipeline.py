"""One session's media logic: sound and picture stay together whatever the network does."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.codes import MotionCode
from models.config import ModelConfig
from models.runtime.engine import MotionReading
from realtime.pipeline import (
    ALLOWED_SOURCES,
    CATCH_UP_FRAMES,
    DEADLINE_NS,
    Pipeline,
    SourceError,
    Tick,
)
from realtime.sources import Clip
from realtime.worker import MotionResult, RenderedFrame, RenderWorker
from tests.fakes import (
    FakeClock,
    FakeEngine,
    FakeTracker,
    fake_landmarks,
    fake_portrait,
    read_face,
)

pytestmark = pytest.mark.unit

Pcm = NDArray[np.int16]
CONFIG = ModelConfig(image_size=64)
FRAME = 1920
AHEAD = FRAME * (1 + CONFIG.right_frames)
PACKET = 960
MS = 48


def _noise(count: int, seed: int = 1) -> Pcm:
    return (np.random.default_rng(seed).normal(size=count) * 3000).astype(np.int16)


class Rig:
    """A pipeline, a clock, and a sender whose packets take `delay_ms` to come."""

    def __init__(self, **options: object) -> None:
        self.clock = FakeClock()
        self.pipeline = Pipeline(
            fake_portrait(), CONFIG, size=64, clock=self.clock, **options  # type: ignore[arg-type]
        )  # fmt: skip
        self.ticks: list[Tick] = []
        self.at: list[int] = []

    def push(self, pcm: Pcm, capture: int) -> list[Tick]:
        return self._keep(self.pipeline.push_audio(pcm, capture))

    def poll(self) -> list[Tick]:
        return self._keep(self.pipeline.poll())

    def _keep(self, ticks: list[Tick]) -> list[Tick]:
        self.ticks += ticks
        self.at += [self.clock()] * len(ticks)
        return ticks

    def wait(self, ms: float) -> None:
        """Let time pass, polling exactly when the pipeline asks for it."""
        end = self.clock() + round(ms * 1e6)
        while (deadline := self.pipeline.next_deadline_ns()) <= end:
            self.clock.advance(max(0, deadline - self.clock()) / 1e6)
            self.poll()
        self.clock.advance((end - self.clock()) / 1e6)

    def talk(self, signal: Pcm, start: int = 0, packet: int = PACKET) -> None:
        """Packets in real time: each is sent when its last sample is taken."""
        for begin in range(0, len(signal), packet):
            self.wait(packet / MS)
            self.push(signal[begin : begin + packet], start + begin)

    @property
    def sound(self) -> Pcm:
        return np.concatenate([t.audio for t in self.ticks])

    def check_line(self) -> None:
        """Ticks are numbered without a hole, each with exactly its own sound."""
        assert [t.frame_index for t in self.ticks] == list(range(len(self.ticks)))
        for tick in self.ticks:
            assert tick.audio.shape == (FRAME,)
            assert tick.audio.dtype == np.int16
            assert tick.pts_ticks == 3600 * tick.frame_index
            assert tick.audio_sample == FRAME * tick.frame_index
            assert tick.job.frame_index == tick.frame_index
            assert tick.job.mel_TM.shape == (CONFIG.mel_window, 80)


# --- the usual way ----------------------------------------------------------------------


def test_a_frame_leaves_with_exactly_its_own_sound_when_its_window_is_full() -> None:
    rig, signal = Rig(), _noise(48_000)
    rig.talk(signal)
    rig.check_line()
    assert len(rig.ticks) == (48_000 - AHEAD) // FRAME + 1
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])
    first_packet = rig.at[0] - (AHEAD // PACKET - 1) * 20_000_000
    for tick, at in zip(rig.ticks, rig.at, strict=True):
        needed = tick.frame_index * FRAME + AHEAD
        assert at == first_packet + (needed - PACKET) * 1_000_000_000 // 48_000
        assert tick.ready_ns == at
    stats = rig.pipeline.stats
    assert stats.audio_samples == 48_000
    assert (stats.gap_samples, stats.filled_samples, stats.late_samples) == (0, 0, 0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=6))
def test_packet_sizes_do_not_matter(sizes: list[int]) -> None:
    signal = _noise(FRAME * 8)
    whole, parts = Rig(), Rig()
    whole.push(signal, 0)
    start = i = 0
    while start < len(signal):
        size = sizes[i % len(sizes)]
        parts.push(signal[start : start + size], start)
        start, i = start + size, i + 1
    parts.check_line()
    assert len(parts.ticks) == len(whole.ticks) == 7
    for a, b in zip(parts.ticks, whole.ticks, strict=True):
        np.testing.assert_array_equal(a.audio, b.audio)
        np.testing.assert_array_equal(a.job.mel_TM, b.job.mel_TM)
        np.testing.assert_array_equal(a.job.snapshot.base.concat(), b.job.snapshot.base.concat())
        assert a.job.snapshot.mic_weight == b.job.snapshot.mic_weight


def test_the_senders_numbers_may_start_anywhere_and_stereo_is_mixed() -> None:
    rig, signal = Rig(), _noise(9600)
    both = np.stack([signal, signal], 1)
    rig.push(both[:4800], 123_456_789)
    frame = av.AudioFrame.from_ndarray(both[4800:].reshape(1, -1), "s16", "stereo")
    frame.sample_rate = 48_000
    rig.push(frame, 123_456_789 + 4800)  # type: ignore[arg-type]
    rig.check_line()
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])
    assert rig.push(np.zeros(0, np.int16), 0) == []


# --- what the network does --------------------------------------------------------------


def test_packets_out_of_order_are_put_in_order() -> None:
    rig, signal = Rig(), _noise(48_000)
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
    rig, signal = Rig(), _noise(48_000)
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
    rig, signal = Rig(), _noise(48_000)
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
    rig, signal = Rig(), _noise(48_000)
    rig.talk(signal[:9600])
    head = rig.pipeline.session_sample
    rig.push(signal[head - 300 : head + 5000], head - 300)
    assert rig.pipeline.stats.late_samples == 300
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])


def test_duplicates_change_nothing() -> None:
    rig, signal = Rig(), _noise(24_000)
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
    rig, signal = Rig(), _noise(60 * PACKET)
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
    rig.talk(_noise(48_000))
    count, last = len(rig.ticks), rig.at[-1]
    rig.wait(3000)
    rig.check_line()
    assert rig.at[count] == last + 40_000_000 + DEADLINE_NS
    assert rig.at[-1] - last == (len(rig.ticks) - count) * 40_000_000, "on time after a second"
    assert not rig.ticks[-1].audio.any()


@pytest.mark.parametrize("capture", [48_000, 48_000 + 5 * 48_000 + 777])
def test_a_microphone_that_comes_back_is_heard_at_once(capture: int) -> None:
    rig, signal = Rig(), _noise(96_000)
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
    rig, signal = Rig(), _noise(48_000 * 6)
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
    rig, signal = Rig(), _noise(48_000 * 3)
    rig.talk(signal[:48_000])
    rig.push(signal[48_000:52_800], 48_000)
    rig.talk(signal[52_800:], 52_800)
    rig.check_line()
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])


@pytest.mark.parametrize("ppm", [-600, 600])
def test_a_microphone_with_a_drifting_clock_is_followed(ppm: int) -> None:
    rig, signal = Rig(), _noise(PACKET)
    for i in range(50 * 120):
        rig.wait(20 * (1 + ppm / 1e6))
        rig.push(signal, i * PACKET)
    stats = rig.pipeline.stats
    assert stats.filled_samples == 0
    assert stats.late_samples == 0


@pytest.mark.parametrize("jump", [10_000_000, -10_000_000])
def test_a_jump_of_the_senders_numbers_is_a_new_start_not_a_gap(jump: int) -> None:
    rig, signal = Rig(), _noise(96_000)
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


# --- mouth, pause, sources --------------------------------------------------------------


def _loud(lip: float = 2.0) -> NDArray[np.float32]:
    return np.full(16, lip, np.float32)


def test_silence_shuts_the_mouth_within_about_120_ms() -> None:
    rig = Rig()
    rate = np.arange(48_000) / 48_000
    voice = sum(np.sin(2 * np.pi * 140 * k * rate) / k for k in range(1, 20))
    voice = voice * (1 + 0.5 * np.sin(2 * np.pi * 4 * rate)) * 3000
    signal = np.concatenate([voice, np.zeros(48_000)]).astype(np.int16)
    rig.talk(signal)
    opening = np.array([t.job.snapshot.resolve(_loud()).lip[0] for t in rig.ticks])
    assert opening[5:24].min() == 2.0
    # The voice ends with frame 24; frame 28 starts 120 ms after frame 25 did.
    assert (opening[28:] == 0.0).all(), opening[22:32]
    assert (np.diff(opening[22:32]) <= 0).all()


def test_pause_returns_silence_and_idles() -> None:
    rig, signal = Rig(), np.full(96_000, 8000, np.int16)
    rig.talk(signal[:48_000])
    rig.pipeline.set_paused(True)
    assert rig.pipeline.paused
    count = len(rig.ticks)
    rig.talk(signal[48_000:72_000], 48_000)
    paused = rig.ticks[count:]
    assert not np.concatenate([t.audio for t in paused[1:]]).any()
    assert not paused[0].audio[480:].any()
    assert np.abs(np.diff(paused[0].audio.astype(int))).max() < 50, "no click"
    assert paused[-1].job.snapshot.mic_weight == 0.0
    rig.pipeline.set_paused(False)
    rig.talk(signal[72_000:], 72_000)
    assert (rig.ticks[-1].audio == 8000).all()
    rig.check_line()


def test_sources_are_checked_with_a_sentence() -> None:
    clip = Clip(np.zeros((30, 58), np.float32), "wave")
    pipeline = Rig(clips={"wave": clip}, sources={"pose": ("clip", "wave")}).pipeline
    states = {s.factor: s for s in pipeline.states()}
    assert (states["pose"].source, states["pose"].name) == ("clip", "wave")
    assert states["lip"].source == "mic"
    pipeline.set_source("exp", "preset", "smile")
    pipeline.set_sliders("pose", {"yaw": 0.5})
    pipeline.set_gain("exp", 0.5)
    for bad in (
        ("pose", "mic", None),
        ("lip", "preset", "smile"),
        ("exp", "preset", "frobnicate"),
        ("exp", "preset", None),
        ("exp", "clip", "gone"),
    ):
        with pytest.raises(SourceError, match=r"\.$"):
            pipeline.set_source(*bad)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="no slider called 'nose'"):
        pipeline.set_sliders("pose", {"nose": 1.0})
    with pytest.raises(SourceError):
        Rig(sources={"lip": ("slider", None)})
    states = {s.factor: s for s in pipeline.states()}
    assert (states["exp"].source, states["exp"].name, states["exp"].gain) == (
        "preset", "smile", 0.5,
    )  # fmt: skip


@pytest.mark.parametrize("factor", list(ALLOWED_SOURCES))
def test_every_allowed_source_drives(factor: str) -> None:
    clip = Clip(np.zeros((30, 58), np.float32), "wave")
    rig = Rig(clips={"wave": clip})
    names = {"clip": "wave", "preset": "neutral"}
    for kind in ALLOWED_SOURCES[factor]:  # type: ignore[index]
        rig.pipeline.set_source(factor, kind, names.get(kind), 100)  # type: ignore[arg-type]
        rig.talk(_noise(FRAME * 4), rig.pipeline.session_sample)
        assert {s.factor: s.source for s in rig.pipeline.states()}[factor] == kind  # type: ignore[index]


def test_two_sessions_share_nothing() -> None:
    one, two = Rig(), Rig()
    signal = _noise(48_000)
    one.talk(signal[:24_000])
    two.talk(signal[:24_000])
    one.pipeline.set_source("exp", "preset", "grin", 0)
    one.pipeline.set_sliders("pose", {"yaw": 1.0})
    one.pipeline.set_paused(True)
    reading = MotionReading(MotionCode(), fake_landmarks())
    one.pipeline.on_motion(MotionResult(reading, 0, {}))
    alone = Rig()
    alone.talk(signal)
    two.talk(signal[24_000:], 24_000)
    for a, b in zip(two.ticks, alone.ticks, strict=True):
        np.testing.assert_array_equal(a.job.snapshot.base.concat(), b.job.snapshot.base.concat())
        np.testing.assert_array_equal(a.audio, b.audio)
    assert two.pipeline.webcam.status == "off"


def test_webcam_pictures_are_stamped_on_the_session_clock() -> None:
    rig = Rig()
    picture = np.zeros((4, 4, 3), np.uint8)
    assert rig.pipeline.push_webcam(picture).capture_48k == 0
    rig.talk(_noise(9600), 5_000_000)
    assert rig.pipeline.push_webcam(picture, 5_004_800).capture_48k == 4800
    rig.clock.advance(10)
    job = rig.pipeline.push_webcam(picture)
    assert job.capture_48k == 9600 + 480, "as old as the sound that comes now"
    assert job.arrived_ns == rig.clock()
    rig.clock.advance(60_000)
    assert rig.pipeline.push_webcam(picture).capture_48k == 9600 + 48_000, "the loop stood still"
    assert rig.pipeline.stats.webcam_frames == 4


# --- with the worker: from sound to pixels ----------------------------------------------


class Viewer:
    def __init__(self) -> None:
        self.mouth: dict[int, float] = {}

    def on_frame(self, frame: RenderedFrame) -> None:
        rgb = cv2.cvtColor(frame.i420, cv2.COLOR_YUV2RGB_I420)
        self.mouth[frame.frame_index] = read_face(np.asarray(rgb, np.uint8)).mouth

    def on_held(self, frame: object) -> None:
        raise AssertionError("nothing is late here")

    on_motion = on_held

    def on_error(self, error: Exception) -> None:
        raise error


def test_the_drawn_mouth_moves_with_the_returned_sound(speech_48k: Path) -> None:
    rig, viewer = Rig(), Viewer()
    config = ModelConfig(image_size=64)
    worker = RenderWorker(
        lambda: FakeEngine(config=config), make_tracker=FakeTracker, clock=rig.clock  # type: ignore[arg-type]
    )  # fmt: skip
    worker.load()
    box = worker.open(viewer)
    with wave.open(str(speech_48k)) as file:
        signal = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    rig.pipeline.set_gain("pose", 0.0)
    for begin in range(0, len(signal), PACKET):
        rig.wait(20)
        for tick in rig.push(signal[begin : begin + PACKET], begin):
            box.submit(tick.job)
            while worker.step():
                pass
    frames = sorted(viewer.mouth)
    assert frames == [t.frame_index for t in rig.ticks]
    mouth = np.array([viewer.mouth[f] for f in frames])
    loud = np.array([float(np.abs(t.audio.astype(int)).mean()) for t in rig.ticks])
    loud = np.log10(loud + 10.0)
    lags = range(-4, 5)
    match = [float(np.corrcoef(np.roll(mouth, -lag)[8:-8], loud[8:-8])[0, 1]) for lag in lags]
    # The fake mouth shows the energy of mel windows that reach 70 ms into the past.
    assert lags[int(np.argmax(match))] in (0, 1), match
    assert max(match) > 0.7
    silent = slice(round(4.4 * 25), round(5.3 * 25))
    assert mouth[silent].max() == 0.0
