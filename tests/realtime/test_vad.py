"""The speech gate: opens for speech, closes in silence, never chatters."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codes import Array
from realtime.vad import Emphasis, SpeechGate

pytestmark = pytest.mark.unit


def _read(path: Path) -> Array:
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return pcm.astype(np.float32) / np.float32(32_768)


def _gains(gate: SpeechGate, samples: Array, chunk: int = 640) -> Array:
    out = []
    for start in range(0, len(samples) // chunk * chunk, chunk):
        gate.push(samples[start : start + chunk])
        out.append(gate.gain_at(start + chunk))
    return np.array(out, np.float32)


@pytest.mark.parametrize("frame_ms", [10, 20, 30])
def test_silence_inside_speech_closes_the_mouth(speech_16k: Path, frame_ms: int) -> None:
    gains = _gains(SpeechGate(frame_ms=frame_ms), _read(speech_16k))  # type: ignore[arg-type]
    seconds = (np.arange(len(gains)) + 1) / 25
    # The voice itself pauses for 180 ms at 2.15 s; its stops (40-90 ms) must not shut the mouth.
    talking = (seconds > 0.3) & (seconds < 4.5) & ~((seconds > 2.2) & (seconds < 2.5))
    assert gains[talking].min() > 0.5
    assert gains[(seconds > 4.95) & (seconds < 5.95)].max() == 0.0
    assert gains[(seconds > 6.2) & (seconds < 8.8)].min() > 0.5


def test_closing_takes_about_120_ms_and_is_monotonic(speech_16k: Path) -> None:
    gains = _gains(SpeechGate(), _read(speech_16k)[: int(5.5 * 16_000)], chunk=160)
    end = np.flatnonzero(gains > 0)[-1]
    start = np.flatnonzero(gains[:end] == 1.0)[-1]
    assert 100 <= (end - start) * 10 <= 130
    assert (np.diff(gains[start : end + 1]) <= 0).all()


def test_gain_never_jumps_and_does_not_chatter(speech_16k: Path) -> None:
    gains = _gains(SpeechGate(), _read(speech_16k), chunk=160)
    assert np.abs(np.diff(gains)).max() < 0.4
    crossings = np.flatnonzero(np.diff((gains > 0.5).astype(int)))
    assert len(crossings) <= 8
    assert np.diff(crossings).min() * 10 >= 40


def test_quiet_room_stays_shut() -> None:
    noise = np.random.default_rng(0).normal(size=32_000).astype(np.float32) * np.float32(1e-4)
    assert _gains(SpeechGate(), noise)[5:].max() == 0.0
    assert _gains(SpeechGate(), np.zeros(32_000, np.float32)).max() == 0.0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=6))
def test_chunks_do_not_matter(sizes: list[int]) -> None:
    rng = np.random.default_rng(5)
    samples = (rng.normal(size=16_000) * np.repeat(rng.uniform(0, 0.3, 10), 1600)).astype(
        np.float32
    )
    whole, parts = SpeechGate(), SpeechGate()
    loud, loud_parts = Emphasis(), Emphasis()
    whole.push(samples)
    loud.push(samples)
    start = i = 0
    while start < len(samples):
        size = sizes[i % len(sizes)]
        parts.push(samples[start : start + size])
        loud_parts.push(samples[start : start + size])
        start, i = start + size, i + 1
    for at in range(0, 16_001, 160):
        assert parts.gain_at(at) == whole.gain_at(at)
        assert loud_parts.at(at) == loud.at(at)


def test_only_known_samples_have_a_gain() -> None:
    gate = SpeechGate()
    gate.push(np.zeros(1600, np.float32))
    assert gate.gain_at(0) == 0.0
    with pytest.raises(ValueError, match="known up to 1600"):
        gate.gain_at(1760)
    gate.push(np.zeros(160_000, np.float32))
    with pytest.raises(ValueError, match="no level"):
        gate.gain_at(160)
    gate.reset()
    assert gate.gain_at(0) == 0.0


@pytest.mark.parametrize(
    "options",
    [{"frame_ms": 15}, {"onset_samples": -1}, {"release_samples": 0}, {"attack_samples": 0}],
)
def test_bad_times_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"webrtcvad takes|positive"):
        SpeechGate(**options)  # type: ignore[arg-type]


def test_emphasis_follows_the_voice(speech_16k: Path) -> None:
    samples, emphasis, out = _read(speech_16k), Emphasis(), []
    for start in range(0, len(samples) // 640 * 640, 640):
        emphasis.push(samples[start : start + 640])
        out.append(emphasis.at(start + 640))
    values, seconds = np.array(out), (np.arange(len(out)) + 1) / 25
    assert values.min() >= 0.0
    assert 0.3 < values[seconds < 4.5].max() <= 1.0
    assert values[(seconds > 5.8) & (seconds < 6.0)].max() < 0.05
    assert np.abs(np.diff(values)).max() < 0.25
