"""What a recipe decides. Values without a source are ours; METHOD.md names the published ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Optim:
    """Adam with the published defaults: beta (0, .99), lr 1e-4, decay 1e-3, x .93 every 80 k.

    `warm_up` steps of rising rate; `fall` "stairs" is the published schedule, "cosine" falls to
    `floor` over the stage. `clip` cuts the gradient's norm.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 1e-3
    fall: Literal["stairs", "cosine"] = "stairs"
    decay: float = 0.93
    decay_every: int = 80_000
    warm_up: int = 100
    floor: float = 0.03
    clip: float = 5.0


@dataclass(frozen=True, slots=True)
class Augment:
    """What is done to a driving frame so that motion cannot carry appearance (stage 1).

    `light` scales all photometric damage; the last four move things and are for learnt codes
    only, because they would change named ones. `similarity` (zoom, angle, shift) moves the
    labels along.
    """

    light: float = 1.0
    similarity: tuple[float, float, float] = (0.08, 0.06, 0.03)
    perspective: float = 0.0
    elastic: float = 0.0
    anisotropic: float = 0.0
    shift: float = 0.0


#: METHOD.md section 3, stage 1.
PUBLISHED_AUGMENT = Augment(
    similarity=(0.0, 0.0, 0.0), perspective=0.06, elastic=0.02, anisotropic=0.2, shift=0.05
)


@dataclass(frozen=True, slots=True)
class PictureWeights:
    """Weights of the terms of stages 1 and 3; a term of weight 0 is not computed."""

    gan: float = 1.0
    fm: float = 1.0
    perceptual: float = 1.0
    mot: float = 1.0
    labels: float = 0.0
    """Codes of the motion encoder against the labels (named codes only)."""
    pixels: float = 0.0
    """Blend of the warping generator, and its drawn part alone."""
    mask: float = 0.02
    """The price of painting where the warp would do, as a share of `pixels`: L1 does not mind
    skin that is half blurred, a viewer does."""
    landmarks: float = 0.0
    residual: float = 0.0
    warp: float = 0.0
    flow: float = 0.0
    """Dense flow of the renderer, where the data has it."""
    identity: float = 0.0
    """Which person the source is, by a head on the identity vector."""
    decor: float = 0.0
    con_lip: float = 0.0
    con_gaze: float = 0.0
    con_mot: float = 0.0


@dataclass(frozen=True, slots=True)
class Stage1:
    """Appearance and motion; `driving` frames share one source.

    `drive` "feature": the generator is driven by the trunk's 512-d feature (published);
    "labels": by the named codes, disturbed by `code_noise`.
    """

    steps: int
    batch: int = 32
    driving: int = 1
    drive: Literal["feature", "labels"] = "feature"
    train_motion: bool = True
    optim: Optim = Optim()
    judge_lr: float = 1e-4
    weights: PictureWeights = PictureWeights()
    augment: Augment = PUBLISHED_AUGMENT
    code_noise: float = 0.0
    synth_share: float = 0.6
    adversarial_after: int = 0
    average: float = 0.999
    window: int = 0
    """Cells of the flow that a warping generator decodes per step; 0: the whole picture."""
    mouth_window: int = 0


@dataclass(frozen=True, slots=True)
class Stage2a:
    """Lips: InfoNCE of sound and picture; `frames` moments of each of `batch` clips.

    `space` is where S is measured: the heads' 512-d "feature" or the "code". `labels` weighs
    the regression of named codes, `motion` its change from frame to frame within it.
    """

    steps: int
    batch: int = 32
    frames: int = 8
    negatives: int = 64
    tau: float = 1.0
    space: Literal["feature", "code"] = "code"
    contrast: float = 1.0
    labels: float = 0.0
    motion: float = 1.5
    video_labels: float = 0.0
    contact: float = 0.0
    """Lips that should touch and do not (named codes only)."""
    quiet_share: float = 0.0
    kept: int = 0
    """Damaged versions of each picture whose trunk feature is computed once; 0: none, every step
    reads its pictures."""
    optim: Optim = Optim()
    augment: Augment = Augment()
    voices: str = ""
    """Dotted path of `factory(config) -> Make` for more sound with exact mouths; "": none."""
    voice_batch: int = 0


@dataclass(frozen=True, slots=True)
class Stage2b:
    """Eyes: composed anchors; `batch` anchors, each with a positive and a negative."""

    steps: int
    batch: int = 128
    space: Literal["feature", "code"] = "code"
    contrast: float = 1.0
    labels: float = 0.0
    apart: float = 0.35
    """How far two eye codes must differ to be a pair, L1 over lids and gaze."""
    optim: Optim = Optim()
    augment: Augment = Augment()


@dataclass(frozen=True, slots=True)
class Stage2c:
    """Pose: L1 on six labelled dimensions."""

    steps: int
    batch: int = 128
    optim: Optim = Optim()
    augment: Augment = Augment()


@dataclass(frozen=True, slots=True)
class Stage3:
    """Expression and generator.

    `window` "trailing" ends at the driving frame, as the stream has it; "centred" has it in the
    middle. Each factor of the driving code is read by its encoder with probability `read`
    (named codes; learnt ones are always read), otherwise it is the label.
    """

    steps: int
    batch: int = 32
    driving: int = 1
    window: Literal["trailing", "centred"] = "centred"
    read: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """Lip, pose, eye, expression."""
    decor: Literal["a", "b"] = "a"
    bank: int = 512
    optim: Optim = Optim()
    judge_lr: float = 1e-4
    weights: PictureWeights = PictureWeights(decor=1.0, con_lip=1.0, con_gaze=1.0, con_mot=1.0)
    augment: Augment = Augment()
    code_noise: float = 0.0
    synth_share: float = 0.6
    adversarial_after: int = 0
    average: float = 0.999
    decode_window: int = 0
    mouth_window: int = 0
    train_expression: bool = True


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole training. `prior` and `perceptual` are dotted paths; "" is the open default."""

    name: str
    model: ModelConfig
    stage1: Stage1
    stage2a: Stage2a
    stage2b: Stage2b
    stage2c: Stage2c
    stage3: Stage3
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    prior: str = ""
    perceptual: str = ""
    judge_width: int = 64
    judge_layers: int = 4
    identities: int = 0
    """Size of the identity head of stage 1; 0: none."""
    save_every: int = 250
    picture_every: int = 500
    log_every: int = 10
    threads: int = 2
    repeat: int = 0
    """Only the first `repeat` batches, over and over; 0: endlessly new ones. A loss then falls
    because the networks learn them, not because an easier batch came: a check, no training."""
    notes: tuple[str, ...] = field(default=())
