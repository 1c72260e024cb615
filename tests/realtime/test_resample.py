"""48 to 16 kHz: right place in time, right signal, the same for every packet size."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from realtime.resample import DELAY_MS, Resampler48To16, to_mono

pytestmark = pytest.mark.unit


def _noise(count: int) -> NDArray[np.int16]:
    return (np.random.default_rng(3).normal(size=count) * 4000).astype(np.int16)


def _in_chunks(signal: NDArray[np.int16], sizes: list[int]) -> NDArray[np.float32]:
    resampler, out, start, i = Resampler48To16(), [], 0, 0
    while start < len(signal):
        size = sizes[i % len(sizes)]
        out.append(resampler.push(signal[start : start + size]))
        start, i = start + size, i + 1
        assert sum(map(len, out)) == min(start, len(signal)) // 3
    return np.concatenate(out)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
def test_chunks_do_not_matter(sizes: list[int]) -> None:
    signal = _noise(4801)
    np.testing.assert_array_equal(_in_chunks(signal, sizes), _in_chunks(signal, [len(signal)]))


def test_an_impulse_stays_where_it_was() -> None:
    signal = np.zeros(9600, np.int16)
    signal[4800] = 30000
    out = _in_chunks(signal, [480])
    late_ms = (int(np.abs(out).argmax()) - 4800 // 3) / 16
    assert late_ms == pytest.approx(DELAY_MS)
    assert abs(late_ms) < 1.0


def test_a_chirp_stays_where_it_was() -> None:
    t48, t16 = np.arange(48_000) / 48_000, np.arange(16_000) / 16_000

    def chirp(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return 0.5 * np.sin(2 * np.pi * (200 * t + 2400 * t * t))

    out = _in_chunks((chirp(t48) * 32767).astype(np.int16), [960])
    wanted = chirp(t16)
    lags = range(-32, 33)
    match = [float(np.dot(out[100:-100], np.roll(wanted, lag)[100:-100])) for lag in lags]
    assert abs(lags[int(np.argmax(match))] / 16) < 1.0
    shifted = chirp(t16 - DELAY_MS / 1000)
    assert np.abs(out[200:15_000] - shifted[200:15_000]).max() < 0.05


def test_voice_passes_and_aliases_do_not() -> None:
    t = np.arange(24_000) / 48_000
    level = {}
    for hz in (300, 4000, 6000, 10_000, 14_000):
        out = _in_chunks((16_000 * np.sin(2 * np.pi * hz * t)).astype(np.int16), [480])
        level[hz] = 20 * np.log10(out[1000:].std() / (16_000 / 32_768 / 2**0.5) + 1e-9)
    assert all(abs(level[hz]) < 0.5 for hz in (300, 4000, 6000))
    assert all(level[hz] < -40 for hz in (10_000, 14_000))


def test_stereo_and_audio_frames_are_mixed_to_mono() -> None:
    left, right = _noise(960), np.zeros(960, np.int16)
    both = np.stack([left, right], 1)
    expected = (left.astype(np.int32) >> 1).astype(np.int16)
    np.testing.assert_array_equal(to_mono(both), expected)
    for name, data in (("s16", both.reshape(1, -1)), ("s16p", both.T)):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), name, "stereo")
        frame.sample_rate = 48_000
        np.testing.assert_array_equal(to_mono(frame), expected)
    mono = av.AudioFrame.from_ndarray(left[None], "s16", "mono")
    mono.sample_rate = 48_000
    np.testing.assert_array_equal(to_mono(mono), left)


def test_other_audio_is_refused() -> None:
    resampler = Resampler48To16()
    with pytest.raises(ValueError, match="int16"):
        resampler.push(np.zeros(10, np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="int16"):
        resampler.push(np.zeros((10, 6), np.int16))
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 441), np.int16), "s16", "mono")
    frame.sample_rate = 44_100
    with pytest.raises(ValueError, match="48000 Hz"):
        resampler.push(frame)
    assert len(resampler.push(np.zeros(0, np.int16))) == 0


def test_reset_forgets() -> None:
    resampler, signal = Resampler48To16(), _noise(1500)
    first = resampler.push(signal)
    resampler.reset()
    np.testing.assert_array_equal(resampler.push(signal), first)
