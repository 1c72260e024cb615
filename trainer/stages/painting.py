"""How a training step draws: the warping generator on windows, the published one whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from models.networks.generator import AppearanceEncoder, Generator, resize, warp
from models.networks.paper.generator import Generator as PaperGenerator
from trainer.generator_stage import exact_shape
from trainer.loader import to_unit
from trainer.losses.flow import dense_flow, landmark_flow, picture_difference, smooth_residual
from trainer.recipes.config import PictureWeights
from trainer.stages.run import Batch, Run
from trainer.stages.system import AnyGenerator, System

_WHOLE = slice(None)
#: Pixels at a window's rim that lack their surroundings; no loss looks at them.
RIM = 8
REGION_GAIN = 5.0
#: Face, mouth, anywhere.
WINDOW_SHARES = (0.5, 0.4, 0.1)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures (B, 3, S, S) in [-1, 1] and what the family's own losses say about them.

    `part` is what was really drawn; the rest of a warping generator's picture is only warped.
    """

    picture: Tensor
    true: Tensor
    source: Tensor
    part: tuple[slice, slice]
    terms: dict[str, Tensor]

    def drawn_part(self) -> Tensor:
        """The drawn part of the picture."""
        return self.picture[:, :, self.part[0], self.part[1]]

    def true_part(self) -> Tensor:
        """The same part of the true frame."""
        return self.true[:, :, self.part[0], self.part[1]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is drawn and which of the family's own terms count."""

    weights: PictureWeights
    driving: int
    window: int
    mouth_window: int


def paint(
    run: Run, system: System, generator: AnyGenerator, batch: Batch, driving: Tensor, plan: Plan
) -> Drawn:
    """Draw all driving frames of a batch of `sampling.pairs`; `driving` is (B * n, D)."""
    images = to_unit(batch["pixels"].flatten(0, 1))
    images = images.view(-1, 1 + plan.driving, *images.shape[1:])
    source, target = images[:, 0] * 2 - 1, images[:, 1:].flatten(0, 1) * 2 - 1
    if isinstance(generator, PaperGenerator):
        return _paint_whole(run, system, generator, batch, source, target, driving, plan)
    assert isinstance(generator, Generator)
    rng = np.random.default_rng((run.seed, run.step, 1))
    place = _window(rng, plan, system.config.flow_size)
    return _paint_window(run, system, generator, batch, source, target, driving, plan, place)


def _paint_whole(
    run: Run, system: System, generator: PaperGenerator, batch: Batch, source: Tensor,
    target: Tensor, driving: Tensor, plan: Plan,
) -> Drawn:  # fmt: skip
    with run.autocast():
        feature, identity = system.appearance(source)
        picture = generator.picture(
            feature.repeat_interleave(plan.driving, 0),
            identity.repeat_interleave(plan.driving, 0), driving,
        )  # fmt: skip
    terms = {}
    if plan.weights.identity and system.who is not None:
        person = batch["person"].long()
        terms["identity"] = plan.weights.identity * F.cross_entropy(
            system.who(identity.float()), person
        )
    shown = source.repeat_interleave(plan.driving, 0)
    return Drawn(picture.float(), target, shown, (_WHOLE, _WHOLE), terms)


def _window(rng: np.random.Generator, plan: Plan, cells: int) -> tuple[int, int, int]:
    """Left, top and size of the part to decode, in cells of the flow."""
    if not plan.window:
        return 0, 0, cells
    kind = int(rng.choice(3, p=WINDOW_SHARES))
    size = plan.mouth_window if kind == 1 else plan.window
    if kind == 2:
        return int(rng.integers(0, cells + 1 - size)), int(rng.integers(0, cells + 1 - size)), size
    middle = 45 if kind == 1 else 37
    left, top = cells // 2 - size // 2, middle - size // 2
    return left + int(rng.integers(-2, 3)), top + int(rng.integers(-3, 4)), size


def _paint_window(
    run: Run, system: System, net: Generator, batch: Batch, source: Tensor, target: Tensor,
    driving: Tensor, plan: Plan, place: tuple[int, int, int],
) -> Drawn:  # fmt: skip
    w, (left, top, size) = plan.weights, place
    side = system.config.image_size

    def many(x: Tensor) -> Tensor:
        return x.repeat_interleave(plan.driving, 0)

    encoder = system.appearance
    assert isinstance(encoder, AppearanceEncoder)
    shape = exact_shape(net.geometry, batch["shape"], batch["code"][:, 0],
                        batch["landmarks"][:, 0])  # fmt: skip
    with run.autocast():
        f64, f32, identity = encoder(source)
    f64, f32, identity = (many(x.float()) for x in (f64, f32, identity))
    with run.autocast():
        motion = net.motion(f32, identity, many(shape), many(batch["code"][:, 0]), driving)
    shown = many(source)
    with run.autocast():
        mask, rgb = net.decode(resize(shown, side // 2), f64, motion.window(left, top, size))
    mask, rgb, flow = mask.float(), rgb.float() * 2 - 1, motion.flow.float()
    warped = warp(shown, resize(flow, side))
    whole = place == (0, 0, system.config.flow_size)
    rim = 0 if whole else RIM
    rows, columns = (slice(4 * s, 4 * (s + size)) for s in (top, left))
    inner = (slice(4 * top + rim, 4 * (top + size) - rim),
             slice(4 * left + rim, 4 * (left + size) - rim))  # fmt: skip
    blend = mask * warped[:, :, rows, columns] + (1 - mask) * rgb
    picture = warped.clone()
    picture[:, :, rows, columns] = blend
    terms = _flow_terms(w, batch, flow, motion.residual.float(), shown, target, many)
    if w.pixels:
        cut = slice(rim, 4 * size - rim)
        region = batch["region"][:, 1:].flatten(0, 1)[:, None].float() / 255
        weight = 1 + (REGION_GAIN - 1) * resize(region, side)[:, :, inner[0], inner[1]]
        true = (target[:, :, inner[0], inner[1]] + 1) / 2
        half = [(x[:, :, cut, cut] + 1) / 2 for x in (blend, rgb)]
        terms["blend"] = w.pixels * picture_difference(half[0], true, weight)
        terms["rgb"] = 0.4 * w.pixels * picture_difference(half[1], true, weight)
        terms["mask"] = w.mask * w.pixels * ((1 - mask[:, :, cut, cut]) * (weight < 1.5)).mean()
    return Drawn(picture, target, shown, inner, terms)


def _flow_terms(
    w: PictureWeights, batch: Batch, flow: Tensor, residual: Tensor, source: Tensor,
    target: Tensor, many: object,
) -> dict[str, Tensor]:  # fmt: skip
    """Flow supervision: landmarks, smoothness, the warp's own picture, the renderer's flow."""
    assert callable(many)
    terms: dict[str, Tensor] = {}
    driven, origin = batch["landmarks"][:, 1:].flatten(0, 1), many(batch["landmarks"][:, 0])
    if w.landmarks:
        terms["landmarks"] = w.landmarks * landmark_flow(flow, driven, origin)
    if w.residual:
        terms["residual"] = w.residual * smooth_residual(residual)
    if w.warp:
        small = warp(resize(source, 128), resize(flow, 128))
        terms["warp"] = w.warp * 0.5 * (small - resize(target, 128)).abs().mean()
    if w.flow and "flow" in batch:
        wanted, valid = batch["flow"].flatten(0, 1), batch["valid"].flatten(0, 1)
        terms["flow"] = w.flow * dense_flow(resize(flow, wanted.shape[-1]), wanted, valid)
    return terms
