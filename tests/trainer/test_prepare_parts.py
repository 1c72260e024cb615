"""Filters, sync and people on made-up numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.talking import speech
from trainer.prepare import people
from trainer.prepare.faces import Sighting
from trainer.prepare.filters import Limits, modulation, runs, sound_verdict, speech_share, verdicts
from trainer.prepare.sync import SyncLimits, check, shift

pytestmark = pytest.mark.unit
POINTS = np.zeros((152, 2), np.float32) + 100
GOOD = Sighting(POINTS, 1, 55.0, 3.0, 0.1, 0.0, False)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (replace(GOOD, landmarks=None), "no face"),
        (replace(GOOD, faces=2), "several faces"),
        (replace(GOOD, eye_distance_px=20.0), "face too small"),
        (replace(GOOD, yaw=0.9), "turned too far"),
        (replace(GOOD, pitch=-0.8), "turned too far"),
        (replace(GOOD, cut=True), "cut"),
        (replace(GOOD, landmarks=POINTS + 40), "cut"),
    ],
)
def test_every_fault_is_named(bad: Sighting, reason: str) -> None:
    found = verdicts([GOOD, GOOD, bad, GOOD], Limits())
    assert found[:2] == [None, None]
    assert found[2] == reason


def test_one_blurred_picture_is_forgiven_a_blurred_stretch_is_not() -> None:
    blurred = replace(GOOD, sharpness=0.5)
    assert verdicts([GOOD] * 5 + [blurred] + [GOOD] * 5, Limits()) == [None] * 11
    assert verdicts([GOOD] * 5 + [blurred] * 5 + [GOOD] * 5, Limits())[7] == "blurred"


def test_stretches_are_cut_into_equal_parts_and_short_ones_left_out() -> None:
    limits = Limits(min_frames=50, max_frames=100)
    reasons = [None] * 40 + ["no face"] + [None] * 250 + ["cut"] + [None] * 60
    parts = runs(reasons, limits)
    assert [b - a for a, b in parts] == [83, 83, 84, 60]
    assert parts[0][0] == 41
    assert parts[-1][1] == len(reasons)


def test_speech_is_told_from_silence_tone_and_noise() -> None:
    limits = Limits()
    t = np.arange(4 * 16_000) / 16_000
    chord = sum(np.sin(2 * np.pi * f * t) for f in (220, 277, 330)).astype(np.float32) * 0.1
    noise = np.random.default_rng(0).normal(0, 0.05, len(t)).astype(np.float32)
    voice = speech(4.4)
    assert sound_verdict(voice, limits) is None
    assert modulation(voice) > 3 * limits.min_modulation
    assert speech_share(np.zeros(16_000, np.float32)) == 0
    for other in (np.zeros_like(chord), chord, noise):
        assert sound_verdict(other, limits) in ("no speech", "music or noise")


def mouth(rng: np.random.Generator, count: int) -> np.ndarray:
    x = np.convolve(rng.standard_normal(count + 10), np.hanning(5), "valid")[:count]
    return np.maximum(x, 0)


@pytest.mark.parametrize("late", [-5, 0, 2, 6])
def test_a_constant_offset_is_found(rng: np.random.Generator, late: int) -> None:
    expected = [mouth(rng, 200) for _ in range(3)]
    seen = [np.roll(e, late) + 0.2 * rng.standard_normal(200) for e in expected]
    found = check(seen, expected, SyncLimits(bias_frames=0))
    assert found.reason is None
    assert found.offset_frames == pytest.approx(late, abs=0.4)
    assert found.shift_samples == pytest.approx(late * 640, abs=0.4 * 640)


def test_foreign_wandering_and_far_sound_is_dropped(rng: np.random.Generator) -> None:
    expected = [mouth(rng, 200) for _ in range(3)]
    foreign = check([mouth(rng, 200) for _ in range(3)], expected)
    assert foreign.reason == "the sound is not this mouth's"
    assert foreign.shift_samples == 0
    drifting = check([np.roll(e, late) for e, late in zip(expected, (-3, 1, 4), strict=True)],
                     expected)  # fmt: skip
    assert drifting.reason == "the offset of the sound wanders"
    assert check([np.roll(e, 11) for e in expected], expected).reason == "the sound is too far off"
    assert check([], []).reason == "too short to check the sync"


def test_sound_is_moved_the_right_way() -> None:
    x = np.arange(1, 6, dtype=np.float32)
    assert shift(x, 2).tolist() == [0, 0, 1, 2, 3]
    assert shift(x, -2).tolist() == [3, 4, 5, 0, 0]


def test_people_by_folder_and_by_face(rng: np.random.Generator) -> None:
    root = Path("v")
    assert people.by_folder(root / "ann" / "1" / "x.mp4", root) == "ann"
    assert people.by_folder(root / "bob.mp4", root) == "bob"
    faces = rng.standard_normal((3, 64))
    vectors = np.repeat(faces, 4, 0) + 0.01 * rng.standard_normal((12, 64))
    groups = people.by_face(vectors)
    assert [len(set(groups[i * 4 : i * 4 + 4])) for i in range(3)] == [1, 1, 1]
    assert len(set(groups)) == 3
    names = ["a"] * 4 + ["b"] * 4 + ["c"] * 2 + ["d"] * 2
    assert people.look_alike(names, vectors) == [("c", "d")]


def test_whole_people_are_held_out_where_there_are_enough() -> None:
    names = [f"p{i // 3}" for i in range(30)]
    held = people.held_out(names, [f"c{i}" for i in range(30)])
    by_person = {n: {h for m, h in zip(names, held, strict=True) if m == n} for n in names}
    assert all(len(v) == 1 for v in by_person.values())
    assert sum(held) == 3
    few = people.held_out(["a"] * 10, [f"c{i}" for i in range(10)])
    assert sum(few) == 1
    assert people.held_out(["a"], ["c"]) == [False]
