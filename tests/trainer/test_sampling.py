"""What the stages draw: expression windows, composed eyes, augmentation, synchronous moments."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.checkpoint import open_checkpoint
from models.codes import FACTOR_SLICES, MotionCode
from models.config import ModelConfig, paper_config
from models.face import GROUPS
from tests.trainer.tiny import tiny, write_cache
from trainer import eye_stage, generator_stage, motion_stage
from trainer.frames import augmented_flow
from trainer.recipes.config import PUBLISHED_AUGMENT, Augment
from trainer.recipes.paper import paper
from trainer.stages.augment import augment, distort
from trainer.stages.eyes import compose_eyes, corner_similarity, eye_mask, eye_triples
from trainer.stages.sampling import (
    Data,
    PairPlan,
    by_clip,
    moments,
    most_frames,
    pairs,
    poses,
    window_rows,
)

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data.open(write_cache(tmp_path_factory.mktemp("cache")))


def clip_of(data: Data) -> np.ndarray:
    clips = by_clip(data.frames, np.arange(len(data.frames.kind)))
    return clips["synth/0"]


def test_the_trailing_window_never_looks_ahead(data: Data) -> None:
    clip = clip_of(data)
    row = int(clip[4])
    rows = window_rows(data.frames, clip, row, 7, "trailing")
    frames = data.frames.frame[rows]
    assert len(rows) == 7
    assert frames.max() == data.frames.frame[row] == 12
    assert frames.min() == 6
    assert set(frames) == {6, 9, 12}, "cached ones stand in for their neighbours"
    first = window_rows(data.frames, clip, int(clip[0]), 7, "trailing")
    assert set(data.frames.frame[first]) == {0}, "nothing is before the first frame"


def test_the_centred_window_looks_both_ways(data: Data) -> None:
    clip = clip_of(data)
    rows = window_rows(data.frames, clip, int(clip[4]), 7, "centred")
    assert set(data.frames.frame[rows]) == {9, 12, 15}
    assert most_frames(data.frames, 7) >= 3


def test_the_window_of_a_sample_is_the_mean_of_its_labels(data: Data) -> None:
    plan = PairPlan(ModelConfig(), 2, Augment(light=0, similarity=(0, 0, 0)), synth_share=1.0,
                    window=7, sound=True)  # fmt: skip
    sample = pairs(data, plan)(np.random.default_rng(0))
    shares = sample["window_share"]
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert sample["window"].shape[:2] == shares.shape
    assert sample["heard"].sum() == 0, "rendered clips are silent"
    frames = data.frames
    exp = frames.code[:, FACTOR_SLICES["exp"]]
    driving = sample["code"][1][FACTOR_SLICES["exp"]]
    row = int(np.abs(np.sort(exp, 1) - np.sort(driving)).sum(1).argmin())
    clip = by_clip(frames, np.arange(len(frames.kind)))[str(frames.clip[row])]
    rows = window_rows(frames, clip, row, 7, "trailing")
    wanted = np.sort(exp[rows].mean(0))
    # A flip exchanges left and right, which sorting forgives.
    np.testing.assert_allclose(np.sort(sample["window_exp"][0]), wanted, atol=1e-5)


def test_pictures_come_at_the_size_of_the_configuration(data: Data) -> None:
    sample = pairs(data, PairPlan(paper_config(), 1, Augment(), sound=True))(
        np.random.default_rng(1)
    )
    assert sample["pixels"].shape == (2, 224, 224, 3)
    assert sample["mel"].shape == (1, 20, 80)


def test_moments_of_a_clip_are_in_step(data: Data) -> None:
    recipe = replace(tiny().stage2a, frames=4)
    sample = moments(data, recipe, ModelConfig())(np.random.default_rng(3))
    assert sample["mel"].shape == (4, 2, 28, 80)
    # The second window of a moment is the first one, one video frame later.
    overlap = sample["mel"][:, 0, 4:], sample["mel"][:, 1, :-4]
    np.testing.assert_array_equal(*overlap)
    np.testing.assert_allclose(sample["lip"][:, 0], sample["seen"], atol=1e-5)
    assert len(np.unique(sample["frame"])) == 4


def test_poses_follow_their_crop(data: Data) -> None:
    recipe = replace(tiny().stage2c, augment=Augment(light=0, similarity=(0, 0, 0)))
    sample = poses(data, recipe, ModelConfig())(np.random.default_rng(0))
    gap = np.abs(np.abs(data.frames.code[:, FACTOR_SLICES["pose"]]) - np.abs(sample["pose"]))
    assert gap.sum(1).min() < 1e-5, "up to a flip, a pose of the cache"


# --- composed eyes -----------------------------------------------------------------------------


def test_corners_meet() -> None:
    a = np.array([[10, 20], [30, 24]], np.float32)
    b = np.array([[50, 60], [44, 90]], np.float32)
    move = corner_similarity(a, b)
    np.testing.assert_allclose(a @ move[:, :2].T + move[:, 2], b, atol=1e-4)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    face = open_checkpoint(verify=False).face
    return face.project(face.mean, MotionCode())


def test_the_mask_covers_the_eye_and_spares_the_brow(points: np.ndarray) -> None:
    mask = eye_mask(points, "eye_left", 256)
    eye = np.round(points[GROUPS["iris_left"]][0] * 256).astype(int)
    assert mask[eye[1], eye[0]] > 0.95
    for x, y in np.round(points[GROUPS["brow_left"]] * 256).astype(int):
        assert mask[y, x] < 0.3
    assert mask[200:].max() == 0, "no mouth"


def test_eyes_change_owner_and_the_rest_stays(points: np.ndarray) -> None:
    face = np.full((256, 256, 3), 150, np.uint8)
    donor = np.full((256, 256, 3), 90, np.uint8)
    centre = np.round(points[GROUPS["iris_left"]][0] * 256).astype(int)
    cv2.circle(donor, (int(centre[0]), int(centre[1])), 4, (0, 0, 0), -1)
    out = compose_eyes(donor, points, face, points)
    assert out[centre[1], centre[0]].mean() < 110, "the donor's dark iris, less contrast"
    mask = np.maximum(eye_mask(points, "eye_left", 256), eye_mask(points, "eye_right", 256))
    assert (out[mask == 0] == 150).all()
    skin = (mask > 0.2) & (mask < 0.6)
    assert np.abs(out[skin].astype(int) - 150).mean() < 12, "colours match at the seam"


def test_triples_hold_two_people_and_the_anchor(data: Data) -> None:
    sample = eye_triples(data, tiny().stage2b, ModelConfig())(np.random.default_rng(0))
    assert sample["face"].shape == (3, 256, 256, 3)
    assert sample["eye"].shape == (2, 6)


# --- augmentation ----------------------------------------------------------------


def test_named_codes_are_never_distorted() -> None:
    for spec in (tiny().stage1.augment, tiny().stage3.augment, tiny().stage2a.augment):
        assert (spec.perspective, spec.elastic, spec.anisotropic, spec.shift) == (0, 0, 0, 0)
    assert paper().stage1.augment == PUBLISHED_AUGMENT
    assert PUBLISHED_AUGMENT.anisotropic == 0.2
    assert PUBLISHED_AUGMENT.shift == 0.05


def test_distortion_moves_and_light_does_not() -> None:
    image = np.zeros((128, 128, 3), np.uint8)
    cv2.circle(image, (64, 64), 20, (255, 255, 255), -1)

    def area_and_centre(x: np.ndarray) -> tuple[float, float]:
        ys, xs = np.nonzero(x.mean(2) > 127)
        return float(len(xs)), float(np.hypot(xs.mean() - 64, ys.mean() - 64))

    moved = [distort(np.random.default_rng(i), image, PUBLISHED_AUGMENT) for i in range(20)]
    areas, shifts = zip(*map(area_and_centre, moved), strict=True)
    assert np.std(areas) > 50
    assert max(shifts) > 3
    same = augment(np.random.default_rng(0), image, Augment(light=0))
    np.testing.assert_array_equal(same, image)
    lit = augment(np.random.default_rng(1), image, Augment())
    assert lit.shape == image.shape
    assert not np.array_equal(lit, image)


def test_samples_depend_on_their_generator_alone(data: Data, tmp_path: Path) -> None:
    make = pairs(data, PairPlan(ModelConfig(), 1, Augment(), window=7, sound=True))
    a, b = make(np.random.default_rng(5)), make(np.random.default_rng(5))
    for key, value in a.items():
        np.testing.assert_array_equal(value, b[key])


def test_a_folder_of_ones_own_videos_feeds_every_stage(tmp_path: Path) -> None:
    data = Data.open(write_cache(tmp_path, kinds=("grid",) * 6, filmed=""))
    recipe, config, rng = tiny(), ModelConfig(), np.random.default_rng(0)
    recipe = replace(recipe, stage2b=replace(recipe.stage2b, apart=0.0))
    makes = [
        pairs(data, PairPlan(config, 1, Augment(), window=7, sound=True)),
        moments(data, recipe.stage2a, config),
        eye_triples(data, recipe.stage2b, config),
        poses(data, recipe.stage2c, config),
        motion_stage.sampler(data.frames, data.train, motion_stage.MotionRecipe()),
        eye_stage.sampler(data.frames, data.train),
        generator_stage.sampler(data.frames, data.train, generator_stage.GeneratorRecipe()),
    ]
    for make in makes:
        assert make(rng)
    assert len(data.people) < 6, "somebody is held out"
    with pytest.raises(ValueError, match="has more than 9 frames"):
        generator_stage.sampler(data.frames, data.train, generator_stage.GeneratorRecipe(driving=9))


@pytest.mark.parametrize("flip", [False, True])
def test_the_renderers_flow_follows_the_crop(tmp_path: Path, flip: bool) -> None:
    folder = write_cache(tmp_path)
    count = len(Data.open(folder).frames.kind)
    axis = (np.arange(256) + 0.5) / 256
    still = np.stack(np.meshgrid(axis, axis), -1)
    # Every frame came from .05 further left and .02 further down.
    flow = np.broadcast_to(still + np.array([-0.05, 0.02]), (count, 256, 256, 2)).astype(np.float16)
    flow.tofile(folder / "flow.f16")
    np.full((count, 256, 256), 255, np.uint8).tofile(folder / "validity.u8")
    frames = Data.open(folder).frames
    turn = np.array([[0.9, -0.1, 0.06], [0.1, 0.9, -0.04]], np.float32)
    found, valid = augmented_flow(frames, 3, turn, flip=flip, size=64)
    shift = np.array([0.05 if flip else -0.05, 0.02])
    axis = (np.arange(64) + 0.5) / 64
    wanted = np.stack(np.meshgrid(axis, axis), -1) + turn[:, :2] @ shift
    known = valid[0] > 0
    assert 0.5 < known.mean() < 1
    np.testing.assert_allclose(found.transpose(1, 2, 0)[known], wanted[known], atol=4e-3)
    plan = PairPlan(ModelConfig(), 2, Augment(), synth_share=1.0, flow=True)
    data = replace(Data.open(folder), frames=frames)
    sample = pairs(data, plan)(np.random.default_rng(0))
    assert sample["flow"].shape == (2, 2, 64, 64)
    assert sample["valid"].mean() > 0.5
    silent = pairs(data, replace(plan, synth_share=0.0))(np.random.default_rng(0))
    assert not silent["valid"].any(), "filmed clips know no flow"
