# ruff: noqa: RUF001 (IPA)
"""Voices: phoneme times, mouths that close, sound that stays in step, the learnt table."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import open_checkpoint
from models.config import ModelConfig
from models.face import FaceModel
from models.mel import log_mel
from trainer.speech import THROATS
from trainer.voices import espeak, flite, sound
from trainer.voices.align import Word, align_speaker, features
from trainer.voices.corpus import HELD_OUT, VoiceCache, mixed, sampler, stream, write
from trainer.voices.lips import LipModel, close_lips, lip_codes, mouth_directions
from trainer.voices.phonemes import (
    _ARPABET,
    _ESPEAK,
    INDEX,
    NEIGHBOURS,
    PHONEMES,
    SILENCE,
    Segment,
    close_after_pause,
    from_arpabet,
    from_espeak,
    spread,
)
from trainer.voices.text import paragraph, words
from trainer.voices.throat import resample, throat

pytestmark = pytest.mark.unit

needs_espeak = pytest.mark.skipif(not espeak.available(), reason="espeak-ng is not installed")
needs_flite = pytest.mark.skipif(not flite.available(), reason="flite is not installed")
RATE = 16_000


@pytest.fixture(scope="module")
def face() -> FaceModel:
    return open_checkpoint().face


@pytest.fixture(scope="module")
def table() -> LipModel:
    return LipModel.load()


def opening(codes: np.ndarray, face: FaceModel) -> np.ndarray:
    return codes @ mouth_directions(face)[0]


def test_every_mnemonic_leads_into_the_alphabet() -> None:
    for table in (_ESPEAK, _ARPABET):
        for goals in table.values():
            assert set(goals.split()) <= set(PHONEMES)
    assert set(NEIGHBOURS) | {n for v in NEIGHBOURS.values() for n in v} <= set(PHONEMES)
    assert from_espeak("t[") == ("t",)
    assert from_espeak("a#") == ("ə",)
    assert from_arpabet("ay") == ("a", "ɪ̯")
    with pytest.raises(ValueError, match="unknown espeak-ng phoneme"):
        from_espeak("%")
    with pytest.raises(ValueError, match="unknown ARPAbet"):
        from_arpabet("qq")


def test_diphthong_shares_its_segment_without_gap() -> None:
    parts = spread(("a", "ɪ̯", "ə"), 1.0, 2.0)
    assert [p.phoneme for p in parts] == ["a", "ɪ̯", "ə"]
    assert parts[0].start_s == 1.0
    assert parts[-1].end_s == pytest.approx(2.0)
    assert all(a.end_s == b.start_s for a, b in pairwise(parts))


def test_stops_close_before_they_sound() -> None:
    segments = [Segment(SILENCE, 0, 0.5), Segment("p", 0.5, 0.55), Segment("a", 0.55, 0.7)]
    closed = close_after_pause(segments)
    assert closed[1].start_s == pytest.approx(0.44)
    assert closed[0].end_s == closed[1].start_s
    assert closed[2] == segments[2]


@pytest.mark.parametrize("consonant", ["p", "b", "m"])
def test_bilabials_close_the_lips_and_open_vowels_open_them(
    consonant: str, table: LipModel, face: FaceModel
) -> None:
    names = [SILENCE, "a", consonant, "ɑː", SILENCE]
    edges = [0.0, 0.3, 0.5, 0.6, 0.9, 1.3]
    segments = [Segment(n, a, b) for n, a, b in zip(names, edges[:-1], edges[1:], strict=True)]
    gap = opening(lip_codes(table, face, segments, 32), face)
    during = gap[13:15]  # .52 and .56 s
    vowel = gap[8:12].max()
    assert during.max() <= 0.0
    assert vowel > 0.02
    assert gap[17:22].max() > 0.02, "opens again after it"


def test_rounded_vowels_are_narrower_than_spread_ones(table: LipModel, face: FaceModel) -> None:
    def width(vowel: str) -> float:
        segments = [Segment(SILENCE, 0, 0.2), Segment(vowel, 0.2, 0.8), Segment(SILENCE, 0.8, 1)]
        return float(
            (lip_codes(table, face, segments, 25) @ mouth_directions(face)[1])[10:18].min()
        )

    for rounded in ("uː", "ɔː", "ɒ"):
        assert width(rounded) < width("iː")


def test_close_lips_changes_nothing_without_labials(table: LipModel, face: FaceModel) -> None:
    segments = [Segment("a", 0, 0.5), Segment("t", 0.5, 0.6), Segment("iː", 0.6, 1)]
    times = np.arange(25) / 25
    codes = table.trajectory(segments, times)
    np.testing.assert_array_equal(close_lips(codes, segments, times, face), codes)


def test_trajectory_is_a_convex_mixture_of_the_goals(table: LipModel) -> None:
    segments = [Segment("a", 0, 0.2), Segment("uː", 0.2, 0.4), Segment("s", 0.4, 0.6)]
    codes = table.trajectory(segments, np.linspace(0, 0.6, 50))
    goals = table.goal[[INDEX[s.phoneme] for s in segments]]
    assert (codes <= goals.max(0) + 1e-9).all()
    assert (codes >= goals.min(0) - 1e-9).all()
    # Dominance formula by hand for two phonemes at one time.
    i, j, at = INDEX["a"], INDEX["uː"], 0.15
    pull = []
    for k, start in ((i, 0.0), (j, 0.2)):
        middle = start + table.anchor[k] * 0.2
        tau = max(abs(at - middle) - 0.1 * table.hold[k], 0)
        rate = table.before[k] if at < middle else table.after[k]
        pull.append(np.exp(table.strength[k] - (rate * tau) ** table.power))
    wanted = (pull[0] * table.goal[i] + pull[1] * table.goal[j]) / (pull[0] + pull[1])
    np.testing.assert_allclose(table.trajectory(segments[:2], np.array([at]))[0], wanted)


def test_table_survives_its_file(table: LipModel, tmp_path: Path) -> None:
    table.save(tmp_path / "t.json", learnt_from="a test")
    again = LipModel.load(tmp_path / "t.json")
    np.testing.assert_allclose(again.goal, table.goal, atol=1e-4)
    assert again.power == table.power


def test_alignment_finds_boundaries_inside_words() -> None:
    """Two words of two tones each: the border lies where the tone changes, not in the middle."""
    rng = np.random.default_rng(0)
    clips = []
    borders = []
    for _ in range(8):
        cut = rng.uniform(0.12, 0.28)
        time = np.arange(int(0.4 * RATE)) / RATE
        tone = np.where(time < cut, np.sin(2 * np.pi * 400 * time), np.sin(2 * np.pi * 2500 * time))
        quiet = 1e-3 * rng.standard_normal(int(0.3 * RATE))
        samples = np.concatenate([quiet, tone, quiet]).astype(np.float32)
        sil = Word(SILENCE, 0, 0.3, (SILENCE,), (1.0,))
        word = Word("oo", 0.3, 0.7, ("uː", "s"), (0.5, 0.5))
        clips.append((features(samples), [sil, word, Word(SILENCE, 0.7, 1.0, (SILENCE,), (1.0,))]))
        borders.append(0.3 + cut)
    found = [segments[2].start_s for segments in align_speaker(clips)]
    assert np.abs(np.array(found) - borders).max() < 0.03


def voice_like(seconds: float) -> np.ndarray:
    """Syllables: a buzz with a moving loudness."""
    rng = np.random.default_rng(3)
    time = np.arange(int(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 30))
    level = np.interp(
        time,
        np.arange(0, seconds + 0.1, 0.1),
        rng.uniform(0, 1, int(seconds * 10) + 2)[: len(np.arange(0, seconds + 0.1, 0.1))] ** 2,
    )
    return (0.1 * buzz * level).astype(np.float32)


def lag_ms(late: np.ndarray, original: np.ndarray) -> float:
    a, b = (log_mel(x).mean(1) for x in (late, original))
    a, b = a - a.mean(), b - b.mean()
    r = {k: float((a[12 + k : len(a) - 12 + k] * b[12:-12]).sum()) for k in range(-10, 11)}
    k = max(r, key=lambda i: r[i])
    if abs(k) == 10:
        return 10.0 * k
    # Parabola through the peak and its neighbours.
    left, top, right = r[k - 1], r[k], r[k + 1]
    return 10 * (k + 0.5 * (left - right) / (left - 2 * top + right))


@pytest.mark.parametrize("name", ["equalise", "reverberate", "noise", "opus", "throat"])
def test_wear_keeps_length_and_time(name: str) -> None:
    voice = voice_like(3.0)
    rng = np.random.default_rng(1)
    wear = {
        "equalise": lambda: sound.equalise(rng, voice),
        "reverberate": lambda: sound.reverberate(rng, voice),
        "noise": lambda: sound.noise(rng, voice),
        "opus": lambda: sound.through_opus(voice, 12_000),
        "throat": lambda: throat(voice, 1.25, 1.1),
    }[name]
    worn = wear()
    assert worn.shape == voice.shape
    assert worn.dtype == np.float32
    assert np.isfinite(worn).all()
    assert abs(lag_ms(worn, voice)) < 8
    assert np.abs(worn - voice).max() > 1e-3, "does something"


def offset_ms(moved: np.ndarray, original: np.ndarray) -> float:
    """How late `moved` is, by the correlation of the loudness curves in steps of 1 ms."""

    def loudness(x: np.ndarray) -> np.ndarray:
        steps = np.abs(x[: len(x) // 16 * 16]).reshape(-1, 16).mean(1)
        return np.convolve(steps, np.hanning(40) / 20, "same")

    a, b = loudness(moved), loudness(original)
    r = [float(np.corrcoef(a[40 + k : len(a) - 40 + k], b[40:-40])[0, 1]) for k in range(-30, 31)]
    k = int(np.argmax(r))
    assert 0 < k < 60, "no peak"
    return k - 30 + 0.5 * (r[k - 1] - r[k + 1]) / (r[k - 1] - 2 * r[k] + r[k + 1])


def pitch_hz(samples: np.ndarray) -> float:
    """By autocorrelation, between 60 and 400 Hz."""
    power = np.abs(np.fft.rfft(samples, 1 << 17)) ** 2
    cycle = np.fft.irfft(power)[RATE // 400 : RATE // 60]
    return RATE / (RATE // 400 + int(np.argmax(cycle)))


@pytest.mark.parametrize(
    ("pitch", "tract"), [*THROATS[1:], (0.72, 0.85), (0.82, 0.82), (1.12, 1.12), (1.4, 1.4)]
)
def test_another_throat_speaks_at_the_same_time(pitch: float, tract: float) -> None:
    voice = voice_like(3.0)
    other = throat(voice, pitch, tract)
    assert other.shape == voice.shape
    assert other.dtype == np.float32
    assert abs(offset_ms(other, voice)) <= 2
    assert pitch_hz(other) == pytest.approx(pitch_hz(voice) * pitch, rel=0.03)
    assert np.square(other).mean() == pytest.approx(np.square(voice).mean(), rel=0.01)


def test_offset_is_found() -> None:
    voice = voice_like(2.0)
    assert offset_ms(np.roll(voice, 80), voice) == pytest.approx(5, abs=0.1)


def test_a_shorter_tract_moves_resonances_not_the_pitch() -> None:
    time = np.arange(RATE) / RATE
    # A buzz at 110 Hz with one resonance at 1,500 Hz.
    harmonics = 110 * np.arange(1, 60)
    level = np.exp(-0.5 * ((harmonics - 1500) / 250) ** 2)
    buzz = (np.sin(2 * np.pi * time[:, None] * harmonics) @ level * 0.1).astype(np.float32)
    other = throat(buzz, 1.0, 1.25)
    assert pitch_hz(other) == pytest.approx(110, rel=0.02)

    def centre(x: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(x)) ** 2
        return float((np.fft.rfftfreq(len(x), 1 / RATE) * power).sum() / power.sum())

    assert centre(other) / centre(buzz) == pytest.approx(1.25, abs=0.08)


def test_the_own_voice_is_untouched() -> None:
    voice = voice_like(1.0)
    np.testing.assert_array_equal(throat(voice, 1.0), voice)


@pytest.mark.parametrize("rate", sound.OPUS_RATES)
def test_every_opus_rate_keeps_the_time(rate: int) -> None:
    voice = voice_like(2.0)
    coded = sound.through_opus(voice, rate)
    assert coded.shape == voice.shape
    # At 6 kbit/s the codec itself rounds the loudness over its 20 ms.
    assert abs(offset_ms(coded, voice)) <= (2 if rate > 8000 else 4)
    assert np.abs(coded - voice).max() > 1e-3


def test_other_speakers_cover_men_women_and_children() -> None:
    rng = np.random.default_rng(0)
    pitch, tract = np.array([sound.other_speaker(rng) for _ in range(300)]).T
    assert pitch.min() < 0.8
    assert pitch.max() > 1.7
    assert 0.8 < tract.min() < 0.95
    assert 1.15 < tract.max() < 1.4
    assert np.corrcoef(pitch, tract)[0, 1] > 0.7


def test_lost_packets_are_heard() -> None:
    voice = voice_like(1.0)
    lost = np.zeros(60, bool)
    lost[20:24] = True
    worn = sound.through_opus(voice, 16_000, lost=lost)
    clean = sound.through_opus(voice, 16_000)
    assert np.abs(worn - clean).max() > 0.01


def test_resample_keeps_a_tone() -> None:
    time = np.arange(22_050) / 22_050
    tone = np.sin(2 * np.pi * 440 * time).astype(np.float32)
    out = resample(tone, 22_050)
    assert len(out) == RATE
    wanted = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(out[500:-500], wanted[500:-500], atol=2e-2)


def test_sentences_are_seeded_and_use_the_list() -> None:
    text = paragraph(np.random.default_rng(4), 3)
    assert text == paragraph(np.random.default_rng(4), 3)
    assert text != paragraph(np.random.default_rng(5), 3)
    assert len(words()["noun"]) > 100


@needs_espeak
def test_espeak_times_agree_with_the_sound() -> None:
    samples, rate, segments = espeak.speak("Pop, a big happy cat met Bob.", espeak.EspeakVoice())
    assert segments[0].start_s == 0
    assert segments[-1].end_s == pytest.approx(len(samples) / rate, abs=0.01)
    assert all(abs(a.end_s - b.start_s) < 1e-9 for a, b in pairwise(segments))
    hop = rate // 200
    power = np.square(samples[: len(samples) // hop * hop].reshape(-1, hop)).mean(1)
    level = 10 * np.log10(power + 1e-10)
    loudness = {}
    for shift_ms in range(-60, 61, 10):
        vowels, silent = [], []
        for s in segments:
            a, b = (round((t + shift_ms / 1000) * 200) for t in (s.start_s, s.end_s))
            part = level[max(a, 0) : max(b, 0)]
            if s.phoneme in ("a", "æ", "ɒ", "ɛ", "ɪ"):
                vowels.append(part)
            elif s.phoneme in (SILENCE, "p", "t", "k"):
                silent.append(part)
        loudness[shift_ms] = np.concatenate(vowels).mean() - np.concatenate(silent).mean()
    assert abs(max(loudness, key=lambda k: loudness[k])) <= 10


@needs_espeak
def test_unknown_voice_is_an_error() -> None:
    with pytest.raises(espeak.EspeakError, match="no voice"):
        espeak.speak("hello", espeak.EspeakVoice("nowhere"))


@needs_espeak
def test_all_words_can_be_spoken() -> None:
    """Every phoneme of every listed word is known in British and American."""
    listed = [w for ws in words().values() for w in ws]
    for accent in ("en", "en-us"):
        seen: set[str] = set()
        for i in range(0, len(listed), 100):
            text = ". ".join(listed[i : i + 100 : 2])
            seen |= {s.phoneme for s in espeak.speak(text, espeak.EspeakVoice(accent, 450))[2]}
        assert len(seen) >= len(PHONEMES) - 3


@needs_flite
def test_flite_gives_times_too() -> None:
    samples, rate, segments = flite.speak("Bob met my papa.", flite.FliteVoice("kal16"))
    assert [s.phoneme for s in segments][1:4] == ["b", "ɑː", "b"]
    assert segments[-1].end_s <= len(samples) / rate + 1e-6


@needs_espeak
def test_stream_is_seeded_and_in_step(face: FaceModel) -> None:
    one, two = next(stream(7, face)), next(stream(7, face))
    # espeak-ng carries some state from one utterance to the next: its waveform may differ a
    # little, so only the choices are compared; the targets fit the waveform that came.
    assert (one.text, one.voice) == (two.text, two.voice)
    assert len(one.samples) == 640 * len(one.lip)
    assert one.voice not in HELD_OUT
    assert next(stream(7, face, held_out=True)).voice in HELD_OUT
    # The mouth is open more widely where sound is loudest than where there is none.
    loud, quiet = [], []
    for _, spoken in zip(range(4), stream(8, face), strict=False):
        level = np.square(spoken.samples.reshape(-1, 640)).mean(1)
        gap = opening(spoken.lip, face)
        loud.append(gap[level > np.percentile(level, 85)])
        quiet.append(gap[level < 1e-6])
    assert np.concatenate(loud).mean() > 1.2 * np.concatenate(quiet).mean()


@needs_espeak
def test_file_feeds_the_audio_stage(face: FaceModel, tmp_path: Path) -> None:
    path = tmp_path / "voices.npz"
    count = write(path, face, hours=0.002, seed=3, threads=1)
    cache = VoiceCache(path)
    assert len(cache) == count
    config = ModelConfig()
    sample = sampler(cache, config)(np.random.default_rng(0))
    assert sample["mel"].shape == (10, config.mel_window, 80)
    assert sample["lip"].shape == (10, 16)
    assert sample["mel"].dtype == sample["lip"].dtype == np.float32

    def never(rng: np.random.Generator) -> dict:
        raise AssertionError("share is 1")

    again = mixed(never, sampler(cache, config), 1.0)(np.random.default_rng(1))
    assert again["mel"].shape == sample["mel"].shape
