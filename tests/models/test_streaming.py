"""Streaming state: chunk sizes do not matter, nothing looks ahead, windows are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import ModelConfig
from models.mel import log_mel
from models.rates import FRAME_SAMPLES_16K, MEL_BANDS
from models.streaming import AudioWindow, ExpressionWindow, Loudness, LoudnessConfig, OneEuro

pytestmark = pytest.mark.unit


def noise(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.uniform(0.01, 0.4, count // 800 + 1), 800)[:count]
    return (rng.standard_normal(count) * envelope).astype(np.float32)


def windows(config: ModelConfig, samples: np.ndarray, chunk: int) -> list[tuple[int, np.ndarray]]:
    stream = AudioWindow(config)
    out = []
    for i in range(0, len(samples), chunk):
        out += stream.push(samples[i : i + chunk])
    return out


@pytest.mark.parametrize("right", [0, 1, 2])
@pytest.mark.parametrize("chunk", [160, 320, 441, 640, 5000])
def test_windows_do_not_depend_on_chunks(right: int, chunk: int) -> None:
    config = ModelConfig(right_frames=right)
    samples = noise(16_000)
    whole = windows(config, samples, len(samples))
    streamed = windows(config, samples, chunk)
    assert [f for f, _ in streamed] == [f for f, _ in whole] == list(range(25 - right))
    for (_, a), (_, b) in zip(streamed, whole, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("right", [0, 1, 2])
def test_a_window_comes_with_the_sample_that_ends_it(right: int) -> None:
    config = ModelConfig(right_frames=right)
    stream = AudioWindow(config)
    needed = FRAME_SAMPLES_16K * (1 + right)
    assert config.lookahead_ms * 16 == needed
    assert stream.push(noise(needed - 1)) == []
    assert [f for f, _ in stream.push(noise(1))] == [0]


def test_a_window_holds_the_frames_it_names() -> None:
    config = ModelConfig()
    samples = noise(16_000)
    levelled = Loudness().push(log_mel(samples))
    for frame, window in windows(config, samples, 1000):
        first = 4 * frame - config.left_mel
        wanted = levelled[max(first, 0) : 4 * frame + 4 + 4 * config.right_frames]
        padding = np.zeros((max(-first, 0), MEL_BANDS), np.float32)
        np.testing.assert_array_equal(window, np.concatenate([padding, wanted]))


def test_reset_starts_a_new_signal() -> None:
    stream = AudioWindow(ModelConfig())
    stream.push(noise(7777, seed=1))
    stream.reset()
    fresh = AudioWindow(ModelConfig()).push(noise(4000))
    for (f, a), (g, b) in zip(stream.push(noise(4000)), fresh, strict=True):
        assert f == g
        np.testing.assert_array_equal(a, b)


def test_loudness_brings_quiet_and_loud_speech_together() -> None:
    samples = noise(16_000 * 12, seed=2)
    levels = []
    for gain_db in (-14, 0, 8):
        mel = Loudness().push(log_mel(samples * np.float32(10 ** (gain_db / 20))))
        levels.append(float(mel[-300:].mean()))
    assert max(levels) - min(levels) < 0.03, "0.03 is 3 dB"


def test_loudness_leaves_silence_quiet() -> None:
    hiss = (np.random.default_rng(0).standard_normal(16_000 * 30) * 1e-4).astype(np.float32)
    config = LoudnessConfig()
    mel = log_mel(hiss)
    gained = Loudness(config).push(mel)
    assert (gained - mel).max() <= config.max_gain_db / 100 + 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_expression_window_is_the_trailing_mean(length: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)
    window = ExpressionWindow(length, 3)
    for i, code in enumerate(codes):
        wanted = codes[max(0, i - length + 1) : i + 1].mean(0)
        np.testing.assert_allclose(window.push(code), wanted, atol=1e-5)


def test_expression_window_does_not_drift() -> None:
    window = ExpressionWindow(13, 1)
    rng = np.random.default_rng(0)
    for _ in range(50_000):
        window.push((rng.standard_normal(1) * 1e4).astype(np.float32))
    for _ in range(13):
        mean = window.push(np.zeros(1, np.float32))
    assert mean[0] == 0


def test_expression_window_refuses_no_length() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ExpressionWindow(0, 3)


def test_one_euro_smooths_rest_and_follows_motion() -> None:
    rng = np.random.default_rng(0)
    still = OneEuro()
    jitter = rng.normal(0, 0.01, (200, 1)).astype(np.float32)
    resting = np.array([still.push(v)[0] for v in jitter])
    assert resting[50:].std() < 0.5 * jitter[50:].std()
    quick = OneEuro()
    ramp = np.linspace(0, 2, 50, dtype=np.float32)[:, None]
    followed = np.array([quick.push(v)[0] for v in ramp])
    assert abs(followed[-1] - 2) < 0.08
