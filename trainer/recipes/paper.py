"""`paper`: the published dims and losses, learnt codes.

Where the publication is silent, METHOD.md says which value is ours.
"""

from __future__ import annotations

from dataclasses import replace

from models.config import paper_config
from trainer.recipes.config import (
    PUBLISHED_AUGMENT,
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


def paper() -> Recipe:
    """Batch 32 per process, Adam (0, .99), lr 1e-4; about 2.5 weeks on four V100 as published."""
    # L_mot of the open prior is about 15 between unlike frames; VGG and feature matching about 10.
    still = Augment(similarity=(0.0, 0.0, 0.0))
    return Recipe(
        name="paper",
        model=paper_config(),
        stage1=Stage1(
            steps=400_000, augment=PUBLISHED_AUGMENT, weights=PictureWeights(identity=0.1, mot=0.1)
        ),
        stage2a=Stage2a(steps=100_000, tau=1.0, negatives=64, augment=still),
        stage2b=Stage2b(steps=50_000, augment=still),
        stage2c=Stage2c(steps=50_000, augment=still),
        stage3=Stage3(
            steps=400_000, augment=still,
            weights=PictureWeights(decor=1.0, con_lip=1.0, con_gaze=1.0, con_mot=0.1, mot=0.0),
        ),
        identities=4096,
        save_every=2000,
        picture_every=2000,
        threads=8,
    )  # fmt: skip


def paper_small() -> Recipe:
    """The same networks and losses at a batch that one CPU core can turn; proves, trains little."""
    full = paper()
    # A first step of Adam is the whole rate for every weight: more than this throws E_app off.
    quick = Optim(lr=2e-4, warm_up=4)
    heads = Optim(lr=5e-4, warm_up=1)
    # At 5e-4 the pose loss of four pictures swings between .8 and 1.7; at this rate it falls.
    pose = Optim(lr=5e-5, warm_up=4)
    return replace(
        full,
        name="paper-small",
        stage1=replace(full.stage1, steps=8, batch=2, optim=quick),
        stage2a=replace(full.stage2a, steps=8, batch=2, frames=4, negatives=6, optim=heads),
        stage2b=replace(full.stage2b, steps=8, batch=4, optim=heads),
        stage2c=replace(full.stage2c, steps=8, batch=4, optim=pose),
        stage3=replace(full.stage3, steps=8, batch=2, optim=quick),
        judge_width=32,
        repeat=2,
        save_every=8,
        picture_every=8,
        log_every=1,
        threads=1,
    )
