"""`live`: named codes, supervised by labels, with the paper's losses around them.

Sized for two CPU cores: few frames per step, pictures drawn on windows, cosine schedules.
On a GPU raise the batches and set the windows to 0.
"""

from __future__ import annotations

from dataclasses import replace

from models.config import live_config
from trainer.recipes.config import (
    Augment,
    Optim,
    PictureWeights,
    Recipe,
    Stage1,
    Stage2a,
    Stage2b,
    Stage2c,
    Stage3,
)


def live_last() -> Recipe:
    """The end of stage 3 once more at a quarter of its rate, from weights that are nearly right."""
    recipe = live()
    spec = recipe.stage3
    optim = replace(spec.optim, lr=spec.optim.lr / 4, warm_up=20)
    stage3 = replace(
        spec, steps=450, optim=optim, judge_lr=spec.judge_lr / 4, adversarial_after=100,
        average=0.99,
    )  # fmt: skip
    return replace(recipe, name="live-last", stage3=stage3)


def live() -> Recipe:
    """What ships."""
    picture = Optim(lr=4e-4, betas=(0.5, 0.99), weight_decay=0.0, fall="cosine", clip=2.0)
    heads = Optim(lr=5e-4, betas=(0.9, 0.99), fall="cosine")
    weights = PictureWeights(
        gan=0.02, fm=0.1, perceptual=0.05, mot=0.02, labels=0.0,
        pixels=1.0, mask=0.2, landmarks=40.0, residual=2.0, warp=1.0, flow=10.0,
    )  # fmt: skip
    similarity = (0.08, 0.06, 0.03)
    return Recipe(
        name="live",
        model=live_config(),
        stage1=Stage1(
            steps=3000, batch=4, driving=3, drive="labels", train_motion=False, optim=picture,
            judge_lr=2e-4, weights=weights, augment=Augment(similarity=similarity),
            code_noise=0.04, adversarial_after=300, average=0.998, window=36, mouth_window=26,
        ),
        stage2a=Stage2a(
            steps=3000, batch=10, frames=10, negatives=32, tau=0.1, space="feature",
            contrast=0.05, labels=1.0, video_labels=1.0, contact=0.15, quiet_share=0.06, kept=2,
            optim=Optim(lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4, fall="cosine"),
            augment=Augment(light=0.5, similarity=(0.04, 0.03, 0.02)),
        ),
        stage2b=Stage2b(
            steps=1000, batch=32, space="feature", contrast=0.2, labels=1.0, optim=heads,
            augment=Augment(light=0.7, similarity=(0.05, 0.05, 0.02)),
        ),
        stage2c=Stage2c(
            steps=1000, batch=64, optim=heads, augment=Augment(similarity=(0.1, 0.1, 0.045))
        ),
        stage3=Stage3(
            steps=3000, batch=4, driving=3, window="trailing", read=(0.3, 0.3, 0.3, 0.5),
            optim=picture, judge_lr=2e-4,
            weights=PictureWeights(
                gan=0.02, fm=0.1, perceptual=0.05, labels=1.0, pixels=1.0, mask=0.2, landmarks=40.0,
                residual=2.0, warp=1.0, flow=10.0, mot=0.0, decor=0.2, con_lip=0.02, con_gaze=0.1,
                con_mot=0.02,
            ),
            augment=Augment(light=0.7, similarity=similarity), code_noise=0.03,
            adversarial_after=300, average=0.998, decode_window=36, mouth_window=26,
        ),
        judge_width=24,
        judge_layers=3,
        threads=1,
    )  # fmt: skip
