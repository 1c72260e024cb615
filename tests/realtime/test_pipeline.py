"""One session's media logic: sound and picture stay together whatever the network does."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.codes import MotionCode
from models.config import ModelConfig
from models.runtime.engine import MotionReading
from realtime.pipeline import (
    ALLOWED_SOURCES,
    SourceError,
)
from realtime.sources import Clip
from realtime.worker import MotionResult, RenderedFrame, RenderWorker
from tests.fakes import (
    FakeEngine,
    FakeTracker,
    fake_landmarks,
    read_face,
)
from tests.realtime.pipeline_rig import AHEAD, FRAME, PACKET, Rig, noise

pytestmark = pytest.mark.unit


# --- the usual way ----------------------------------------------------------------------


def test_a_frame_leaves_with_exactly_its_own_sound_when_its_window_is_full() -> None:
    rig, signal = Rig(), noise(48_000)
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
    signal = noise(FRAME * 8)
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
    rig, signal = Rig(), noise(9600)
    both = np.stack([signal, signal], 1)
    rig.push(both[:4800], 123_456_789)
    frame = av.AudioFrame.from_ndarray(both[4800:].reshape(1, -1), "s16", "stereo")
    frame.sample_rate = 48_000
    rig.push(frame, 123_456_789 + 4800)  # type: ignore[arg-type]
    rig.check_line()
    np.testing.assert_array_equal(rig.sound, signal[: len(rig.sound)])
    assert rig.push(np.zeros(0, np.int16), 0) == []


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
        rig.talk(noise(FRAME * 4), rig.pipeline.session_sample)
        assert {s.factor: s.source for s in rig.pipeline.states()}[factor] == kind  # type: ignore[index]


def test_two_sessions_share_nothing() -> None:
    one, two = Rig(), Rig()
    signal = noise(48_000)
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
    rig.talk(noise(9600), 5_000_000)
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
