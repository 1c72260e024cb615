"""Train E_app and the warping generator by self-reenactment.

Two frames of one person: one is the portrait, the others drive it. The landmarks
supervise the flow (what is at a driving landmark must come from the same landmark of the
source); photometric losses do the rest. One portrait serves several driving frames, and
the decoder is trained on windows, mostly the face: that makes a CPU step 2.5 times
cheaper and spends it where pixels must be invented.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.codes import FACTOR_SLICES
from models.config import ModelConfig
from models.face import GROUPS
from models.networks.generator import AppearanceEncoder, Generator, resize, rotation, warp
from trainer.frames import SIZE, WHOLE, FrameCache, augmented, random_similarity, rarity
from trainer.loader import Make, Sample, batches, to_unit
from trainer.loop import Parts, Report, cosine, descend, resume, save, set_rate
from trainer.losses.flow import landmark_flow, picture_difference, smooth_residual
from trainer.synthesis.inside import mouth_pictures

U8 = NDArray[np.uint8]
_SHAPE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class GeneratorRecipe:
    """Everything that decides the run."""

    sources: int = 4
    driving: int = 3
    steps: int = 3300
    lr: float = 1.2e-3
    synth_share: float = 0.6
    window: int = 36
    mouth_window: int = 26
    window_shares: tuple[float, float, float] = (0.5, 0.4, 0.1)
    """Face, mouth, anywhere."""
    code_noise: float = 0.04
    landmark_weight: float = 40.0
    residual_weight: float = 2.0
    region_gain: float = 5.0
    seed: int = 3


def region_weights(landmarks: NDArray[np.float32], kind: str, size: int = 64) -> U8:
    """Weights (64, 64): 0 elsewhere, 255 on mouth and eyes, 100 inside a drawn CG mouth."""
    image = np.zeros((size, size), np.uint8)
    for name in ("eye_left", "eye_right", "lips_outer"):
        hull = cv2.convexHull((landmarks[GROUPS[name]] * size * 16).astype(np.int32))
        cv2.fillConvexPoly(image, hull, 255, shift=4)
    image = np.asarray(cv2.dilate(image, np.ones((3, 3), np.uint8)), np.uint8)
    if kind == "synth":
        inner = (landmarks[GROUPS["lips_inner"]] * size * 16).astype(np.int32)
        cv2.fillPoly(image, [inner], 100, shift=4)
    return image


def sampler(cache: FrameCache, rows: NDArray[np.int64], recipe: GeneratorRecipe) -> Make:
    """A function rng -> one portrait with its driving frames.

    Kinds that the cache does not hold leave their share to the others. Raises ValueError where
    no clip has more frames than one portrait drives.
    """
    people: dict[str, list[NDArray[np.int64]]] = {"synth": [], "s1": [], "misc": []}
    synth = rows[cache.kind[rows] == "synth"]
    for person in np.unique(cache.person[synth]):
        people["synth"].append(synth[cache.person[synth] == person])
    grid = rows[cache.kind[rows] == "grid"]
    for clip in np.unique(cache.clip[grid]):
        mine = grid[cache.clip[grid] == clip]
        people["s1" if cache.person[mine[0]] == "s1" else "misc"].append(mine)
    people = {k: [p for p in pools if len(p) > recipe.driving] for k, pools in people.items()}
    if not any(people.values()):
        raise ValueError(f"no clip that may be trained on has more than {recipe.driving} frames")
    rare = rarity(cache)

    def make(rng: np.random.Generator) -> Sample:
        misc = bool(people["misc"]) and rng.random() < 0.25
        kind = "synth" if rng.random() < recipe.synth_share else ("misc" if misc else "s1")
        pools = people[kind] or people["misc"] or people["s1"] or people["synth"]
        pool = pools[int(rng.integers(len(pools)))]
        source = rng.choice(pool)
        likely = rare[pool] / rare[pool].sum()
        driving = rng.choice(pool, recipe.driving, replace=False, p=likely)
        chosen = np.concatenate([[source], driving])
        move = random_similarity(rng, zoom=0.08, angle=0.06, shift=0.03)
        flip = rng.random() < 0.5
        pixels, landmarks, codes, regions = [], [], [], []
        gain = rng.uniform(0.9, 1.08, 3) * rng.uniform(0.85, 1.08)
        table = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-12, 12), 0, 255)
        for row in chosen:
            image, points, code = augmented(cache, int(row), move, flip=flip, out=WHOLE, size=SIZE)
            pixels.append(cv2.LUT(image, table.astype(np.uint8)[None]))
            landmarks.append(points)
            codes.append(code)
            regions.append(region_weights(points, "synth" if kind == "synth" else "real"))
        shape = cache.shape[chosen[0]]
        if flip:
            shape = shape[cache.landmark_mirror] * np.array([-1, 1, 1], np.float32)
        return {
            "pixels": np.stack(pixels),
            "landmarks": np.stack(landmarks),
            "code": np.stack(codes),
            "region": np.stack(regions),
            "shape": shape.astype(np.float32),
        }

    return make


def exact_shape(face: nn.Module, shape: Tensor, code: Tensor, landmarks: Tensor) -> Tensor:
    """Shift a neutral shape in the image plane so that it projects on the given landmarks.

    That is what enrolment does (`FaceModel.lift`); (B, 152, 3), (B, 58), (B, 152, 2). How far
    lids travel depends on the shape itself, so a few rounds are needed when they are half shut.
    """
    pose = code[:, FACTOR_SLICES["pose"]]
    scale, turn = pose[:, 5:6].exp()[:, None], rotation(pose)
    for _ in range(_SHAPE_ROUNDS):
        plane = (landmarks - face(shape, code)[:, :152]) * landmarks.new_tensor([1.0, -1.0]) / scale
        shape = shape + torch.matmul(F.pad(plane, (0, 1)), turn)
    return shape


class GeneratorStep:
    """One forward pass with all losses."""

    def __init__(self, recipe: GeneratorRecipe, encoder: AppearanceEncoder, net: Generator) -> None:
        self.recipe, self.encoder, self.net = recipe, encoder, net

    def __call__(self, batch: dict[str, Tensor], rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses of one batch from `sampler`."""
        recipe, net = self.recipe, self.net
        count, repeat = len(batch["pixels"]), recipe.driving
        pixels = batch["pixels"].flatten(0, 1)
        images = to_unit(pixels).view(count, 1 + repeat, 3, SIZE, SIZE)
        source, target = images[:, 0], images[:, 1:].flatten(0, 1)
        code = batch["code"]
        noise = torch.randn(code[:, 1:].shape) * recipe.code_noise
        noise[..., FACTOR_SLICES["pose"]] *= 0.05
        driving = (code[:, 1:] + noise).flatten(0, 1)
        shape = exact_shape(net.geometry, batch["shape"], code[:, 0], batch["landmarks"][:, 0])

        def many(x: Tensor) -> Tensor:
            return x.repeat_interleave(repeat, 0)

        with torch.autocast("cpu", torch.bfloat16):
            f64, f32, identity = self.encoder(source * 2 - 1)
        f64, f32, identity = (many(x.float()) for x in (f64, f32, identity))
        with torch.autocast("cpu", torch.bfloat16):
            motion = net.motion(f32, identity, many(shape), many(code[:, 0]), driving)
        left, top, size = self._window(rng)
        part = motion.window(left, top, size)
        source_many = many(source)
        with torch.autocast("cpu", torch.bfloat16):
            mask, rgb = net.decode(resize(source_many, 128) * 2 - 1, f64, part)
        flow = motion.flow.float()
        out = self._flow_losses(batch, flow, motion.residual.float(), source, target, many)
        rows, columns = (slice(4 * s, 4 * (s + size)) for s in (top, left))
        region = batch["region"][:, 1:].flatten(0, 1)[:, None].float() / 255
        weight = 1 + (recipe.region_gain - 1) * resize(region, SIZE)[:, :, rows, columns]
        warped = warp(source_many, resize(flow, SIZE)[:, :, rows, columns])
        wanted = target[:, :, rows, columns]
        mask, rgb = mask.float(), rgb.float()
        blend = mask * warped + (1 - mask) * rgb
        inner = slice(8, -8)
        w = weight[..., inner, inner]
        out["blend"] = picture_difference(blend[..., inner, inner], wanted[..., inner, inner], w)
        out["rgb"] = 0.4 * picture_difference(rgb[..., inner, inner], wanted[..., inner, inner], w)
        out["mask"] = 0.02 * ((1 - mask) * (weight < 1.5)).mean()
        return out

    def _window(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Left, top and size of the part to decode, in cells of the flow."""
        kind = int(rng.choice(3, p=self.recipe.window_shares))
        size = self.recipe.mouth_window if kind == 1 else self.recipe.window
        if kind == 2:
            return int(rng.integers(0, 65 - size)), int(rng.integers(0, 65 - size)), size
        middle = 45 if kind == 1 else 37
        left, top = 32 - size // 2, middle - size // 2
        return left + int(rng.integers(-2, 3)), top + int(rng.integers(-3, 4)), size

    def _flow_losses(
        self,
        batch: dict[str, Tensor],
        flow: Tensor,
        residual: Tensor,
        source: Tensor,
        target: Tensor,
        many: Callable[[Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """Where landmarks come from, smoothness of the correction, and the warp's own picture."""
        recipe = self.recipe
        driven = batch["landmarks"][:, 1:].flatten(0, 1)
        origin = many(batch["landmarks"][:, 0])
        small = warp(many(resize(source, 128)), resize(flow, 128))
        return {
            "landmarks": recipe.landmark_weight * landmark_flow(flow, driven, origin),
            "residual": recipe.residual_weight * smooth_residual(residual),
            "warp": (small - resize(target, 128)).abs().mean(),
        }


def _optimiser(
    encoder: AppearanceEncoder, net: Generator, lr: float
) -> tuple[torch.optim.Adam, list[nn.Parameter]]:
    """Adam and all parameters; the few of the kernel learn eight times faster."""
    parameters = [*encoder.parameters(), *net.parameters()]
    kernel = list(net.kernel.parameters())
    kernel_ids = {id(p) for p in kernel}
    rest = [p for p in parameters if id(p) not in kernel_ids]
    groups = [{"params": rest, "scale": 1.0}, {"params": kernel, "scale": 8.0}]
    return torch.optim.Adam(groups, lr, (0.5, 0.99)), parameters


@torch.no_grad()
def _follow(average: list[Tensor], parameters: list[nn.Parameter], step: int) -> None:
    """Move the running average of the weights after `step` (from 0); it follows fast at first."""
    decay = min(0.998, (step + 1) / (step + 20))
    for a, p in zip(average, parameters, strict=True):
        a.lerp_(p, 1 - decay)


def train(cache_dir: Path, out: Path, steps: int = 4000, threads: int = 1) -> None:
    """Train; writes `out` (.pt) every 100 steps and resumes from it."""
    torch.set_num_threads(threads)
    recipe = GeneratorRecipe(steps=steps)
    torch.manual_seed(recipe.seed)
    cache = FrameCache(cache_dir)
    encoder, net = AppearanceEncoder(), Generator(ModelConfig())
    net.geometry.load_face_model(cache.face)
    net.mouth.picture.copy_(mouth_pictures())
    optimiser, parameters = _optimiser(encoder, net, recipe.lr)
    parts: Parts = {"encoder": encoder, "net": net, "optimiser": optimiser}
    state = resume(out, parts)
    step = int(state["step"])
    average = state.get("average") or [p.detach().clone() for p in parameters]
    one = GeneratorStep(recipe, encoder, net)
    make = sampler(cache, cache.split().train, recipe)
    stream = batches(make, size=recipe.sources, seed=recipe.seed, start=step, threads=1)
    report = Report(every=25, keep=0.97, digits=4)
    while step < recipe.steps:
        rate = cosine(step, peak=recipe.lr, steps=recipe.steps, warm_up=100, floor=0.03)
        set_rate(optimiser, rate)
        terms = one(next(stream), np.random.default_rng((recipe.seed, step, 1)))
        descend(optimiser, terms, parameters, limit=2.0)
        _follow(average, parameters, step)
        step += 1
        report.add(step, terms)
        if step % 100 == 0 or step == recipe.steps:
            save(out, parts, step=step, average=average)


if __name__ == "__main__":
    import typer

    typer.run(train)
