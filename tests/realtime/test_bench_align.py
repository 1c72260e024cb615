"""Latency by content: sounds and frames are put where they came from, exactly, in made-up time."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import ModelConfig
from models.rates import FRAME_SAMPLES_48K, WIRE_RATE_HZ
from realtime.bench.align import (
    FRAMES_PER_FIT,
    HeardLine,
    Shift,
    frame_starts,
    mouth_delays,
    nearest_shift,
    speech_onsets,
    voice_shifts,
)
from realtime.bench.errors import BenchError
from realtime.bench.media import ThinLine, Voice, load_pictures, load_voice, speech_like
from realtime.pipeline import Pipeline
from realtime.rtc.opus import OpusDecoder, OpusEncoder
from tests.conftest import DATA
from tests.fakes import FakeClock, fake_portrait

pytestmark = pytest.mark.unit

RATE = WIRE_RATE_HZ
SPEECH_AT = 1000.0


@pytest.fixture(scope="module")
def voice() -> Voice:
    return load_voice(DATA / "speech_b_48k.wav")


def heard_line(
    voice: Voice, seconds: float, delay_s: float, first: int, jump_at_s: float | None = None
) -> HeardLine:
    """An unbroken line of 10 ms blocks that begins 0.5 s before the first word; index 0 of
    what is said sits `delay_s` later in it. From `jump_at_s` on it is 0.1 s later still."""
    line = ThinLine()
    at, index = [], []
    for k in range(int((seconds + 1.0) * 100)):
        since = -0.5 + k * 0.01
        late = 0.1 if jump_at_s is not None and since > jump_at_s else 0.0
        pcm = voice.slice(round((since - delay_s - late) * RATE), 480)
        noise = np.random.default_rng(k).normal(0, 20, 480)
        line.append(np.asarray(pcm + noise, np.int16), first + k * 480)
        at.append(SPEECH_AT + since + 0.01)
        index.append(first + k * 480)
    return HeardLine(line.samples(), first, np.array(at), np.array(index, np.int64))


def test_the_voice_is_found_to_a_fraction_of_a_millisecond(voice: Voice) -> None:
    first, delay_s = 123_457, 0.137
    line = heard_line(voice, 24.0, delay_s, first)
    shifts = voice_shifts(line, SPEECH_AT, voice, 24.0)
    assert len(shifts) >= 9, "the recording is looped and silent for a while"
    expected = first + (0.5 + delay_s) * RATE
    for shift in shifts:
        assert shift.shift == pytest.approx(expected, abs=12), "a quarter of a millisecond"
        assert shift.likeness > 0.9


def test_a_change_on_the_way_shows_from_when_it_happened(voice: Voice) -> None:
    line = heard_line(voice, 24.0, 0.1, 0, jump_at_s=12.0)
    shifts = voice_shifts(line, SPEECH_AT, voice, 24.0)
    early = [s.shift for s in shifts if s.said < 10 * RATE]
    late = [s.shift for s in shifts if s.said > 12.2 * RATE]
    assert np.ptp(early) < 48
    assert np.median(late) - np.median(early) == pytest.approx(0.1 * RATE, abs=48)


def test_something_else_is_not_taken_for_the_voice(voice: Voice) -> None:
    other = Voice(voice.pcm[::-1].copy())
    line = heard_line(other, 12.0, 0.1, 0)
    assert voice_shifts(line, SPEECH_AT, voice, 12.0) == []
    silence = Voice(np.zeros(RATE, np.int16))
    assert voice_shifts(line, SPEECH_AT, silence, 12.0) == []


def test_the_nearest_shift_counts() -> None:
    shifts = [Shift(1000, 100.0, 1.0), Shift(3000, 200.0, 1.0), Shift(5000, 400.0, 1.0)]
    at = np.array([0, 1100, 2149, 2151, 4299, 4301, 9000])
    assert nearest_shift(shifts, at).tolist() == [100, 100, 100, 200, 200, 400, 400]
    assert nearest_shift(shifts[:1], at).tolist() == [100] * 7


def rms(pcm: np.ndarray) -> float:
    return float(np.sqrt(np.mean(pcm.astype(float) ** 2)))


@pytest.mark.parametrize("offset", [0, 31_338, -12_348, 250_002])
def test_frames_are_placed_by_how_loud_they_were(voice: Voice, offset: int) -> None:
    """`offset` is the heard index of the session's sample 0; pictures come 0.1 s after."""
    line = heard_line(voice, 16.0, 0.1, offset)
    rng = np.random.default_rng(1)
    numbers = np.arange(20, 400)
    # What the session heard at its sample s is in the line at s + offset.
    levels = {
        int(f): rms(voice.slice(int(f) * FRAME_SAMPLES_48K - round(0.6 * RATE), FRAME_SAMPLES_48K))
        * rng.normal(1.0, 0.05)
        for f in numbers
    }
    came = np.interp(numbers * FRAME_SAMPLES_48K + offset, line.index, line.at) + 0.1
    came += rng.uniform(0, 0.04, len(numbers))
    seen = [(float(at), int(f)) for at, f in zip(came, numbers, strict=True) if f % 7]
    starts = frame_starts(levels, seen, line)
    assert set(starts) == {f for _, f in seen}
    error = [starts[f] - (f * FRAME_SAMPLES_48K + offset) for f in starts]
    assert np.abs(error).max() < 0.002 * RATE


def test_frames_are_placed_in_a_line_with_holes(voice: Voice) -> None:
    """A tenth of what came back is silence in pieces of 60 ms: a lossy way, not a dead one."""
    line = heard_line(voice, 16.0, 0.1, 0)
    holes = np.random.default_rng(4).choice(len(line.samples) // 480, len(line.samples) // 4800)
    samples = line.samples.copy()
    for hole in holes:
        samples[hole * 480 : hole * 480 + 480] = 0
    line = HeardLine(samples, 0, line.at, line.index)
    said = round(0.6 * RATE)
    levels = {f: rms(voice.slice(f * FRAME_SAMPLES_48K - said, 1920)) for f in range(20, 400)}
    came = np.interp(np.arange(20, 400) * FRAME_SAMPLES_48K, line.index, line.at) + 0.1
    seen = [(float(at), f) for f, at in enumerate(came, 20)]
    starts = frame_starts(levels, seen, line)
    assert len(starts) > 300
    error = [starts[f] - f * FRAME_SAMPLES_48K for f in starts]
    assert np.abs(error).max() < 0.005 * RATE


def test_frames_of_another_voice_are_not_placed(voice: Voice) -> None:
    rng = np.random.default_rng(2)
    line = heard_line(voice, 10.0, 0.1, 0)
    levels = {f: float(v) for f, v in enumerate(rng.uniform(0, 3000, 200))}
    seen = [(SPEECH_AT + f * 0.04, f) for f in range(200)]
    assert frame_starts(levels, seen, line) == {}
    assert frame_starts({}, seen, line) == {}


def test_onsets_are_where_speech_follows_silence() -> None:
    pcm = np.zeros(6 * RATE, np.int16)
    tone = (8000 * np.sin(np.arange(RATE) * 0.05)).astype(np.int16)
    for start in (0.0, 2.0, 3.2, 4.6):
        at = int(start * RATE)
        pcm[at : at + RATE] = tone[: len(pcm) - at]
    # 3.0 to 3.2 s is no silence worth the name, 1.0 to 2.0 and 4.2 ... 4.6 differ.
    pcm[int(4.0 * RATE) : int(4.6 * RATE)] = 0
    assert speech_onsets(Voice(pcm), 6.0) == pytest.approx([2.0, 4.6], abs=0.011)
    assert speech_onsets(Voice(pcm), 12.0) == pytest.approx([2.0, 4.6, 8.0, 10.6], abs=0.011)
    assert speech_onsets(Voice(np.zeros(RATE, np.int16)), 3.0) == []
    assert len(speech_onsets(Voice(speech_like(12 * RATE)), 12.0)) >= 4


def test_the_mouth_has_moved_when_it_looks_different() -> None:
    at = np.arange(0, 8, 0.04)
    rng = np.random.default_rng(3)
    patches = rng.normal(100, 1.0, (len(at), 12, 12)).astype(np.float32)
    opens = (at >= 2.13) & (at < 2.6) | (at >= 4.61) & (at < 5.2)
    patches[opens, 4:8, 3:9] -= 60
    found, missed = mouth_delays([2.0, 4.5, 6.5], at, patches)
    assert missed == 1, "nothing moved after 6.5 s"
    assert [onset for onset, _ in found] == [2.0, 4.5]
    # The first picture that shows it; pictures come every 40 ms.
    assert found[0][1] == pytest.approx(160, abs=1)
    assert found[1][1] == pytest.approx(140, abs=1)


def test_voices_loop_and_begin_with_silence(voice: Voice) -> None:
    n = len(voice.pcm)
    assert n % FRAME_SAMPLES_48K == 0
    assert not voice.slice(-960, 960).any()
    assert np.array_equal(
        voice.slice(n - 100, 200), np.concatenate([voice.pcm[-100:], voice.pcm[:100]])
    )
    between = np.diff(voice.energy(np.array([n + 4000, n + 5920])))[0]
    assert between == pytest.approx(float((voice.slice(n + 4000, 1920).astype(float) ** 2).sum()))
    assert voice.energy(np.array([-1920]))[0] == 0.0


def test_a_thin_line_takes_blocks_of_any_length() -> None:
    pcm = (np.arange(6000) % 991).astype(np.int16)
    whole, pieces = ThinLine(), ThinLine()
    whole.append(pcm, 77)
    place = 0
    for length in (1, 5, 479, 7, 480, 1000, 4028):
        pieces.append(pcm[place : place + length], 77 + place)
        place += length
    assert place == 6000
    assert pieces.first == 77
    assert np.allclose(whole.samples(), pieces.samples())
    assert whole.samples()[10] == pytest.approx(pcm[60:66].mean())
    assert len(ThinLine().samples()) == 0


def test_files_that_hold_nothing_are_named(tmp_path: pytest.TempPathFactory) -> None:
    with pytest.raises(BenchError, match="no sound"):
        load_voice(DATA / "missing.wav")
    with pytest.raises(BenchError, match="no pictures"):
        load_pictures(DATA / "speech_a_16k.wav", 1)
    assert len(load_voice(DATA / "speech_a_16k.wav").pcm) > 9 * RATE * 0.9


def test_the_whole_way_without_a_network_is_placed_exactly(voice: Voice) -> None:
    """Real Opus both ways and the real pipeline between, on a clock that only we move.

    The client begins to speak 0.73 s into the session; the voice comes back 0.2 s later.
    """
    clock = FakeClock()
    up, down = OpusEncoder(), OpusEncoder()
    hear, hear_again = OpusDecoder(), OpusDecoder()
    pipeline = Pipeline(fake_portrait(), ModelConfig(), clock=clock)
    begun, origin, delay_s = round(0.73 * RATE) // 480 * 480, 5_000, 0.2
    line, at, index, levels, came = ThinLine(), [], [], {}, {}
    for k in range(12 * 100):
        clock.advance(10)
        now = clock.monotonic()
        for payload, _ in up.encode(voice.slice(k * 480 - begun, 480), k * 480):
            for tick in pipeline.push_audio(hear.decode(payload), k * 480):
                levels[tick.frame_index] = rms(tick.audio)
                came[tick.frame_index] = now + delay_s
                for packet, sample in down.encode(tick.audio, tick.audio_sample):
                    line.append(hear_again.decode(packet), origin + sample)
                    at.append(now + delay_s)
                    index.append(origin + sample)
    heard = HeardLine(line.samples(), index[0], np.array(at), np.array(index, np.int64))
    starts = frame_starts(levels, [(t, f) for f, t in came.items()], heard)
    said_from = begun // FRAME_SAMPLES_48K
    late = [f for f in came if f > said_from + FRAMES_PER_FIT]
    assert set(late) <= set(starts)
    error_ms = [(starts[f] - f * FRAME_SAMPLES_48K - origin) / 48 for f in late]
    assert np.abs(error_ms).max() < 2.5, "less than the codec's own delay"

    speech_at = 1.0 + begun / RATE
    shifts = voice_shifts(heard, speech_at, voice, 9.0)
    assert len(shifts) >= 3
    # Two codecs of 2.5 ms each, less what their timestamps take off again.
    for shift in shifts:
        assert shift.shift - (begun + origin) == pytest.approx(0, abs=0.006 * RATE)
        assert shift.likeness > 0.9
