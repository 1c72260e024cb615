"""Before and after on the end of the video, which was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.runtime.base import BaseEngine
from trainer.evaluate import score
from trainer.evaluate.measuring import read_own
from trainer.evaluate.report import number, picture, table
from trainer.evaluate.studio import draw
from trainer.prepare.faces import FaceClip
from trainer.prepare.media import write_clip

Pixels = NDArray[np.uint8]
#: Figure, how it is called, and whether more is better.
FIGURES = (
    ("psnr_db", "PSNR, dB", True),
    ("ssim", "SSIM", True),
    ("perceptual", "perceptual distance (O-Net)", False),
    ("sharp_mouth", "sharpness of the mouth, share of the real one", True),
    ("sharp_eyes", "sharpness of the eyes, share of the real one", True),
    ("identity", "identity distance (E_app's vector)", False),
    ("lmd_mouth", "landmark distance, mouth, px of 256 (E_mot)", False),
    ("lmd_full", "landmark distance, face, px of 256 (E_mot)", False),
)


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one engine on the held-out tail, and its pictures."""

    figures: dict[str, float]
    frames: list[Pixels]


def judge(engine: BaseEngine, judge_engine: BaseEngine, source: Pixels, tail: FaceClip) -> Quality:
    """Redraw the tail from the portrait crop `source` (256, 256, 3) with `engine`.

    Landmarks and identity are read by `judge_engine`, the base, for both sides alike.
    """
    frames = draw(engine, engine.appearance(source), source, tail.codes)
    ours, real = read_own(frames, judge_engine), read_own(tail.crops, judge_engine)
    pictures = score.image_metrics(frames, tail.crops)
    landmarks = score.landmark_distance(ours, real)
    sharp = score.sharpness_ratio(
        frames[::3], ours["landmarks"][::3], tail.crops[::3], real["landmarks"][::3]
    )
    return Quality({
        **pictures, "sharp_mouth": sharp["mouth"], "sharp_eyes": sharp["eyes"],
        "identity": score.identity_distance(frames[::5], source, judge_engine),
        "lmd_mouth": landmarks["mouth"], "lmd_full": landmarks["full"],
    }, frames)  # fmt: skip


def verdict(before: dict[str, float], after: dict[str, float]) -> str:
    """One sentence for the owner."""
    better = [title for key, title, more in FIGURES if _gain(before, after, key, more) > 0.01]
    worse = [title for key, title, more in FIGURES if _gain(before, after, key, more) < -0.01]
    if _gain(before, after, "perceptual", False) < 0 and _gain(before, after, "psnr_db", True) < 0:
        return "Worse than the base on unseen frames: do not use it; try a better lit video."
    if not better:
        return "No better than the base on unseen frames."
    return (f"Better than the base in {len(better)} of {len(FIGURES)} figures"
            + (f"; worse in: {', '.join(worse)}." if worse else "."))  # fmt: skip


def _gain(before: dict[str, float], after: dict[str, float], key: str, more: bool) -> float:
    """Improvement as a share of the figure before."""
    change = (after[key] - before[key]) / max(abs(before[key]), 1e-9)
    return change if more else -change


def write_preview(
    folder: Path, tail: FaceClip, before: Quality, after: Quality, losses: Sequence[float]
) -> None:
    """`preview.mp4` and `report.html`: real, base, personalised side by side."""
    triples = zip(tail.crops, before.frames, after.frames, strict=True)
    side_by_side = [np.concatenate(t, 1) for t in triples]
    write_clip(folder / "preview.mp4", side_by_side)
    picks = np.linspace(0, len(side_by_side) - 1, 6).round().astype(int)
    rows = [[tail.crops[i] for i in picks], [before.frames[i] for i in picks],
            [after.frames[i] for i in picks]]  # fmt: skip
    sheet = np.concatenate([np.concatenate(r, 1) for r in rows], 0)
    small = np.asarray(cv2.resize(sheet, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA))
    figures = table(
        [[t, before.figures[k], after.figures[k]] for k, t, _ in FIGURES], ["", "base", "yours"]
    )
    share = f"{number(float(np.mean(losses[:10])))} to {number(float(np.mean(losses[-10:])))}"
    (folder / "report.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Personalised avatar</title>"
        "<style>body{font:15px system-ui;max-width:1100px;margin:2em auto}img{max-width:100%}"
        "td,th{padding:.2em .8em;text-align:right}td:first-child{text-align:left}</style>"
        f"<h1>Personalised avatar</h1><p><b>{verdict(before.figures, after.figures)}</b></p>"
        f"<p>On {len(tail.crops)} frames at the end of the video that were not trained on. "
        f"Measured by our own networks, not independently. Training loss {share}.</p>{figures}"
        f"<p>Rows: the video, the base, yours.</p>{picture(small.astype(np.uint8))}"
    )
