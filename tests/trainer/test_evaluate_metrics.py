"""Every figure on signals and pictures whose answer is known."""

import cv2
import numpy as np
import pytest

from trainer.evaluate import kid, metrics
from trainer.evaluate.explained import explained, square
from trainer.evaluate.leakage import (
    FACTOR_ORDER,
    FACTOR_SIGNALS,
    ExactPair,
    Swap,
    arrival,
    crosstalk,
    leakage_matrix,
    signal_leakage,
)
from trainer.evaluate.perceptual import LAYERS, features, perceptual

pytestmark = pytest.mark.unit


def wander(rng: np.random.Generator, count: int) -> np.ndarray:
    """A smooth random signal of unit spread."""
    x = np.convolve(rng.standard_normal(count + 20), np.hanning(9), "valid")[:count]
    return (x - x.mean()) / x.std()


@pytest.mark.parametrize("late", [-3, 0, 2, 5])
def test_a_delayed_copy_has_its_lag_and_slope(rng: np.random.Generator, late: int) -> None:
    driver = wander(rng, 200)
    ours = 0.6 * np.roll(driver, late) + 3.0
    found = metrics.follow(ours[10:-10], driver[10:-10])
    assert found["lag_frames"] == pytest.approx(late, abs=0.1)
    assert found["best_r"] == pytest.approx(1.0, abs=1e-6)
    assert found["slope"] == pytest.approx(0.6, abs=1e-6)
    if late:
        assert found["r"] < 0.95


def test_lags_between_frames_are_seen(rng: np.random.Generator) -> None:
    fine = wander(rng, 4000)
    smooth = np.convolve(fine, np.hanning(61) / np.hanning(61).sum(), "same")
    driver, ours = smooth[50:-50:10], smooth[46:-54:10]  # 0.4 frames late
    assert metrics.best_lag(ours, driver)[0] == pytest.approx(0.4, abs=0.1)


def test_errors_are_in_the_signals_unit() -> None:
    driver = np.array([0.0, 2.0, 4.0, 2.0, 0.0])
    found = metrics.follow(driver + 1.5, driver)
    assert found["mae"] == pytest.approx(1.5)
    assert found["mae_centred"] == pytest.approx(0.0)
    assert found["r"] == pytest.approx(1.0)


def test_what_stands_still_is_nan_not_zero() -> None:
    found = metrics.follow(np.ones(40), np.sin(np.arange(40.0)))
    assert np.isnan(found["r"])
    assert np.isnan(found["best_r"])
    assert np.isnan(metrics.probe_r2(np.ones((4, 2)), np.ones((4, 1)), np.array(["a"] * 4)))


def test_blinks_are_matched_once_each() -> None:
    driver, ours = np.zeros(100), np.zeros(100)
    for at in (10, 40, 70):
        driver[at : at + 4] = 1
    ours[12:15] = 1  # the first, two frames late
    ours[55:58] = 1  # one that nobody made
    found = metrics.blink_f1(ours, driver)
    assert found["count"] == 3
    assert found["f1"] == pytest.approx(2 * 1 / (2 + 3))
    assert metrics.blink_f1(driver, driver)["f1"] == 1
    assert np.isnan(metrics.blink_f1(np.zeros(9), np.zeros(9))["f1"])


def test_jitter_sees_shaking_and_not_moving(rng: np.random.Generator) -> None:
    moving = np.linspace(0, 50, 100)[:, None, None] * np.ones((1, 8, 2))
    assert metrics.jitter(moving) == pytest.approx(0.0, abs=1e-9)
    noise = rng.normal(0, 0.5, moving.shape)
    # A five-frame mean leaves 4/5 of the variance of white noise, in two axes.
    assert metrics.jitter(moving + noise) == pytest.approx(0.5 * np.sqrt(2 * 0.8), rel=0.08)


def test_psnr_and_ssim_of_known_differences() -> None:
    a = np.full((64, 64, 3), 100, np.uint8)
    assert metrics.psnr(a, a) == float("inf")
    assert metrics.psnr(a, a + 16) == pytest.approx(20 * np.log10(255 / 16))
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert metrics.ssim(picture, picture) == pytest.approx(1.0)
    assert metrics.ssim(picture, 255 - picture) < 0


def test_sharpness_falls_with_blur_only_inside_the_hull() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    hull = np.array([[30, 30], [90, 30], [90, 90], [30, 90]], float)
    outside = picture.copy()
    outside[:20] = 0
    soft = cv2.GaussianBlur(picture, (0, 0), 2)
    sharp = metrics.sharpness(picture, hull)
    assert metrics.sharpness(outside, hull) == sharp
    assert metrics.sharpness(soft, hull) < 0.3 * sharp


def test_the_perceptual_distance_grows_with_damage_and_ignores_nothing() -> None:
    picture = cv2.resize(
        np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8), (128, 128)
    )
    soft, softer = (cv2.GaussianBlur(picture, (0, 0), s) for s in (1, 3))
    assert len(features(picture)) == LAYERS
    assert perceptual(picture, picture) == 0
    assert 0 < perceptual(picture, soft) < perceptual(picture, softer)
    wide = np.ascontiguousarray(picture[:96])
    assert features(wide)[0].shape == (32, 126, 94), "transposed, as the net was trained"


@pytest.mark.parametrize("late", [-4, 0, 3])
def test_lse_finds_the_offset_of_matching_embeddings(rng: np.random.Generator, late: int) -> None:
    audio = np.stack([wander(rng, 150) for _ in range(16)], 1)
    found = metrics.lse(audio, np.roll(audio, late, 0) + rng.normal(0, 0.2, audio.shape))
    assert found["offset_frames"] == late
    foreign = metrics.lse(audio, np.stack([wander(rng, 150) for _ in range(16)], 1))
    assert found["confidence"] > 5 * foreign["confidence"]


def test_probes_find_what_a_code_holds_and_nothing_else(rng: np.random.Generator) -> None:
    people = np.repeat([f"p{i}" for i in range(20)], 30)
    factor, other = rng.standard_normal((600, 2)), rng.standard_normal((600, 2))
    code = factor @ rng.standard_normal((2, 6)) + 0.05 * rng.standard_normal((600, 6))
    assert metrics.probe_r2(code, factor, people) > 0.95
    assert metrics.probe_r2(code, other, people) < 0.05
    half = np.concatenate([factor[:, :1], other[:, :1]], 1)
    assert metrics.probe_r2(code, half, people) == pytest.approx(0.5, abs=0.06)


def test_probes_do_not_learn_people_by_heart(rng: np.random.Generator) -> None:
    """A code that names the person predicts a person's factor only on people it has seen."""
    names = np.repeat(np.arange(12), 40)
    code = np.eye(12)[names] + 0.01 * rng.standard_normal((480, 12))
    factor = rng.standard_normal(12)[names][:, None]
    assert metrics.probe_r2(code, factor, names) < 0.2


def test_retrieval_is_perfect_for_speech_and_chance_for_noise(rng: np.random.Generator) -> None:
    clips = np.repeat(np.arange(10), 30)
    sound = rng.standard_normal((300, 8))
    speaking = sound @ rng.standard_normal((8, 12)) + 0.05 * rng.standard_normal((300, 12))
    found = metrics.retrieval(speaking, sound, clips, among=20)
    assert found["top1"] > 0.95
    silent = metrics.retrieval(rng.standard_normal((300, 12)), sound, clips, among=20)
    assert silent["top1"] < 3 * silent["chance"]
    assert silent["chance"] == 1 / 20


# --- leakage --------------------------------------------------------------------------


def made_swap(rng: np.random.Generator, leak: dict[tuple[str, str], float]) -> Swap:
    """Two clips, and what a system shows whose code f moves factor g by `leak[f, g]`."""
    floors = {n: floor for group in FACTOR_SIGNALS.values() for n, floor in group.items()}
    names = list(floors)
    factor_of = {n: f for f, group in FACTOR_SIGNALS.items() for n in group}
    a = {n: 10 * floors[n] * wander(rng, 80) for n in names}
    b = {n: 10 * floors[n] * wander(rng, 80) for n in names}
    swapped = {}
    for f in FACTOR_ORDER:
        share = {n: leak.get((f, factor_of[n]), 1.0 if factor_of[n] == f else 0.0) for n in names}
        swapped[f] = {n: a[n] + share[n] * (b[n] - a[n]) for n in names}
    return Swap(a, b, swapped)


def test_a_clean_system_has_the_identity_matrix(rng: np.random.Generator) -> None:
    swaps = [made_swap(rng, {}) for _ in range(2)]
    matrix = leakage_matrix(swaps)
    for f in FACTOR_ORDER:
        for g in FACTOR_ORDER:
            assert matrix[f][g] == pytest.approx(float(f == g), abs=1e-9)
    assert max(arrival(swaps).values()) == pytest.approx(0.0, abs=1e-9)


def test_a_constructed_leak_stands_where_it_was_put(rng: np.random.Generator) -> None:
    leaky = {("pose", "eye"): 0.25, ("exp", "lip"): 0.4, ("eye", "eye"): 0.7}
    swaps = [made_swap(rng, leaky) for _ in range(3)]
    matrix = leakage_matrix(swaps)
    assert matrix["pose"]["eye"] == pytest.approx(0.25)
    assert matrix["exp"]["lip"] == pytest.approx(0.4)
    assert matrix["eye"]["eye"] == pytest.approx(0.7)
    assert matrix["lip"]["pose"] == pytest.approx(0.0, abs=1e-9)
    assert arrival(swaps)["eye"] == pytest.approx(0.3)
    assert signal_leakage(swaps)["pose"]["gaze_x"] == pytest.approx(0.25)


def test_signals_that_do_not_differ_are_left_out(rng: np.random.Generator) -> None:
    swap = made_swap(rng, {})
    still = {**swap.a, "mouth_gap": np.zeros(80)}
    gap = {"mouth_gap": np.full(80, 1e-4)}
    same = Swap(still, dict(swap.b) | gap, {f: dict(x) | gap for f, x in swap.swapped.items()})
    assert np.isnan(leakage_matrix([same])["pose"]["lip"])
    assert leakage_matrix([same])["pose"]["pose"] == pytest.approx(1.0)


def test_the_measures_own_confusion_is_told_apart(rng: np.random.Generator) -> None:
    swap = made_swap(rng, {})
    confused = {n: v + (6.0 if n == "gaze_x" else 0.0) for n, v in swap.a.items()}
    turned = {**confused, "yaw": swap.b["yaw"]}
    found = crosstalk([ExactPair("pose", swap.a, turned)], [swap])
    assert set(found) == {"pose"}
    assert 0.05 < found["pose"]["eye"] < 0.5
    assert found["pose"]["lip"] == 0
    assert found["pose"]["pose"] > 0.2


FLOORS = {n: floor for group in FACTOR_SIGNALS.values() for n, floor in group.items()}


def seen(signals: dict[str, np.ndarray], smile_as_pitch: float, seed: int) -> dict[str, np.ndarray]:
    """The same through a measure that takes smiles for pitch and trembles a fifth of a floor."""
    rng = np.random.default_rng(seed)
    out = {n: v + 0.2 * FLOORS[n] * rng.standard_normal(len(v)) for n, v in signals.items()}
    out["pitch"] = out["pitch"] + smile_as_pitch * signals["smile"]
    return out


def watched(rng: np.random.Generator, leak: dict[tuple[str, str], float]) -> Swap:
    """A swap whose labels are the truth, seen by a measure that errs by another amount per face."""
    swap, confusion = made_swap(rng, leak), rng.uniform(3, 15)
    codes = {f: seen(dict(s), confusion, i) for i, (f, s) in enumerate(swap.swapped.items())}
    labels = (swap.a, swap.b)
    a, b = seen(dict(swap.a), confusion, 8), seen(dict(swap.b), confusion, 9)
    return Swap(a, b, codes, labels)


def redrawn(rng: np.random.Generator, factor: str, leak: float) -> ExactPair:
    """True frames in which one factor changes; ours go .8 as far and turn by `leak` of it."""
    swap, confusion = made_swap(rng, {}), rng.uniform(3, 15)
    true = {**swap.a, **{n: swap.b[n] for n in FACTOR_SIGNALS[factor]}}
    ours = {n: swap.a[n] + 0.8 * (true[n] - swap.a[n]) for n in swap.a}
    first = next(iter(FACTOR_SIGNALS[factor]))
    turn = leak * (ours[first] - swap.a[first]) / FLOORS[first] * FLOORS["yaw"]
    ours["yaw"] = ours["yaw"] + turn
    parts = (swap.a, true, swap.a, ours)
    return ExactPair(factor, *(seen(dict(x), confusion, i) for i, x in enumerate(parts)))


def test_what_a_code_carries_is_found_in_its_size(rng: np.random.Generator) -> None:
    leaky = {("pose", "eye"): 0.3, ("lip", "lip"): 0.8}
    swaps = [watched(rng, leaky) for _ in range(10)]
    found = explained(swaps, [])
    assert found["pose"]["eye carried"] == pytest.approx(0.3, abs=0.03)
    assert found["lip"]["lip"] == pytest.approx(0.8, abs=0.03), "arrived on the diagonal"
    for f, row in found.items():
        for g in FACTOR_ORDER:
            if f != g and (f, g) != ("pose", "eye"):
                assert abs(row[f"{g} carried"]) < 0.03, "neither noise nor confusion is carried"
    assert leakage_matrix(swaps)["exp"]["pose"] > 0.1, "the raw matrix has the confusion in it"


def test_a_smile_that_fades_in_another_pose_is_not_carried_by_it(rng: np.random.Generator) -> None:
    swaps = []
    for swap in (watched(rng, {}) for _ in range(10)):
        faded = {**swap.swapped["pose"], "smile": 0.7 * swap.a["smile"]}
        swaps.append(Swap(swap.a, swap.b, {**swap.swapped, "pose": faded}, swap.labels))
    assert leakage_matrix(swaps)["pose"]["exp"] > 0.05
    assert abs(explained(swaps, [])["pose"]["exp carried"]) < 0.03


def test_what_is_drawn_along_is_told_from_what_true_faces_show(rng: np.random.Generator) -> None:
    swaps = [watched(rng, {}) for _ in range(5)]
    clean = explained(swaps, [redrawn(rng, "exp", 0.0) for _ in range(5)])
    assert clean["exp"]["pose along"] < 0.05, "the measure's pitch of a smile is in both"
    assert clean["exp"]["pose low"] <= clean["exp"]["pose"] <= clean["exp"]["pose high"]
    turning = explained(swaps, [redrawn(rng, "exp", 0.5) for _ in range(5)])
    # .8 of a smile's movement times .5, of three axes that move alike.
    assert turning["exp"]["pose along"] == pytest.approx(0.8 * 0.5 / np.sqrt(3), rel=0.25)
    assert turning["exp"]["pose"] >= turning["exp"]["pose along"]
    assert np.isnan(turning["pose"]["lip along"]), "no clips say anything about the pose"


def test_two_pairs_take_nothing_apart(rng: np.random.Generator) -> None:
    found = explained([watched(rng, {})] * 2, [])
    assert np.isnan(found["lip"]["pose"])
    unlabelled = explained([made_swap(rng, {})] * 4, [])
    assert np.isnan(unlabelled["lip"]["pose carried"])
    assert set(square(found)["lip"]) == set(FACTOR_ORDER)


# --- sets of pictures -----------------------------------------------------------------


def test_kid_is_zero_on_average_for_one_source_and_grows_with_damage(
    rng: np.random.Generator,
) -> None:
    def people(shift: float) -> list[np.ndarray]:
        return [rng.standard_normal((12, 40)) + shift for _ in range(10)]

    same = [kid.mmd2(np.concatenate(people(0)), np.concatenate(people(0))) for _ in range(8)]
    assert min(same) < 0 < max(same), "without bias it falls on both sides of 0"
    real = people(0)
    near, far = kid.kid(people(0.2), real), kid.kid(people(0.6), real)
    assert abs(kid.kid(people(0), real)["kid"]) < near["kid"] < far["kid"]
    assert near["spread"] > 0
    assert np.isnan(kid.kid(real[:3], real[:3])["kid"]), "three people are no set"


def test_kid_features_see_blur() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sharp, soft = kid.describe(picture), kid.describe(cv2.GaussianBlur(picture, (0, 0), 2))
    assert sharp.shape == (576,)
    assert np.linalg.norm(sharp - soft) > 0.1 * np.linalg.norm(sharp)
