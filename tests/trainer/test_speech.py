"""Speech with known mouths: voices of a clip, lips that meet the landmarks, measuring E_aud."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import open_checkpoint
from models.codes import FACTOR_SLICES, MotionCode
from models.config import ModelConfig
from models.face import FaceModel, lip_gap
from tests.trainer.tiny import FRAMES, write_cache
from trainer.frames import FrameCache
from trainer.lip_targets import code_gap, in_time, meet_gap
from trainer.speech import LIPS_FILE, MEL_FILE, THROATS, WORN, SpeechCache
from trainer.voices.measure import Spoken, closures, follow, table
from trainer.voices.phonemes import SILENCE, Segment

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def face() -> FaceModel:
    return open_checkpoint(verify=False).face


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips whose sound is syllables, without the file of their voices."""
    folder = write_cache(tmp_path_factory.mktemp("cache"))
    (folder / MEL_FILE).unlink()
    with np.load(folder / "speech.npz") as z:
        speech = {k: z[k] for k in z.files}
    count = len(speech["lip"]) * 640
    time = np.arange(count) / 16_000
    buzz = sum(np.sin(2 * np.pi * 120 * k * time) / k for k in range(1, 25))
    speech["samples"] = (0.1 * buzz * np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)).astype(
        np.float16
    )
    np.savez(folder / "speech.npz", **speech)
    return folder


def test_every_clip_is_heard_in_every_voice_at_its_own_time(folder: Path) -> None:
    speech = SpeechCache(folder)
    frames = len(speech.lip)
    assert speech.mel.shape == (len(THROATS) + WORN, 4 * frames, 80)
    clean = speech.mel[: len(THROATS)].astype(float).mean(2)
    for a, b in pairwise(clean):
        assert np.abs(a - b).max() > 1, "another voice"
        assert np.corrcoef(a, b)[0, 1] > 0.9, "the same syllables at the same time"
    assert (folder / MEL_FILE).exists()
    again = SpeechCache(folder)
    np.testing.assert_array_equal(again.mel, speech.mel)


def test_visits_are_levelled_padded_and_sometimes_quiet(folder: Path) -> None:
    speech, config = SpeechCache(folder), ModelConfig()
    seen = set()
    for seed in range(8):
        mel, lip = speech.heard(np.random.default_rng(seed), 1, config)
        assert mel.shape == (config.left_mel + 4 * FRAMES, 80)
        assert (mel[: config.left_mel] == 0).all()
        assert 0 <= mel.min() <= mel.max() <= 1
        np.testing.assert_array_equal(lip, speech.lip[FRAMES : 2 * FRAMES])
        seen.add(mel.tobytes())
    assert len(seen) == 8
    _, lip = speech.heard(np.random.default_rng(0), 1, config, quiet=True)
    np.testing.assert_array_equal(lip, np.broadcast_to(speech.rest, lip.shape))
    assert speech.rest[0] < np.median(speech.lip[:, 0])


def mouth(face: FaceModel, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lip codes (T, 16) of a mouth that opens, shuts and rests; its true inner-lip gap."""
    time = np.arange(120)
    opened = np.clip(np.sin(time / 4 + seed), 0, None) * (time > 40)
    lip = np.zeros((120, 16), np.float32)
    lip[:, 0] = -0.2 + 1.6 * opened
    lip[:, 1] = 0.3 * np.cos(time / 7)
    gap = code_gap(face, face.mean, lip)
    return lip, gap - gap.min()


@pytest.mark.parametrize("hertz", [1.0, 2.0, 4.0])
def test_the_trackers_delay_is_taken_back(hertz: float) -> None:
    time = np.arange(200) / 25
    late = np.stack([np.sin(2 * np.pi * hertz * time), np.full(200, 0.3)], 1)
    found = in_time(late)
    assert found.shape == late.shape
    np.testing.assert_allclose(found[:, 1], 0.3, atol=1e-9)
    wave = found[5:-5, 0] @ np.exp(-2j * np.pi * hertz * time[5:-5])
    was = late[5:-5, 0] @ np.exp(-2j * np.pi * hertz * time[5:-5])
    ahead_ms = np.angle(wave / was) / (2 * np.pi * hertz) * 1000
    assert 14 < ahead_ms < 26, "the labels' 17 ms, a little more where they are smoothed more"
    assert 1.0 < abs(wave / was) < 1.6, "short movements grow back"


def test_lips_open_and_close_as_far_as_the_landmarks(face: FaceModel) -> None:
    true = [mouth(face, seed) for seed in range(3)]
    # What a fit that prefers small codes makes of it.
    shy = [(lip * np.float32(0.75)).astype(np.float32) for lip, _ in true]
    found = meet_gap(face, shy, [gap for _, gap in true], [face.mean] * 3, ["a", "a", "b"])
    for lip, before, (_, gap) in zip(found, shy, true, strict=True):
        own, was = (code_gap(face, face.mean, c) for c in (lip, before))
        assert np.polyfit(gap, own, 1)[0] == pytest.approx(1, abs=0.01)
        assert np.polyfit(gap, was, 1)[0] < 0.85
        closed = gap < 0.003
        # What a closed mouth is called stays.
        assert np.median(own[closed]) == pytest.approx(np.median(was[closed]), abs=1e-3)
        assert np.abs(lip - before)[:, 4:].max() < 0.1, "the least change"


def test_wild_landmarks_move_lips_only_so_far(face: FaceModel) -> None:
    lip, gap = mouth(face, 0)
    wild = gap.copy()
    wild[60] += 0.5
    found = meet_gap(face, [lip], [wild], [face.mean], ["a"])[0]
    own = code_gap(face, face.mean, found) - code_gap(face, face.mean, lip)
    assert own[60] == pytest.approx(0.03, abs=2e-3)


def test_mouths_that_never_close_are_left_alone(face: FaceModel) -> None:
    lip, gap = mouth(face, 0)
    assert meet_gap(face, [lip], [gap + 0.02], [face.mean], ["a"])[0] is lip


def test_a_cache_with_fits_gets_corrected_lips_once(folder: Path, face: FaceModel) -> None:
    frames = FrameCache(folder)
    with np.load(folder / "speech.npz") as z:
        raw = z["lip"]
    code = MotionCode.split(np.zeros(58, np.float32))
    landmarks = np.stack([face.project(face.mean, code.with_("lip", 1.3 * x)) for x in raw])
    landmarks[:5, 132:] = landmarks[:5, 132:].mean(1, keepdims=True)  # a closed mouth
    clips = len(raw) // FRAMES
    np.savez(folder / "fits.npz", grid_landmarks=landmarks.astype(np.float32),
             grid_shape=np.stack([face.mean] * clips))  # fmt: skip
    speech = SpeechCache(folder)
    assert (folder / LIPS_FILE).exists()
    assert np.abs(speech.lip - raw).max() > 0.01
    before, after = (code_gap(face, face.mean, x) for x in (raw, speech.lip))
    wanted = lip_gap(landmarks.astype(np.float32))
    wanted = np.concatenate([in_time(g) for g in np.split(wanted, clips)])
    assert np.corrcoef(after, wanted)[0, 1] > np.corrcoef(before, wanted)[0, 1]
    assert len(frames.code[0, FACTOR_SLICES["lip"]]) == speech.lip.shape[1]
    (folder / "fits.npz").unlink()
    np.testing.assert_array_equal(SpeechCache(folder).lip, speech.lip)


def test_following_finds_lag_and_slope() -> None:
    time = np.arange(300) / 25
    true = [np.sin(2 * np.pi * 2 * time + k) + np.sin(2 * np.pi * 3.3 * time) for k in range(3)]
    late = 0.018
    found = [
        0.6 * (np.sin(2 * np.pi * 2 * (time - late) + k) + np.sin(2 * np.pi * 3.3 * (time - late)))
        for k in range(3)
    ]
    result = follow([x[:-1] for x in found], true)
    assert result["lag_ms"] == pytest.approx(18, abs=2)
    assert result["slope"] == pytest.approx(0.6, abs=0.05)
    assert result["spread"] == pytest.approx(0.6, abs=0.02)
    assert result["r"] < result["best"] + 1e-9


def test_lips_that_meet_are_counted() -> None:
    segments = [Segment(SILENCE, 0, 0.2), Segment("a", 0.2, 0.5), Segment("b", 0.5, 0.6),
                Segment("a", 0.6, 1.0), Segment("p", 1.0, 1.1), Segment("a", 1.1, 1.4),
                Segment(SILENCE, 1.4, 2.0)]  # fmt: skip
    true = np.full(50, 0.05)
    true[[0, 1, 2, 3, 4, *range(36, 50)]] = 0.0
    true[13:15] = true[25:27] = 0.0
    found = true.copy()
    found[24:28] = 0.03
    mel, lip, shape = (np.zeros(1, np.float32) for _ in range(3))
    spoken = Spoken("x", mel, true, lip, shape, segments)
    assert closures([found], [spoken]) == {"closed": 0.5, "truly": 1.0}
    unknown = Spoken("x", mel, true, lip, shape)
    assert np.isnan(closures([found], [unknown])["closed"])


def test_the_table_has_a_row_for_every_voice() -> None:
    text = table({"s1": {"r": 0.9, "closed": 0.5}, "other": {"r": 0.4}})
    assert "0.900" in text
    assert len(text.splitlines()) == 3
