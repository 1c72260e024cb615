"""Training stages on tiny made-up data: losses are finite, fall, and reach every weight."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES, MotionCode
from models.config import ModelConfig
from models.face import LANDMARKS
from models.networks.generator import AppearanceEncoder, Generator
from models.networks.motion import MotionEncoder
from trainer import generator_stage, motion_stage
from trainer.frames import FrameCache, Split, rarity
from trainer.loader import batches, to_unit
from trainer.speech import disturb

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    """Eight made-up people with six frames each: blobs at the places of their landmarks."""
    folder: Path = tmp_path_factory.mktemp("cache")
    face = open_checkpoint().face
    rng = np.random.default_rng(0)
    kinds = ["synth"] * 4 + ["grid"] * 2 + ["still"] * 2
    rows: dict[str, list] = {
        k: [] for k in ("kind", "clip", "person", "frame", "landmarks", "code", "shape")
    }
    pixels = []
    for i, kind in enumerate(kinds):
        colour = rng.integers(40, 200, 3)
        for t in range(6):
            code = (rng.standard_normal(CODE_DIM) * 0.15).astype(np.float32)
            code[FACTOR_SLICES["pose"]] *= 0.3
            points = face.project(face.mean, MotionCode.split(code))
            image = np.full((256, 256, 3), colour, np.uint8)
            for x, y in np.clip(points * 256, 2, 253).astype(int):
                image[y - 2 : y + 2, x - 2 : x + 2] = 255 - colour
            pixels.append(image)
            values = (
                kind,
                f"{kind}/{i}",
                "s1" if kind == "grid" else str(i),
                t,
                points,
                code,
                face.mean,
            )
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
    np.savez(folder / "labels.npz", **{k: np.array(v) for k, v in rows.items()})
    np.savez(folder / "face_model.npz", mean=face.mean, basis=face.basis,
             landmark_mirror=np.arange(LANDMARKS))  # fmt: skip
    np.stack(pixels).tofile(folder / "frames.u8")
    return FrameCache(folder)


def rows(cache: FrameCache) -> np.ndarray:
    return Split(np.arange(len(cache.kind)), np.arange(0)).train


def test_batches_depend_on_seed_and_index_only() -> None:
    def make(rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x": rng.random(3).astype(np.float32)}

    first = batches(make, size=2, seed=1)
    resumed = batches(make, size=2, seed=1, start=3)
    for _ in range(3):
        next(first)
    torch.testing.assert_close(next(first)["x"], next(resumed)["x"])


def test_the_motion_encoder_learns(cache: FrameCache) -> None:
    torch.manual_seed(0)
    recipe = motion_stage.MotionRecipe(batch=4)
    net = MotionEncoder(ModelConfig())
    net.mean_landmarks.copy_(torch.from_numpy(cache.landmarks.mean(0)))
    pairs = next(batches(motion_stage.sampler(cache, rows(cache), recipe), size=2, seed=0))
    data = {name: part.flatten(0, 1) for name, part in pairs.items()}
    optimiser = torch.optim.Adam(net.parameters(), 3e-4)
    weight = motion_stage.lip_weights(cache)
    history = []
    for _ in range(10):
        out = net(to_unit(data["face"]) * 2 - 1)
        loss = sum(motion_stage.losses(out, data, weight).values())
        loss = loss + motion_stage.motion_between(out, data)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    assert min(history[-3:]) < 0.95 * history[0]
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters() if p.ndim > 1
    )


def test_a_pair_is_one_clip_and_its_change_counts_alone(cache: FrameCache) -> None:
    make = motion_stage.sampler(cache, rows(cache), motion_stage.MotionRecipe(share=(1, 0, 0)))
    data = make(np.random.default_rng(3))
    assert data["face"].shape[0] == data["code"].shape[0] == 2
    code = torch.from_numpy(np.stack([data["code"], data["code"]])).flatten(0, 1)
    exact = {factor: code[:, part].clone() for factor, part in FACTOR_SLICES.items()}
    batch = {"code": code}
    # The same error in both moments is no error of the change.
    shifted = {**exact, "pose": exact["pose"] + 0.1}
    assert float(motion_stage.motion_between(shifted, batch)) == pytest.approx(0, abs=1e-4)
    exact["pose"][0] += 0.1
    assert float(motion_stage.motion_between(exact, batch)) == pytest.approx(12 * 0.05, rel=1e-3)


def test_the_generator_learns(cache: FrameCache) -> None:
    torch.manual_seed(0)
    recipe = generator_stage.GeneratorRecipe(sources=2, driving=2, window=24, code_noise=0.0)
    encoder, net = AppearanceEncoder(), Generator(ModelConfig())
    net.geometry.load_face_model(cache.face)
    data = next(batches(generator_stage.sampler(cache, rows(cache), recipe), size=2, seed=0))
    step = generator_stage.GeneratorStep(recipe, encoder, net)
    parameters = [*encoder.parameters(), *net.parameters()]
    optimiser = torch.optim.Adam(parameters, 3e-4)
    history = []
    for _ in range(5):
        parts = step(data, np.random.default_rng(0))
        loss = sum(parts.values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(float(loss.detach()))
    assert set(parts) == {"landmarks", "residual", "warp", "blend", "rgb", "mask"}
    assert history[-1] < history[0]
    unused = [n for n, p in net.named_parameters() if p.grad is None]
    assert unused == []


def test_rare_frames_are_drawn_more_often(cache: FrameCache) -> None:
    weights = rarity(cache)
    shut = cache.code[:, FACTOR_SLICES["eye"]][:, :2].mean(1)
    assert (weights >= 1).all()
    assert np.corrcoef(weights, np.clip(shut, 0, 1))[0, 1] > 0


def test_exact_shape_projects_on_the_landmarks(cache: FrameCache) -> None:
    net = Generator(ModelConfig())
    net.geometry.load_face_model(cache.face)
    code = torch.from_numpy(cache.code[:3])
    points = torch.from_numpy(cache.landmarks[:3]) + 0.01 * torch.randn(3, LANDMARKS, 2)
    shape = generator_stage.exact_shape(
        net.geometry, net.geometry.mean.expand(3, -1, -1), code, points
    )
    torch.testing.assert_close(net.geometry(shape, code)[:, :LANDMARKS], points, atol=1e-4, rtol=0)


def test_disturbed_sound_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    mel = rng.uniform(0, 1, (200, 80)).astype(np.float32)
    for _ in range(10):
        out = disturb(rng, mel)
        assert out.shape == mel.shape
        assert out.dtype == np.float32
        assert 0 <= out.min() <= out.max() <= 1
