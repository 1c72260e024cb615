"""`visavis evaluate`: draw, measure, score; every step resumes where it was interrupted."""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.checkpoint import Checkpoint, open_checkpoint
from models.codes import FACTORS
from models.runtime import load_engine
from models.runtime.base import BaseEngine
from trainer.evaluate import (
    codes,
    explained,
    kid,
    leakage,
    metrics,
    report,
    score,
    spoken,
    suite,
    truth,
)
from trainer.evaluate.drawing import Drawn, OnDone, draw_all
from trainer.evaluate.history import rounded
from trainer.evaluate.measuring import Ahead, Arrays, Cached, open_measure
from trainer.evaluate.perceptual import NAME as PERCEPTUAL_NET
from trainer.evaluate.score import Result
from trainer.evaluate.studio import Studio, lip_codes
from trainer.evaluate.suite import Item
from trainer.frames import FrameCache
from trainer.prepare.media import MediaError, pictures, sound


@dataclass(frozen=True, slots=True)
class Options:
    """What to evaluate with what; `checkpoint` None is the shipped one."""

    data: Path
    cache: Path
    out: Path
    checkpoint: Path | None = None
    seed: int = 0
    quick: bool = False
    threads: int = 2
    measure_python: Path | None = None
    measure_model: Path | None = None
    counts: suite.Counts | None = None


def checkpoint_digest(checkpoint: Checkpoint) -> str:
    """Ten hexadecimal digits that name the content of a checkpoint."""
    files = json.dumps(checkpoint.manifest["files"], sort_keys=True)
    return hashlib.sha256(files.encode()).hexdigest()[:10]


def run(options: Options, console: Console) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Evaluate and write `result.json` and `report.html` into the output folder.

    Raises SuiteError, MeasureError, CheckpointError or EngineError.
    """
    result, signals = evaluate(options, console)
    files = (options.out / "result.json", options.out / "report.html")
    files[0].write_text(json.dumps(rounded(result), indent=1) + "\n")
    report.write(result, signals, files[1])
    return result, files


def evaluate(options: Options, console: Console) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Run the suite: everything that goes into the report, and the signals by video."""
    checkpoint = open_checkpoint(options.checkpoint)
    digest = checkpoint_digest(checkpoint)
    engine = load_engine("auto", options.checkpoint, options.threads)
    cache = FrameCache(options.cache)
    counts = options.counts or (suite.QUICK if options.quick else suite.FULL)
    items = suite.build(cache, options.data, counts, options.seed)
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    voices = spoken.speak(
        folder / "voices", cache.face, suite.bundled_portraits(), counts.voices, options.seed
    )
    items += voices
    studio = Studio(engine, options.checkpoint, digest, folder / "videos", options.threads)
    measure = open_measure(
        options.measure_python, options.measure_model, engine, folder / "measured", digest
    )
    skipped: list[dict[str, str]] = []
    if counts.voices and not voices:
        skipped.append({"item": "synthetic voices", "why": "espeak-ng is not installed"})
    with _bar(console) as step:
        drawing, measuring = step("drawing", len(items)), step("measuring", None)
        ahead, drawn = Ahead(measure, measuring), []
        for one in draw_all(studio, items, skipped, drawing):
            ahead.add(one.measured)
            drawn.append(one)
        read = ahead.finish()
        results = []
        done = step("scoring", len(drawn))
        for one in drawn:
            if _complete(one, read):
                results.append(_score(one, read, engine, cache))
            else:
                skipped.append({"item": one.item.name, "why": "no face was measured in it"})
            done()
        frames = 400 if options.quick else 1350
        probes = codes.probes(cache, engine, frames, step("probing codes", frames))
        film = _film(cache)[: 12 if options.quick else 40]
        heard = codes.speech_in_codes(
            options.cache, cache, engine, film, step("speech in codes", len(film))
        )
        sets = _kid(drawn, step("comparing sets", 2))
    leaks = _leakage(drawn, read, cache)
    summary = score.summarise(results) | _leak_summary(leaks) | sets
    result = {
        "checkpoint": {k: checkpoint.manifest.get(k) for k in ("name", "version", "training_steps")}
        | {"digest": digest},
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "protocol": _protocol(options, measure, read, engine) | {"items": len(items)},
        "targets": score.judge(summary),
        "summary": summary,
        "leakage": leaks,
        "probes": probes,
        "speech_in_codes": heard,
        "items": [{"kind": r.kind, "name": r.name, "figures": r.figures} for r in results],
        "skipped": skipped,
        "drawn": [{"kind": d.item.kind, "name": d.item.name,
                   "videos": {k: str(v) for k, v in d.videos.items()}} for d in drawn],
    }  # fmt: skip
    return result, {str(video): arrays for video, arrays in read.items()}


def _protocol(
    options: Options, measure: Cached, read: dict[Path, Arrays], engine: BaseEngine
) -> dict[str, Any]:
    """What was measured how; results compare only where these agree."""
    return {
        "suite": "quick" if options.quick else "full", "suite_version": suite.VERSION,
        "seed": options.seed,
        "measure": measure.name, "independent": measure.independent,
        "identity": _identity_name(read), "perceptual_net": PERCEPTUAL_NET,
        "sets": kid.NAME,
        "sync_model": "our E_aud against the lips E_mot reads; not SyncNet, not independent",
        "engine": engine.reason,
    }  # fmt: skip


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int | None], OnDone]]:
    """Yields a function (title, total) -> function to call once per finished thing."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:

        def step(title: str, total: int | None) -> OnDone:
            task = progress.add_task(title, total=total)
            return lambda: progress.advance(task)

        yield step


# --- scoring --------------------------------------------------------------------------


def _complete(drawn: Drawn, read: dict[Path, Arrays]) -> bool:
    return all(v in read for v in drawn.measured)


def _score(drawn: Drawn, read: dict[Path, Arrays], engine: BaseEngine, cache: FrameCache) -> Result:
    item = drawn.item
    if item.kind in ("swap", "exact"):
        return Result(item.kind, item.name, {})
    if item.kind == "voice":
        ours = read[drawn.videos["ours"]]
        mouth = metrics.follow(ours["mouth_gap"], spoken.mouth_of(item.driver))
        return Result(item.kind, item.name, {"mouth_gap": mouth})
    ours, driver, source = (read[drawn.videos[k]] for k in ("ours", "driver", "source"))
    frames = list(pictures(drawn.videos["ours"]))
    still = next(pictures(drawn.videos["source"]))
    figures = score.follow_all(ours, driver)
    if item.kind == "speech":
        figures = {k: v for k, v in figures.items() if k == "mouth_gap"}
    elif truth.exact_labels(cache, item.name):
        score.add_truth(figures, ours, driver, truth.truth_of(cache, item.name))
    figures["identity"] = {
        "own": score.identity_distance(frames[::8], still, engine),
        "independent": score.embedding_distance(ours, source),
        "independent_driver": score.embedding_distance(driver, source),
        "csim": score.embedding_cosine(ours, source),
    }
    figures["jitter"] = score.jitter(ours, driver)
    points, still_points = ours["landmarks"], source["landmarks"]
    if item.kind == "self":
        real = list(pictures(drawn.videos["driver"]))
        figures["picture"] = score.image_metrics(frames, real)
        figures["landmarks"] = score.landmark_distance(ours, driver)
        figures["sharpness"] = score.sharpness_ratio(
            frames[::6], points[::6], real[::6], driver["landmarks"][::6]
        )
    else:
        figures["sharpness"] = score.sharpness_ratio(
            frames[::6], points[::6], [still], still_points
        )
    if item.kind in ("speech", "self"):
        figures |= _sync(item, drawn, frames, engine)
    return Result(item.kind, item.name, figures, item.signals)


def _sync(item: Item, drawn: Drawn, frames: list[Any], engine: BaseEngine) -> score.Figures:
    """Sound against our picture, and against the real one for comparison."""
    try:
        heard = lip_codes(sound(item.driver), len(frames), engine).astype(np.float64)
    except MediaError:
        return {}
    real = list(pictures(drawn.videos["driver"]))
    out = {}
    for name, shown in (("sync", frames), ("sync_real", real)):
        lips = np.stack([engine.motion(f).code.lip for f in shown]).astype(np.float64)
        out[name] = metrics.lse(heard - heard.mean(0), lips - lips.mean(0))
    return out


def _swap(drawn: Drawn, read: dict[Path, Arrays], cache: FrameCache) -> leakage.Swap:
    swapped_ones = {str(f): read[drawn.videos[f"a_{f}"]] for f in FACTORS}
    a, b = (read[drawn.videos[k]] for k in "ab")
    count = min(len(a["yaw"]), len(b["yaw"]))
    first, second = (truth.truth_of(cache, c) for c in drawn.item.name.split(" x "))
    labels = (first.at_every_frame(count), second.at_every_frame(count))
    return leakage.Swap(a, b, swapped_ones, labels)


def _exact(drawn: Drawn, read: dict[Path, Arrays]) -> leakage.ExactPair:
    videos = (drawn.videos[k] for k in ("driver", "other", "ours_a", "ours_b"))
    return leakage.ExactPair(drawn.item.factor, *(read[v] for v in videos))


def _leakage(drawn: list[Drawn], read: dict[Path, Arrays], cache: FrameCache) -> dict[str, Any]:
    """The matrix, by signal, how far codes arrived, and what the measure itself confuses."""
    whole = [d for d in drawn if _complete(d, read)]
    swaps = [_swap(d, read, cache) for d in whole if d.item.kind == "swap"]
    exact = [_exact(d, read) for d in whole if d.item.kind == "exact"]
    return {
        "pairs": len(swaps), "exact_pairs": len(exact), "matrix": leakage.leakage_matrix(swaps),
        "signals": leakage.signal_leakage(swaps), "arrival": leakage.arrival(swaps),
        "crosstalk_of_the_measure": leakage.crosstalk(exact, swaps),
        "explained": explained.explained(swaps, exact),
    }  # fmt: skip


def _leak_summary(leaks: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Both matrices as summary lines: the diagonal, and the largest cell beside it."""
    out: dict[str, dict[str, float]] = {}
    follows = explained.square(leaks["explained"])
    for name, matrix in (("raw", leaks["matrix"]), ("explained", follows)):
        on = [row[f] for f, row in matrix.items() if np.isfinite(row[f])]
        off = [v for f, row in matrix.items() for g, v in row.items() if f != g and np.isfinite(v)]
        if on and off:
            out[f"leakage.{name}.diagonal"] = {
                "median": float(np.median(on)), "worst": min(on), "count": leaks["pairs"],
            }  # fmt: skip
            out[f"leakage.{name}.median"] = {
                "median": float(np.median(off)), "worst": max(off), "count": leaks["pairs"],
            }  # fmt: skip
            out[f"leakage.{name}.max"] = {
                "median": max(off), "worst": max(off), "count": leaks["pairs"],
            }  # fmt: skip
    return out


def _kid(drawn: list[Drawn], done: OnDone) -> dict[str, dict[str, float]]:
    """KID of redrawn clips and of avatars against real frames of the same people."""
    out: dict[str, dict[str, float]] = {}
    for kind, ours, real in (("self", ("ours",), "driver"), ("swap", ("a", "b"), "real")):
        left, right = [], []
        for one in drawn:
            if one.item.kind == kind and real in one.videos:
                shown = [
                    f for name in ours for f in list(pictures(one.videos[name]))[:: 5 * len(ours)]
                ]
                left.append(np.stack([kid.describe(f) for f in shown]))
                truly = list(pictures(one.videos[real]))[::5]
                right.append(np.stack([kid.describe(f) for f in truly]))
        found = kid.kid(left, right)
        if np.isfinite(found["kid"]):
            out[f"{kind}.kid"] = {"median": found["kid"], "worst": found["kid"], "count": len(left),
                                  "spread": found["spread"], "floor": found["floor"]}  # fmt: skip
        done()
    return out


def _film(cache: FrameCache) -> list[str]:
    test = cache.split().test
    return sorted({str(c) for c in cache.clip[test][cache.kind[test] == "grid"]})


def _identity_name(read: dict[Path, Arrays]) -> str:
    has = any(arrays["identity"].size for arrays in read.values())
    own = "E_app's vector (cosine; ours, not trained to tell people apart)"
    return f"dlib ResNet 128-d (Euclidean) and {own}" if has else f"{own} only"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.stdout.strip()
