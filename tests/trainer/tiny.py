"""A made-up cache with pictures and sound, and the live recipe at a size for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from models.checkpoint import open_checkpoint
from models.codes import CODE_DIM, FACTOR_SLICES, MotionCode
from models.face import LANDMARKS
from trainer.recipes import recipe_of
from trainer.recipes.config import Recipe
from trainer.speech import MEL_FILE

FRAMES = 24
KINDS = ("synth", "synth", "synth", "grid", "grid", "grid", "still", "still")


def write_cache(folder: Path, kinds: tuple[str, ...] = KINDS, filmed: str = "s1") -> Path:
    """Eight made-up clips of 24 frames, every third cached: blobs at their landmarks, and noise.

    `filmed` is who speaks in all filmed clips; "": somebody else in each.
    """
    face = open_checkpoint(verify=False).face
    rng = np.random.default_rng(0)
    names = ("kind", "clip", "person", "frame", "landmarks", "code", "shape")
    rows: dict[str, list] = {k: [] for k in names}
    pixels, lips, clips = [], [], []
    for i, kind in enumerate(kinds):
        colour = rng.integers(40, 200, 3)
        codes = (rng.standard_normal((FRAMES, CODE_DIM)) * 0.2).astype(np.float32)
        codes[:, FACTOR_SLICES["pose"]] *= 0.3
        if kind == "grid":
            clips.append(f"grid/s1/{i}")
            lips.append(codes[:, FACTOR_SLICES["lip"]])
        for t in range(0, 1 if kind == "still" else FRAMES, 3):
            points = face.project(face.mean, MotionCode.split(codes[t]))
            image = np.full((256, 256, 3), colour, np.uint8)
            for x, y in np.clip(points * 256, 2, 253).astype(int):
                image[y - 2 : y + 2, x - 2 : x + 2] = 255 - colour
            pixels.append(image)
            clip = f"grid/s1/{i}" if kind == "grid" else f"{kind}/{i}"
            person = filmed if kind == "grid" and filmed else str(i)
            for key, value in zip(
                names, (kind, clip, person, t, points, codes[t], face.mean), strict=True
            ):
                rows[key].append(value)
    np.savez(folder / "labels.npz", **{k: np.array(v) for k, v in rows.items()})
    np.savez(folder / "face_model.npz", mean=face.mean, basis=face.basis,
             landmark_mirror=np.arange(LANDMARKS))  # fmt: skip
    np.stack(pixels).tofile(folder / "frames.u8")
    count = len(clips) * FRAMES
    np.savez(folder / "speech.npz", clip=np.array(clips),
             offset=np.arange(len(clips) + 1) * FRAMES, lip=np.concatenate(lips),
             samples=np.zeros(count * 640, np.float16))  # fmt: skip
    mel = rng.integers(0, 255, (6, count * 4, 80)).astype(np.uint8)
    np.savez(folder / MEL_FILE, mel=mel)
    return folder


def tiny() -> Recipe:
    """`live` in float32 with batches of two."""
    live = recipe_of("live")
    return replace(
        live,
        name="tiny",
        precision="fp32",
        stage1=replace(live.stage1, steps=4, batch=2, driving=1, window=24, mouth_window=20,
                       adversarial_after=1),
        stage2a=replace(live.stage2a, steps=4, batch=2, frames=3, negatives=4, quiet_share=0.0,
                       kept=0),
        stage2b=replace(live.stage2b, steps=4, batch=2, apart=0.0),
        stage2c=replace(live.stage2c, steps=4, batch=2),
        stage3=replace(live.stage3, steps=4, batch=2, driving=1, decode_window=24,
                       mouth_window=20, adversarial_after=1, bank=8, synth_share=0.5),
        judge_width=8,
        judge_layers=3,
        save_every=100,
        picture_every=2,
        log_every=1,
        threads=1,
    )  # fmt: skip
