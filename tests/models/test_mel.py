"""The log-mel front end: streaming = whole, no look-ahead, the published formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.mel import StreamingMel, log_mel, mel_filters
from models.rates import MEL_BANDS, MEL_HOP, MEL_WINDOW

pytestmark = pytest.mark.unit


def speech_like(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(count) / 16_000
    tone = np.sin(2 * np.pi * 140 * t) * (0.3 + 0.2 * np.sin(2 * np.pi * 3 * t))
    return (tone + 0.02 * rng.standard_normal(count)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 7, 159, 160, 161, 480, 640, 1279, 4000])
def test_streamed_equals_whole_at_every_chunk_size(chunk: int) -> None:
    samples = speech_like(6_000 if chunk > 1 else 2_000)
    stream = StreamingMel()
    parts = [stream.push(samples[i : i + chunk]) for i in range(0, len(samples), chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), log_mel(samples))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=12))
def test_streamed_equals_whole_at_mixed_chunk_sizes(chunks: list[int]) -> None:
    samples = speech_like(sum(chunks))
    stream, start, parts = StreamingMel(), 0, []
    for chunk in chunks:
        parts.append(stream.push(samples[start : start + chunk]))
        start += chunk
    np.testing.assert_array_equal(np.concatenate(parts), log_mel(samples))


def test_a_frame_depends_on_its_window_only() -> None:
    samples = speech_like(8_000)
    before = log_mel(samples)
    frame = 20
    changed = samples.copy()
    changed[MEL_HOP * (frame + 1) :] += 0.5
    changed[: MEL_HOP * (frame + 1) - MEL_WINDOW] -= 0.5
    after = log_mel(changed)
    np.testing.assert_array_equal(after[frame], before[frame])
    assert np.abs(after[frame + 1] - before[frame + 1]).max() > 0.01


def test_one_frame_equals_the_formula() -> None:
    samples = speech_like(MEL_WINDOW)
    hann = np.hanning(MEL_WINDOW + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(samples * 0.5 * np.sqrt(hann)))
    level = 20 * np.log10(np.maximum(1e-5, spectrum @ mel_filters())) - 20
    wanted = np.clip((level + 100) / 100, 0, 1)
    np.testing.assert_allclose(log_mel(samples)[-1], wanted, atol=1e-5)


def test_filters_cover_the_band_and_nothing_else() -> None:
    filters = mel_filters()
    assert filters.shape == (MEL_WINDOW // 2 + 1, MEL_BANDS)
    hz = np.linspace(0, 8000, len(filters))
    assert not filters[(hz < 125) | (hz > 7600)].any()
    assert (filters.sum(0) > 0).all()
    centres = (filters * hz[:, None]).sum(0) / filters.sum(0)
    assert (np.diff(centres) > 0).all()


def test_silence_is_the_floor_and_shape_is_checked() -> None:
    assert not log_mel(np.zeros(1600, np.float32)).any()
    with pytest.raises(ValueError, match="one-dimensional"):
        StreamingMel().push(np.zeros((2, 160), np.float32))
