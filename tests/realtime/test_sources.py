"""Driving sources: idle is natural and deterministic, webcam relative, clips seamless."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from models.codes import CODE_DIM, DIMS, FACTORS, Array, Factor, MotionCode
from models.config import ModelConfig
from models.rates import FPS
from models.runtime.engine import MotionReading
from realtime.sources import (
    Clip,
    ClipError,
    Idle,
    MicLip,
    Moment,
    SliderSource,
    Source,
    Webcam,
    load_clip,
    save_clip,
)
from realtime.sources.idle import BREATH_HZ, SHIFT_PEAK, SWAY_DEG
from tests.fakes import fake_landmarks

pytestmark = pytest.mark.unit

MINUTE = 60 * FPS


def _codes(source: Source, factor: Factor, frames: range) -> Array:
    out = []
    for frame in frames:
        code = source.code(factor, Moment(frame))
        assert code is not None
        assert code.shape == (DIMS[factor],)
        assert code.dtype == np.float32
        out.append(code.copy())
    return np.stack(out)


# --- idle -------------------------------------------------------------------------------


def test_idle_is_a_function_of_seed_and_frame() -> None:
    frames = [0, 7, 1499, 1500, 20_000, 3, 1500]
    one, two, other = Idle(1), Idle(1), Idle(2)
    for frame in frames:
        for factor in FACTORS:
            np.testing.assert_array_equal(
                one.code(factor, Moment(frame)), two.code(factor, Moment(frame))
            )
    backwards = [two.code("eye", Moment(f)) for f in reversed(range(3000))]
    np.testing.assert_array_equal(backwards[::-1], _codes(one, "eye", range(3000)))
    assert (_codes(one, "pose", range(50, 60)) != _codes(other, "pose", range(50, 60))).any()


def test_idle_keeps_the_mouth_shut_and_the_face_neutral() -> None:
    assert not _codes(Idle(0), "lip", range(0, 500, 7)).any()
    assert not _codes(Idle(0), "exp", range(0, 500, 7)).any()


@pytest.mark.parametrize("seed", range(4))
def test_blinks_come_ten_to_twenty_times_a_minute(seed: int) -> None:
    idle = Idle(seed)
    lids = np.array([idle.blink(frame) for frame in range(5 * MINUTE)])
    onsets = np.flatnonzero((lids[:-1] < 0.5) & (lids[1:] >= 0.5))
    per_minute = np.bincount(onsets // MINUTE, minlength=5)
    assert ((per_minute >= 9) & (per_minute <= 21)).all(), per_minute
    gaps = np.diff(onsets) / FPS
    assert 2.5 < gaps.mean() < 6.0
    assert gaps.std() > 0.8, "not a metronome"


def test_a_blink_shuts_fast_and_opens_slowly_in_about_six_frames() -> None:
    idle = Idle(3)
    lids = np.array([idle.blink(frame) for frame in range(20 * MINUTE)])
    starts = np.flatnonzero((lids[:-1] == 0) & (lids[1:] > 0)) + 1
    lengths, downs, peaks = [], [], []
    for start in starts:
        end = start + int(np.argmax(lids[start:] == 0))
        blink = lids[start:end]
        lengths.append(len(blink))
        if len(blink) <= 8:
            downs.append(int(blink.argmax()) + 1)
            peaks.append(blink.max())
    assert 5 <= np.median(lengths) <= 7
    assert np.mean(downs) < 3.2
    assert np.min(peaks) == 1.0, "every blink shuts the eye"
    assert max(lengths) <= 16, "a double blink at most"
    assert 0.0 < np.mean(np.array(lengths) > 8) < 0.25, "doubles are occasional"


def test_gaze_fixates_and_jumps() -> None:
    gaze = _codes(Idle(5), "eye", range(5 * MINUTE))[:, 2:4] * 20.0
    assert np.abs(gaze).max() <= 15.0
    step = np.abs(np.diff(gaze, axis=0)).max(1)
    still = step < 0.02
    assert 0.9 < still.mean() < 0.99
    saccades = np.flatnonzero(~still[1:] & still[:-1])
    assert 0.3 < len(saccades) / 300 < 1.5
    assert np.median(np.abs(gaze)) < 2.5, "mostly at the camera"


def test_the_head_sways_slowly_within_its_amplitude() -> None:
    pose = _codes(Idle(6), "pose", range(5 * MINUTE))
    angles = np.degrees(pose[:, :3])
    peak = np.abs(angles).max(0)
    assert (peak <= np.array(SWAY_DEG) + 1e-3).all()
    assert (peak > 0.4 * np.array(SWAY_DEG)).all()
    assert np.abs(np.diff(angles, axis=0)).max() < 0.15, "no jerk"
    assert (np.abs(pose[:, [3, 5]]).max(0) <= np.array(SHIFT_PEAK)[[0, 2]] + 1e-6).all()
    power = np.abs(np.fft.rfft(angles[:, 0] - angles[:, 0].mean())) ** 2
    hz = np.fft.rfftfreq(len(angles), 1 / FPS)
    slow, fast = power[(hz > 0.01) & (hz < 0.1)].sum(), power[(hz > 0.2) & (hz < 1)].sum()
    assert slow > 2 * fast, "like 1/f"


def test_it_breathes() -> None:
    y = _codes(Idle(7), "pose", range(FPS, FPS + 4 * MINUTE))[:, 4]
    power = np.abs(np.fft.rfft(y - y.mean())) ** 2
    hz = np.fft.rfftfreq(len(y), 1 / FPS)
    high = hz > 0.15
    assert hz[high][power[high].argmax()] == pytest.approx(BREATH_HZ, abs=0.03)


def test_it_starts_from_the_still_portrait_and_never_jumps_over_minutes() -> None:
    idle = Idle(8)
    first = idle.code("pose", Moment(0))
    assert first is not None
    assert not first.any()
    assert idle.blink(0) == 0.0
    for minute in (1, 2):
        around = range(minute * MINUTE - 4, minute * MINUTE + 4)
        assert np.abs(np.diff(_codes(idle, "pose", around), axis=0)).max() < 0.004


def test_emphasis_nods() -> None:
    calm = Idle(9).code("pose", Moment(500))
    loud = Idle(9).code("pose", Moment(500, speech=1.0, emphasis=1.0))
    assert calm is not None
    assert loud is not None
    nod = np.degrees(calm[1] - loud[1])
    assert 0.5 < nod < 3.0
    np.testing.assert_array_equal(np.delete(calm, 1), np.delete(loud, 1))


# --- microphone and sliders -------------------------------------------------------------


def test_the_microphone_says_how_much_not_what() -> None:
    assert MicLip().code("lip", Moment(3, speech=0.7)) is None
    assert MicLip().weight(Moment(3, speech=0.7)) == 0.7


def test_a_slider_moves_smoothly_to_its_code() -> None:
    sliders = SliderSource()
    assert not _codes(sliders, "pose", range(2)).any()
    sliders.set("pose", {"yaw": -1.0, "roll": 0.5})
    codes = _codes(sliders, "pose", range(2, 60))
    assert np.abs(np.diff(codes, axis=0)).max() < math.radians(9)
    np.testing.assert_allclose(np.degrees(codes[-1, :3]), [-18.0, 0.0, 7.0], atol=1e-2)
    assert (np.diff(codes[:, 0]) <= 0).all()
    again = sliders.code("pose", Moment(59))
    np.testing.assert_array_equal(again, codes[-1])


def test_sliders_keep_what_is_not_named_and_refuse_unknown_names() -> None:
    sliders = SliderSource()
    sliders.set("exp", {"smile": 1.0})
    sliders.set("exp", {"brows": -0.5})
    assert sliders.values("exp")["smile"] == 1.0
    with pytest.raises(KeyError, match="no slider called 'nose'"):
        sliders.set("exp", {"brows": 1.0, "nose": 1.0})
    assert sliders.values("exp")["brows"] == -0.5
    sliders.set("eye", {"blink": -1.0})
    assert sliders.values("eye")["blink"] == 0.0, "clipped to its range"
    assert sliders.code("lip", Moment(0)) is None


def test_two_sided_sliders_move_other_muscles_each_way() -> None:
    up, down = SliderSource(), SliderSource()
    up.set("exp", {"smile": 1.0})
    down.set("exp", {"smile": -1.0})
    smile, frown = up.code("exp", Moment(0)), down.code("exp", Moment(0))
    assert smile is not None
    assert frown is not None
    assert (smile >= 0).all()
    assert (frown >= 0).all()
    assert not ((smile > 0) & (frown > 0)).any()


# --- clips ------------------------------------------------------------------------------


def _motion(frames: int) -> Array:
    rng = np.random.default_rng(1)
    return np.cumsum(rng.normal(size=(frames, CODE_DIM)) * 0.01, 0).astype(np.float32)


def test_a_clip_plays_and_loops_without_a_jump() -> None:
    motion = _motion(100)
    clip = Clip(motion, "walk", seam_frames=12)
    assert clip.period == 88
    played = np.concatenate([_codes(clip, f, range(300)) for f in FACTORS], 1)
    np.testing.assert_array_equal(played[:88], motion[:88])
    np.testing.assert_array_equal(played[100:176], motion[12:88])
    # A cut from the last frame to the first would be this large; steps stay far below.
    cut = np.abs(motion[-1] - motion[0]).max()
    steps = np.abs(np.diff(played, axis=0)).max(1)
    assert steps.max() < cut / 3
    np.testing.assert_array_equal(played[88:176], played[176:264])


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_short_clips_loop_too(frames: int) -> None:
    codes = _codes(Clip(_motion(frames)), "pose", range(20))
    assert np.isfinite(codes).all()


def test_clips_survive_a_file(tmp_path: Path) -> None:
    clip = Clip(_motion(30), "wave")
    save_clip(tmp_path / "wave.npz", clip)
    back = load_clip(tmp_path / "wave.npz")
    np.testing.assert_array_equal(back.codes, clip.codes)
    assert back.name == "wave"
    assert back.motion(3).pose.shape == (6,)
    with pytest.raises(ValueError, match="read-only"):
        back.codes[0, 0] = 1.0


def test_bad_clips_are_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(ClipError, match="no clip"):
        load_clip(path)
    path.write_bytes(b"not a clip")
    with pytest.raises(ClipError, match="not a motion clip"):
        load_clip(path)
    np.savez(path, version=1, fps=25, codes=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ClipError, match="not a motion clip"):
        load_clip(path)
    np.savez(path, version=9, fps=25, codes=_motion(4))
    with pytest.raises(ClipError, match="version 9"):
        load_clip(path)
    with pytest.raises(ClipError, match="58"):
        Clip(np.zeros((4, 3), np.float32))
    with pytest.raises(ClipError, match="frames"):
        Clip(np.zeros((0, CODE_DIM), np.float32))
    with pytest.raises(ClipError, match="finite"):
        Clip(np.full((4, CODE_DIM), np.nan, np.float32))


# --- webcam -----------------------------------------------------------------------------


class Person:
    """Feeds a webcam source at 25 fps, one reading per video frame, taken at its middle."""

    def __init__(self, webcam: Webcam) -> None:
        self.webcam = webcam
        self.frame = 0

    def show(self, frames: int, code: MotionCode | None, factor: Factor = "pose") -> Array:
        out = []
        for _ in range(frames):
            reading = None if code is None else MotionReading(code, fake_landmarks())
            self.webcam.push(reading, Moment(self.frame).middle_48k)
            out.append(self.ask(factor))
        return np.stack(out)

    def ask(self, factor: Factor = "pose") -> Array:
        code = self.webcam.code(factor, Moment(self.frame))
        assert code is not None
        self.frame += 1
        return code.copy()


class Still:
    """A fallback that does nothing, so that tests see the webcam alone."""

    kind = "idle"
    name = None
    blinks = True

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        return None


def _person() -> Person:
    return Person(Webcam(Still()))  # type: ignore[arg-type]


def _pose(yaw: float) -> MotionCode:
    return MotionCode(pose=np.array([yaw, 0.05, 0, 0.1, 0, 0], np.float32))


def _eye(*values: float) -> MotionCode:
    return MotionCode(eye=np.array(values, np.float32))


def test_pose_is_relative_to_the_neutral_of_the_first_second() -> None:
    person = _person()
    first = person.show(26, _pose(0.2))
    assert person.webcam.status == "tracking"
    assert np.abs(first).max() < 1e-3, "the resting pose moves nothing"
    person.show(15, _pose(0.2))
    moved = person.show(50, _pose(0.45))
    np.testing.assert_allclose(moved[-1], [0.25, 0, 0, 0, 0, 0], atol=0.01)


def test_it_searches_until_it_knows_the_neutral() -> None:
    person = _person()
    assert person.webcam.status == "off"
    person.show(5, None)
    assert person.webcam.status == "searching"
    person.show(10, _pose(0.0))
    person.show(30, None)
    person.show(15, _pose(0.1))
    assert person.webcam.status == "searching", "the second has to be in one piece"
    person.show(15, _pose(0.1))
    assert person.webcam.status == "tracking"
    for _ in range(60):
        person.ask()
    assert person.webcam.status == "off"


def test_recenter_moves_smoothly_to_the_new_neutral() -> None:
    person = _person()
    person.show(60, _pose(0.0))
    before = person.show(40, _pose(0.3))[-1]
    person.webcam.recenter()
    after = person.show(60, _pose(0.3))
    assert before[0] == pytest.approx(0.3, abs=0.01)
    assert after[-1, 0] == pytest.approx(0.0, abs=0.01)
    assert np.abs(np.diff(after[:, 0])).max() < 0.08
    assert abs(after[0, 0] - before[0]) < 0.08


def test_lids_and_expression_keep_their_full_range() -> None:
    person = _person()
    person.show(60, _eye(0.2, 0.2, 0.3, 0.0, 0.0, 0.0), "eye")
    shut = person.show(3, _eye(1.0, 1.0, 0.3, 0.0, 0.0, 0.0), "eye")[-1]
    np.testing.assert_allclose(shut[:2], 1.0, atol=1e-5)
    assert abs(shut[2]) < 1e-3, "a gaze that is always aside is neutral"
    person = _person()
    resting, smiling = np.zeros(30, np.float32), np.zeros(30, np.float32)
    resting[12], smiling[12] = 0.25, 1.0
    person.show(60, MotionCode(exp=resting), "exp")
    smile = person.show(30, MotionCode(exp=smiling), "exp")
    window = ModelConfig().expression_window
    assert smile[0, 12] < 1.5 / window, "a trailing mean"
    assert smile[-1, 12] == pytest.approx(1.0)
    assert smile[window - 1, 12] == pytest.approx(1.0, abs=1e-3), "of that many frames"
    assert smile[window - 3, 12] < 0.95


def test_lips_are_absolute() -> None:
    person = _person()
    open_mouth = MotionCode(lip=np.full(16, 1.5, np.float32))
    assert person.show(60, open_mouth, "lip")[-1, 0] == pytest.approx(1.5)


def test_motion_is_interpolated_at_the_time_of_the_frame() -> None:
    webcam = Webcam(Still())  # type: ignore[arg-type]
    for i in range(120):
        lip = np.full(16, i / 30, np.float32)
        webcam.push(MotionReading(MotionCode(lip=lip), fake_landmarks()), i * 1600)
        if i % 6 == 0 and i:
            webcam.code("lip", Moment((i * 1600) // 1920))
    for frame in range(85, 99):
        moment = Moment(frame)
        code = webcam.code("lip", moment)
        assert code is not None
        assert code[0] == pytest.approx(moment.middle_48k / 48_000, abs=1e-4)


def test_a_lost_face_holds_then_fades_to_idle_and_comes_back_without_a_jump() -> None:
    person = _person()
    person.show(60, _pose(0.0))
    person.show(40, _pose(0.3))
    lost = person.show(24, None)[:, 0]
    assert (lost > 0.28).all(), "held for a second"
    fading = person.show(30, None)[:, 0]
    assert fading[-1] == 0.0
    assert (np.diff(fading) <= 1e-6).all()
    assert person.webcam.status == "searching"
    back = person.show(40, _pose(-0.3))[:, 0]
    assert back[-1] == pytest.approx(-0.3, abs=0.01)
    whole = np.concatenate([lost, fading, back])
    assert np.abs(np.diff(whole)).max() < 0.07


def test_a_face_lost_for_a_moment_somewhere_else_does_not_jump() -> None:
    person = _person()
    person.show(60, _pose(0.0))
    held = person.show(40, _pose(0.3))
    gap = person.show(18, None)
    back = person.show(30, _pose(-0.3))
    steps = np.abs(np.diff(np.concatenate([held, gap, back])[:, 0]))
    assert steps.max() < 0.15


def test_eyes_open_and_mouth_shuts_while_the_face_is_lost() -> None:
    person = _person()
    person.show(60, MotionCode())
    person.show(5, _eye(1, 1, 0, 0, 0, 0), "eye")
    lids = person.show(20, None, "eye")[:, 0]
    assert lids[0] > 0.9
    assert lids[12] == 0.0
    person = _person()
    person.show(60, MotionCode(lip=np.ones(16, np.float32)), "lip")
    assert person.show(20, None, "lip")[12, 0] == 0.0


def test_idle_drives_until_the_person_is_known() -> None:
    idle = Idle(4)
    webcam = Webcam(idle)
    for frame in range(20):
        code = webcam.code("pose", Moment(frame))
        np.testing.assert_array_equal(code, idle.code("pose", Moment(frame)))


def test_readings_out_of_order_are_dropped_and_counted() -> None:
    webcam = Webcam(Idle())
    reading = MotionReading(MotionCode(), fake_landmarks())
    webcam.push(reading, 4000)
    webcam.push(reading, 2000)
    webcam.push(reading, 4000)
    assert webcam.out_of_order == 2


def test_a_session_clock_that_was_set_back_starts_anew() -> None:
    person = _person()
    person.show(60, _pose(0.0))
    person.webcam.push(None, 60 * 48_000)
    reading = MotionReading(_pose(0.2), fake_landmarks())
    for _ in range(40):
        person.webcam.push(reading, Moment(person.frame).middle_48k)
        code = person.ask()
    assert person.webcam.status == "tracking"
    assert code[0] == pytest.approx(0.2, abs=0.01)
