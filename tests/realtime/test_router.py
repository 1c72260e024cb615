"""The router never lets a code jump, stays in range and keeps factors apart."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codes import DIMS, FACTORS, Array, Factor, MotionCode
from realtime.protocol import SourceKind
from realtime.router import (
    GAZE_LIMIT,
    LIP_LIMIT,
    MAX_VOICES,
    POSE_LIMIT,
    Router,
    Snapshot,
    soft_clip,
)
from realtime.sources import Idle, MicLip, Moment, Preset, Source

pytestmark = pytest.mark.unit


class Constant:
    """A source that always says the same."""

    name = None

    def __init__(self, value: float, *, blinks: bool = True, kind: SourceKind = "webcam") -> None:
        self.kind = kind
        self.value = value
        self.blinks = blinks
        self.silent = False

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        return None if self.silent else np.full(DIMS[factor], self.value, np.float32)


class Moving(Constant):
    """A source that moves all the time, by at most 0.004 a frame."""

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        value = self.value + 0.02 * np.sin(0.2 * moment.frame_index + self.value)
        return np.full(DIMS[factor], value, np.float32)


class Quiet(Idle):
    """Idle without motion."""

    def code(self, factor: Factor, moment: Moment) -> Array | None:
        return np.zeros(DIMS[factor], np.float32)

    def blink(self, frame_index: int) -> float:
        return 0.0


def _router(portrait: MotionCode | None = None, **sources: Source) -> Router:
    return Router(portrait or MotionCode(), Quiet(), sources)  # type: ignore[arg-type]


def _yaw(router: Router, frames: range) -> Array:
    return np.array([router.snapshot(Moment(f)).base.pose[0] for f in frames], np.float32)


def test_sources_add_to_the_portraits_own_code() -> None:
    own = MotionCode(
        pose=np.array([0.1, -0.05, 0, 0.02, 0, 0], np.float32),
        exp=np.full(30, 0.1, np.float32),
        lip=np.full(16, 0.3, np.float32),
    )
    still = _router(own).snapshot(Moment(0)).base
    np.testing.assert_allclose(still.pose, own.pose, atol=1e-6)
    np.testing.assert_allclose(still.exp, own.exp, atol=1e-6)
    assert not still.lip.any(), "lips are absolute: a closed mouth"
    moved = _router(own, pose=Constant(0.05), exp=Constant(0.2)).snapshot(Moment(0)).base
    np.testing.assert_allclose(moved.pose, own.pose + 0.05, atol=1e-6)
    np.testing.assert_allclose(moved.exp, 0.3, atol=1e-6)


def test_a_switch_fades_with_a_smooth_step_over_its_time() -> None:
    router = _router(pose=Constant(0.0))
    _yaw(router, range(5))
    router.set_source("pose", Constant(0.2), fade_ms=400)
    yaw = _yaw(router, range(5, 20))
    assert yaw[4] == pytest.approx(0.1, abs=1e-6), "half way after half the time"
    assert yaw[9] == pytest.approx(0.2, abs=1e-6)
    assert yaw[8] < 0.2
    steps = np.diff(np.concatenate([[0.0], yaw]))
    assert (steps >= 0).all()
    assert steps[0] < steps[4] > steps[8], "slow, fast, slow"


def test_no_fade_switches_at_once() -> None:
    router = _router(pose=Constant(0.0))
    _yaw(router, range(3))
    router.set_source("pose", Constant(0.2), fade_ms=0)
    assert _yaw(router, range(3, 4))[0] == pytest.approx(0.2)


def test_other_factors_do_not_move() -> None:
    router = _router(pose=Constant(0.1), exp=Constant(0.2))
    before = router.snapshot(Moment(0)).base
    router.set_source("pose", Constant(-0.1))
    for frame in range(1, 10):
        after = router.snapshot(Moment(frame)).base
        np.testing.assert_array_equal(after.exp, before.exp)
        np.testing.assert_array_equal(after.eye, before.eye)


switches = st.lists(
    st.tuples(st.integers(1, 6), st.floats(-0.2, 0.2), st.integers(200, 2000)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(switches)
def test_switching_during_fades_never_jumps(plan: list[tuple[int, float, int]]) -> None:
    router = _router(pose=Moving(0.0))
    last, frame = float(router.snapshot(Moment(0)).base.pose[0]), 1
    shortest = 2000
    for wait, value, fade_ms in plan:
        router.set_source("pose", Moving(value), fade_ms)
        shortest = min(shortest, fade_ms)
        for _ in range(wait):
            yaw = float(router.snapshot(Moment(frame)).base.pose[0])
            # A smooth step is at most 1.5 times as steep as a line; 0.45 is the widest gap.
            assert abs(yaw - last) <= 0.45 * 1.5 * 40 / shortest + 0.02
            last, frame = yaw, frame + 1
        assert len(router._mixes["pose"].voices) <= MAX_VOICES


@settings(max_examples=40, deadline=None)
@given(switches, st.integers(2, 12))
def test_the_last_source_wins_in_the_end(plan: list[tuple[int, float, int]], rest: int) -> None:
    router = _router(pose=Constant(0.0))
    frame, value = 0, 0.0
    for wait, value, fade_ms in plan:
        router.set_source("pose", Constant(value), fade_ms)
        frame += wait
        router.snapshot(Moment(frame))
    final = router.snapshot(Moment(frame + 50 + rest)).base.pose[0]
    assert final == pytest.approx(value, abs=1e-6)
    assert len(router._mixes["pose"].voices) == 1


def test_lips_fade_from_the_microphone_without_a_jump() -> None:
    mic, lip = MicLip(), np.full(16, 2.0, np.float32)
    router = _router(lip=mic)
    talking = [Moment(f, speech=1.0) for f in range(200)]

    def value(frame: int) -> float:
        return float(router.snapshot(talking[frame]).resolve(lip).lip[0])

    values = [value(f) for f in range(3)]
    router.set_source("lip", Constant(-1.0), 400)
    values += [value(f) for f in range(3, 8)]
    router.set_source("lip", mic, 400)
    values += [value(f) for f in range(8, 11)]
    for i in range(8):
        router.set_source("lip", Constant(0.1 * i), 1000)
        values.append(value(11 + i))
    values += [value(f) for f in range(19, 80)]
    assert values[0] == 2.0
    assert values[-1] == pytest.approx(0.7)
    assert np.abs(np.diff(values)).max() < 0.5


def test_silence_shuts_the_mouth_that_the_microphone_drives() -> None:
    router, lip = _router(lip=MicLip()), np.full(16, 2.0, np.float32)
    assert router.snapshot(Moment(0, speech=1.0)).resolve(lip).lip[0] == 2.0
    assert router.snapshot(Moment(1, speech=0.5)).resolve(lip).lip[0] == 1.0
    assert not router.snapshot(Moment(2, speech=0.0)).resolve(lip).lip.any()
    assert not router.snapshot(Moment(3, speech=1.0)).resolve(None).lip.any()


def test_gain_scales_about_neutral_and_moves_smoothly() -> None:
    own = MotionCode(pose=np.full(6, 0.01, np.float32))
    router = _router(own, pose=Constant(0.1), lip=MicLip())
    router.snapshot(Moment(0))
    router.set_gain("pose", 2.0)
    router.set_gain("lip", 0.0)
    yaw = _yaw(router, range(1, 60))
    assert yaw[-1] == pytest.approx(0.21, abs=1e-3)
    assert np.diff(np.concatenate([[0.11], yaw])).max() < 0.04
    lip = router.snapshot(Moment(61, speech=1.0)).resolve(np.ones(16, np.float32)).lip
    assert np.abs(lip).max() < 1e-2
    for bad in (-0.1, 2.1, float("nan")):
        with pytest.raises(ValueError, match="gain"):
            router.set_gain("pose", bad)


codes = st.floats(-50, 50)


@settings(max_examples=60, deadline=None)
@given(codes, codes, st.floats(-0.6, 0.6), st.floats(0, 2))
def test_every_driving_code_is_in_range(value: float, lip: float, own: float, gain: float) -> None:
    portrait = MotionCode(pose=np.full(6, own, np.float32))
    source = Constant(value)
    router = Router(portrait, Quiet(), dict.fromkeys(FACTORS, source))
    for factor in FACTORS:
        router.set_gain(factor, gain)
    router.snapshot(Moment(0, speech=1.0))
    snapshot = router.snapshot(Moment(100, speech=1.0))
    code = Snapshot(snapshot.base, 1.0).resolve(np.full(16, lip, np.float32))
    assert np.isfinite(code.concat()).all()
    assert np.abs(code.lip).max() <= LIP_LIMIT
    limit = np.maximum(POSE_LIMIT, abs(own) / 0.8) + 1e-5
    assert (np.abs(code.pose) <= limit).all()
    assert np.abs(code.eye[2:4]).max() <= GAZE_LIMIT
    shares = np.concatenate([code.eye[[0, 1, 4, 5]], code.exp])
    assert ((shares >= 0) & (shares <= 1)).all()


def test_soft_clip_is_exact_inside_and_smooth_outside() -> None:
    limit = np.array([0.35], np.float32)
    x = np.linspace(-2, 2, 2001, dtype=np.float32)[:, None]
    y = soft_clip(x, limit)
    inside = np.abs(x) <= 0.28
    np.testing.assert_allclose(y[inside], x[inside], atol=1e-7)
    assert np.abs(y).max() <= 0.35
    slope = np.diff(y[:, 0]) / np.diff(x[:, 0])
    assert slope.max() < 1.001
    assert slope.min() > -1e-3
    assert np.abs(np.diff(slope)).max() < 0.05


def test_blinks_are_mixed_in_where_the_source_has_none() -> None:
    idle = Idle(3)
    frames = range(0, 1500)
    router = Router(MotionCode(), idle, {"eye": Preset("look_left")})
    lids = np.array([router.snapshot(Moment(f)).base.eye[0] for f in frames])
    blinks = np.array([idle.blink(f) for f in frames])
    np.testing.assert_allclose(lids, blinks, atol=1e-6)
    own = Router(MotionCode(), idle, {"eye": Constant(0.25)})
    assert {float(own.snapshot(Moment(f)).base.eye[0]) for f in frames} == {0.25}


def test_a_source_with_nothing_to_say_leaves_the_factor_to_idle() -> None:
    idle, source = Idle(3), Constant(0.2)
    source.silent = True
    router = Router(MotionCode(), idle, {"pose": source})
    for frame in (10, 200):
        np.testing.assert_allclose(
            router.snapshot(Moment(frame)).base.pose, idle.code("pose", Moment(frame)), atol=1e-6
        )


def test_pause_fades_everything_to_idle_and_back() -> None:
    router = _router(lip=MicLip(), pose=Constant(0.2), exp=Constant(0.3))
    lip = np.ones(16, np.float32)
    router.snapshot(Moment(0, speech=1.0))
    router.set_paused(True)
    down = [router.snapshot(Moment(f, speech=1.0)) for f in range(1, 12)]
    assert router.paused
    assert not down[-1].resolve(lip).lip.any()
    assert not down[-1].base.pose.any()
    yaw = [0.2] + [float(s.base.pose[0]) for s in down]
    assert np.abs(np.diff(yaw)).max() < 0.06
    router.set_paused(False)
    up = [router.snapshot(Moment(f, speech=1.0)) for f in range(12, 24)]
    assert up[-1].resolve(lip).lip[0] == pytest.approx(1.0)
    assert up[0].base.pose[0] < 0.05


def test_states_tell_the_page() -> None:
    router = _router(lip=MicLip())
    router.set_source("exp", Preset("smile"), 1000)
    router.set_gain("exp", 1.5)
    states = {s.factor: s for s in router.states()}
    assert [s.factor for s in router.states()] == list(FACTORS)
    assert (states["exp"].source, states["exp"].name, states["exp"].gain) == (
        "preset", "smile", 1.5,
    )  # fmt: skip
    assert states["lip"].source == "mic"
    assert states["pose"].source == "idle"
    assert all(s.source in get_args(SourceKind) for s in states.values())


def test_snapshots_do_not_change_afterwards() -> None:
    router = _router(pose=Constant(0.1))
    first = router.snapshot(Moment(0))
    kept = first.base.concat().copy()
    router.set_source("pose", Constant(-0.1), 40)
    for frame in range(1, 5):
        router.snapshot(Moment(frame))
    np.testing.assert_array_equal(first.base.concat(), kept)


def test_a_learnt_lip_code_is_taken_whole_while_the_microphone_speaks() -> None:
    learnt = np.linspace(-9, 9, 500, dtype=np.float32)
    base = MotionCode()
    assert np.array_equal(Snapshot(base, 1.0).resolve(learnt).lip, learnt)
    assert Snapshot(base, 0.2).resolve(learnt).lip.size == 16, "the portrait's own follow"
