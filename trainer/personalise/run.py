"""`visavis train --recipe personalise`: 20 to 60 s of a portrait's owner -> their checkpoint.

video -> clips in canonical crops (trainer.prepare)        the last fifth is held out
      -> portrait: the given picture, or the calmest frame of the video
      -> fine-tuned decoder (trainer.personalise.tuning)
      -> checkpoint folder (models.export), portrait, preview, quality report
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.checkpoint import Checkpoint, open_checkpoint
from models.export import export_checkpoint
from models.face import warp_crop
from models.networks import Networks, load_networks
from models.networks.generator import AppearanceEncoder, Generator
from models.portrait import PortraitError, decode_image, prepare_portrait
from models.runtime import load_engine
from models.runtime.base import BaseEngine
from trainer import origins
from trainer.evaluate.studio import at_size, calmest
from trainer.frames import FrameCache
from trainer.personalise import quality
from trainer.personalise.tuning import TuningRecipe, own_sampler, replay_sampler, tune
from trainer.prepare.clips import Clip, cut_video
from trainer.prepare.faces import FaceClip
from trainer.prepare.filters import Limits
from trainer.prepare.media import MediaError, pictures
from trainer.prepare.report import FileReport
from trainer.prepare.shards import assemble, read_shard, write_shard

Pixels = NDArray[np.uint8]
MIN_SECONDS = 8.0
GOOD_SECONDS = 20.0
HELD_OUT = 0.2
STEPS = 300
CONSENT = (
    "A personalised avatar can say anything in this person's likeness. Are you the person in "
    "the video, or do you have their written consent?"
)


class PersonaliseError(RuntimeError):
    """The video cannot be used, or nobody consented; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Split:
    """The person's clips, those that are trained on and the tail that is not."""

    train: list[Clip]
    tail: FaceClip


def personalise(
    video: Path,
    portrait: Path | None,
    out: Path,
    steps: int = STEPS,
    *,
    i_am_the_owner: bool = False,
    checkpoint: Path | None = None,
    replay: Path | None = None,
    threads: int = 0,
    console: Console | None = None,
    recipe: TuningRecipe | None = None,
) -> dict[str, Any]:
    """Make the folder `out`: a checkpoint for serve and render, `portraits/`, `preview.mp4`,
    `report.html`. `replay` is a training cache of other people. Resumes an interrupted run.

    Returns the report. Raises PersonaliseError; EngineError or CheckpointError from below.
    """
    console = console or Console(stderr=True)
    _consent(i_am_the_owner, console)
    recipe = replace(recipe or TuningRecipe(), steps=steps)
    base = open_checkpoint(checkpoint)
    # Both sides in float32: what INT8 costs the base must not look like a gain.
    engine = load_engine("openvino", checkpoint, threads, "float32")
    work = out.with_name(f"{out.name}.{_digest(video, portrait, base, recipe)}.work")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as bar:
        reading = bar.add_task("reading the video", total=None)
        clips, about = _read(video, engine, lambda n: bar.update(reading, completed=n))
        split = split_tail(clips)
        source, picture = _portrait(video, portrait, split.train, engine)
        cache, row = _cache(work, split.train, source, engine)
        training = bar.add_task("fine-tuning", total=steps)
        networks, losses = _tune(
            base, cache, row, work, recipe, replay,
            lambda step, losses: bar.update(training, completed=step),
        )  # fmt: skip
        finishing = bar.add_task("exporting and measuring", total=3)
        told = _about(base, about, steps, replay)
        export_checkpoint(networks, base.face, out, about=told)
        bar.advance(finishing)
        before = quality.judge(engine, engine, source, split.tail)
        bar.advance(finishing)
        mine = load_engine("openvino", out, threads, "float32")
        after = quality.judge(mine, engine, source, split.tail)
        bar.advance(finishing)
    report = {
        "verdict": quality.verdict(before.figures, after.figures), "before": before.figures,
        "after": after.figures, "seconds_trained": sum(len(c.face.crops) for c in split.train) / 25,
        "seconds_held_out": len(split.tail.crops) / 25, "steps": steps,
        "video": asdict(about),
    }  # fmt: skip
    quality.write_preview(out, split.tail, before, after, losses)
    _write_portrait(out / "portraits", picture)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(work)
    console.print(report["verdict"])
    return report


def _tune(
    base: Checkpoint,
    cache: FrameCache,
    portrait_row: int,
    work: Path,
    recipe: TuningRecipe,
    replay: Path | None,
    on_step: Any,
) -> tuple[Networks, list[float]]:
    """The base's networks, tuned to the person, and the loss of every step of this run."""
    networks = load_networks(base)
    encoder, net = networks.appearance.net, networks.generator.net
    if not isinstance(encoder, AppearanceEncoder) or not isinstance(net, Generator):
        raise PersonaliseError("Only a checkpoint of the live family can be tuned.")
    own = own_sampler(cache, np.arange(len(cache.kind)), portrait_row, recipe)
    others = replay_sampler(replay, recipe) if replay is not None else None
    history = tune(encoder, net, own, work / "tuning.pt", recipe, others, on_step)
    losses = [sum(v for k, v in step.items() if k != "replay") for step in history]
    return networks, losses or [float("nan")]


def _digest(video: Path, portrait: Path | None, base: Checkpoint, recipe: TuningRecipe) -> str:
    """Names the unfinished work of exactly these inputs, so that only they are resumed."""
    words = [str(recipe), json.dumps(base.manifest["files"], sort_keys=True)]
    for path in (video, portrait):
        if path is not None and path.is_file():
            words.append(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}")
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]


def _consent(given: bool, console: Console) -> None:
    """Raises PersonaliseError unless the owner consents, by flag or at the terminal."""
    if given:
        return
    if not sys.stdin.isatty():
        raise PersonaliseError(f"{CONSENT} Say so with --i-am-the-owner.")
    console.print(CONSENT)
    if input("yes / no: ").strip().lower() not in ("y", "yes"):
        raise PersonaliseError("Nothing was done.")


def _read(video: Path, engine: BaseEngine, on_frame: Any) -> tuple[list[Clip], FileReport]:
    """Usable clips of the video; it need not speak all the time."""
    if not video.is_file():
        raise PersonaliseError(f"There is no file {video}.")
    report = FileReport(video.name)
    limits = Limits(min_speech=0.0, min_modulation=0.0)
    try:
        clips = cut_video(video, engine, report, limits=limits, listen=False, on_frame=on_frame)
    except MediaError as error:
        raise PersonaliseError(str(error)) from error
    seconds = sum(len(c.face.crops) for c in clips) / 25
    if seconds < MIN_SECONDS:
        why = "; ".join(f"{v:.1f} s {k}" for k, v in report.dropped_s.items()) or "it is too short"
        raise PersonaliseError(
            f"{video.name}: only {seconds:.1f} s can be used, {MIN_SECONDS:.0f} s are needed "
            f"and {GOOD_SECONDS:.0f} to 60 s are good. Not used: {why}."
        )
    return clips, report


def split_tail(clips: list[Clip]) -> Split:
    """Hold out the last fifth of all frames, from the last clip or a part of it."""
    total = sum(len(c.face.crops) for c in clips)
    last = clips[-1].face
    count = min(max(50, round(HELD_OUT * total)), len(last.crops))
    cut = len(last.crops) - count
    tail = FaceClip(last.crops[cut:], last.codes[cut:], last.landmarks[cut:])
    train = list(clips[:-1])
    if cut >= 25:
        face = FaceClip(last.crops[:cut], last.codes[:cut], last.landmarks[:cut])
        train.append(replace(clips[-1], face=face, samples=clips[-1].samples[: cut * 640]))
    if not train:
        raise PersonaliseError("The video is too short to keep a part of it for measuring.")
    return Split(train, tail)


def _portrait(
    video: Path, portrait: Path | None, train: list[Clip], engine: BaseEngine
) -> tuple[Pixels, Pixels]:
    """Crop (256, 256, 3) to train and measure with, and the picture to enrol later."""
    if portrait is not None:
        try:
            image = decode_image(portrait.read_bytes())
            enrolled = prepare_portrait(image, engine, id="owner", name="owner")
        except OSError as error:
            raise PersonaliseError(f"{portrait} cannot be read.") from error
        except PortraitError as error:
            raise PersonaliseError(f"{portrait.name}: {error}") from error
        return at_size(enrolled.image), image
    best = [(calmest(c.face), c) for c in train]
    number, clip = min(best, key=lambda b: float(np.abs(b[1].face.codes[b[0]]).sum()))
    wanted = clip.start_frame + number
    image = next(p for i, p in enumerate(pictures(video)) if i == wanted)
    return warp_crop(image, clip.transform, engine.config.image_size), image


def _cache(
    work: Path, train: list[Clip], source: Pixels, engine: BaseEngine
) -> tuple[FrameCache, int]:
    """Training cache of the person's clips, the portrait as its last frames; and its row."""
    reading = engine.motion(source)
    still = FaceClip([source] * 3, np.stack([reading.code.concat()] * 3),
                     np.stack([reading.landmarks] * 3))  # fmt: skip
    clips = [*train, replace(train[0], face=still, samples=np.zeros(3 * 640, np.float32))]
    names = [f"clip-{i:03d}" for i in range(len(clips))]
    folder = work / "cache"
    if not (folder / "speech.npz").exists():
        for name, clip in zip(names, clips, strict=True):
            write_shard(work, name, clip)
        shards = [read_shard(work, name) for name in names]
        assemble(folder, shards, ["owner"] * len(names), [False] * len(names), engine.face)
    cache = FrameCache(folder)
    return cache, len(cache.kind) - 1


def _about(base: Checkpoint, video: FileReport, steps: int, replay: Path | None) -> dict[str, Any]:
    """Manifest of the result: the base's, and what was done to it with whose pictures."""
    kept = {
        k: v for k, v in base.manifest.items()
        if k not in ("format", "config", "files", "parameters", "parity", "metrics")
    }  # fmt: skip
    owner = {"name": f"a video of the portrait's owner ({video.file})", "licence": "own recording"}
    known = list(base.manifest.get("data", []))
    others = [o for o in origins.of_cache(replay) if o not in known] if replay else []
    return kept | {
        "data": [*known, *others, owner],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "personalised": {"steps": steps, "replay": replay is not None, "seconds": video.kept_s},
    }


def _write_portrait(folder: Path, picture: Pixels) -> None:
    """The picture, listed so that `serve --portraits` offers it."""
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "owner.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    listing = [{"id": "owner", "name": "Owner", "file": "owner.png"}]
    (folder / "portraits.json").write_text(json.dumps(listing, indent=1) + "\n")
