"""`visavis evaluate`: draw, measure, score; every step resumes where it was interrupted."""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.checkpoint import Checkpoint, open_checkpoint
from models.codes import FACTOR_SLICES, FACTORS
from models.portrait import Portrait, PortraitError
from models.runtime import load_engine
from models.runtime.base import BaseEngine
from trainer.evaluate import codes, leakage, metrics, report, score, suite
from trainer.evaluate.history import rounded
from trainer.evaluate.measuring import Arrays, Cached, open_measure
from trainer.evaluate.perceptual import NAME as PERCEPTUAL_NET
from trainer.evaluate.score import Result
from trainer.evaluate.studio import (
    Driver,
    RenderFailedError,
    Studio,
    at_size,
    calmest,
    lip_codes,
    swapped,
)
from trainer.evaluate.suite import Item
from trainer.frames import FrameCache
from trainer.prepare.media import MediaError, pictures, sound, write_clip

_LIP = FACTOR_SLICES["lip"]
OnDone = Callable[[], None]


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


@dataclass(slots=True)
class Drawn:
    """Videos of one item, by what they show."""

    item: Item
    videos: dict[str, Path] = field(default_factory=dict)


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
    studio = Studio(engine, options.checkpoint, digest, folder / "videos")
    measure = open_measure(
        options.measure_python, options.measure_model, engine, folder / "measured", digest
    )
    skipped: list[dict[str, str]] = []
    with _bar(console) as step:
        drawn = list(_draw_all(studio, items, skipped, step("drawing", len(items))))
        videos = sorted({v for d in drawn for v in d.videos.values()})
        read = measure.read(videos, step("measuring", len(videos)))
        results = []
        done = step("scoring", len(drawn))
        for one in drawn:
            if _complete(one, read):
                results.append(_score(one, read, engine))
            else:
                skipped.append({"item": one.item.name, "why": "no face was measured in it"})
            done()
        frames = 400 if options.quick else 1350
        probes = codes.probes(cache, engine, frames, step("probing codes", frames))
        film = _film(cache)[: 12 if options.quick else 40]
        heard = codes.speech_in_codes(
            options.cache, cache, engine, film, step("speech in codes", len(film))
        )
    leaks = _leakage(drawn, read)
    summary = score.summarise(results) | _leak_summary(leaks)
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
        "suite": "quick" if options.quick else "full", "seed": options.seed,
        "measure": measure.name, "independent": measure.independent,
        "identity": _identity_name(read), "perceptual_net": PERCEPTUAL_NET,
        "sync_model": "our E_aud against the lips E_mot reads; not SyncNet, not independent",
        "engine": engine.reason,
    }  # fmt: skip


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[str, int], OnDone]]:
    """Yields a function (title, total) -> function to call once per finished thing."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:

        def step(title: str, total: int) -> OnDone:
            task = progress.add_task(title, total=total)
            return lambda: progress.advance(task)

        yield step


# --- drawing --------------------------------------------------------------------------


def _draw_all(
    studio: Studio, items: list[Item], skipped: list[dict[str, str]], done: OnDone
) -> Iterator[Drawn]:
    portraits: dict[Path, Portrait | str] = {}
    drivers: dict[Path, Driver] = {}
    for item in items:
        try:
            yield _draw_one(studio, item, portraits, drivers)
        except (RenderFailedError, PortraitError, MediaError, ValueError) as error:
            skipped.append({"item": item.name, "why": str(error)})
        done()


def _draw_one(
    studio: Studio,
    item: Item,
    portraits: dict[Path, Portrait | str],
    drivers: dict[Path, Driver],
) -> Drawn:
    if len(drivers) > 8:
        drivers.clear()
    for path in (item.driver, item.other):
        if path is not None and path not in drivers:
            drivers[path] = studio.driver(path)
    driver = drivers[item.driver]
    out = Drawn(item, {"driver": studio.driver_video(item.driver, driver)})
    if item.kind == "exact" and item.other is not None:
        out.videos["other"] = studio.driver_video(item.other, drivers[item.other])
        return out
    if item.kind == "self":
        return _draw_self(studio, out, driver)
    portrait, path = _usable(studio, item, portraits)
    source = at_size(portrait.image)
    out.videos["source"] = studio.place("source", path)
    if not out.videos["source"].exists():
        write_clip(out.videos["source"], [source], lossless=True)
    if item.kind in ("speech", "driven"):
        moved = item.driver if item.kind == "driven" else None
        out.videos["ours"] = studio.product(path, item.driver, moved)
    elif item.kind == "codes":
        place = studio.place("codes", path, item.driver)
        out.videos["ours"] = studio.drawn(place, portrait.appearance, source, _spoken(driver))
    else:
        assert item.other is not None
        a, b = _spoken(driver), _spoken(drivers[item.other])
        for name, factors in [("a", ()), ("b", FACTORS), *((f"a_{f}", (f,)) for f in FACTORS)]:
            place = studio.place("swap", path, item.driver, item.other, name)
            out.videos[name] = studio.drawn(
                place, portrait.appearance, source, swapped(a, b, factors)
            )
    return out


def _spoken(driver: Driver) -> Any:
    """Codes of a driver with the lips of its sound, where it has any."""
    out = driver.codes.copy()
    if driver.spoken is not None:
        out[:, _LIP] = driver.spoken
    return out


def _draw_self(studio: Studio, out: Drawn, driver: Driver) -> Drawn:
    """Redraw a clip from its own calmest frame, lips as read from the picture."""
    crop = driver.face.crops[calmest(driver.face)]
    out.videos["source"] = studio.place("self source", out.item.driver)
    if not out.videos["source"].exists():
        write_clip(out.videos["source"], [crop], lossless=True)
    out.videos["ours"] = place = studio.place("self", out.item.driver)
    if not place.exists():
        studio.drawn(place, studio.engine.appearance(crop), crop, driver.codes)
    return out


def _usable(
    studio: Studio, item: Item, portraits: dict[Path, Portrait | str]
) -> tuple[Portrait, Path]:
    """The item's portrait, or the first bundled one where enrolment refuses it."""
    assert item.portrait is not None
    for path in (item.portrait, *suite.bundled_portraits()):
        if path not in portraits:
            try:
                portraits[path] = studio.portrait(path)
            except PortraitError as error:
                portraits[path] = str(error)
        found = portraits[path]
        if isinstance(found, Portrait):
            return found, path
    raise RenderFailedError("no portrait could be enrolled")


# --- scoring --------------------------------------------------------------------------


def _complete(drawn: Drawn, read: dict[Path, Arrays]) -> bool:
    return all(v in read for v in drawn.videos.values())


def _score(drawn: Drawn, read: dict[Path, Arrays], engine: BaseEngine) -> Result:
    item = drawn.item
    if item.kind in ("swap", "exact"):
        return Result(item.kind, item.name, {})
    ours, driver, source = (read[drawn.videos[k]] for k in ("ours", "driver", "source"))
    frames = list(pictures(drawn.videos["ours"]))
    still = next(pictures(drawn.videos["source"]))
    figures = score.follow_all(ours, driver)
    if item.kind == "speech":
        figures = {k: v for k, v in figures.items() if k == "mouth_gap"}
    figures["identity"] = {
        "own": score.identity_distance(frames[::8], still, engine),
        "independent": score.embedding_distance(ours, source),
        "independent_driver": score.embedding_distance(driver, source),
    }
    figures["jitter"] = score.jitter(ours, driver)
    points, still_points = ours["landmarks"], source["landmarks"]
    if item.kind == "self":
        truth = list(pictures(drawn.videos["driver"]))
        figures["picture"] = score.image_metrics(frames, truth)
        figures["landmarks"] = score.landmark_distance(ours, driver)
        figures["sharpness"] = score.sharpness_ratio(
            frames[::6], points[::6], truth[::6], driver["landmarks"][::6]
        )
    else:
        figures["sharpness"] = score.sharpness_ratio(
            frames[::6], points[::6], [still], still_points
        )
    if item.kind in ("speech", "self"):
        figures |= _sync(item, drawn, frames, engine)
    return Result(item.kind, item.name, figures)


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


def _swap(drawn: Drawn, read: dict[Path, Arrays]) -> leakage.Swap:
    swapped_ones = {str(f): read[drawn.videos[f"a_{f}"]] for f in FACTORS}
    return leakage.Swap(read[drawn.videos["a"]], read[drawn.videos["b"]], swapped_ones)


def _exact(drawn: Drawn, read: dict[Path, Arrays]) -> leakage.ExactPair:
    a, b = (read[drawn.videos[k]] for k in ("driver", "other"))
    return leakage.ExactPair(drawn.item.factor, a, b)


def _leakage(drawn: list[Drawn], read: dict[Path, Arrays]) -> dict[str, Any]:
    """The matrix, by signal, how far codes arrived, and what the measure itself confuses."""
    whole = [d for d in drawn if _complete(d, read)]
    swaps = [_swap(d, read) for d in whole if d.item.kind == "swap"]
    exact = [_exact(d, read) for d in whole if d.item.kind == "exact"]
    matrix = leakage.leakage_matrix(swaps)
    confusion = leakage.crosstalk(exact, swaps)
    return {
        "pairs": len(swaps), "exact_pairs": len(exact), "matrix": matrix,
        "signals": leakage.signal_leakage(swaps), "arrival": leakage.arrival(swaps),
        "crosstalk_of_the_measure": confusion,
        "beyond_crosstalk": leakage.beyond_crosstalk(matrix, confusion),
    }  # fmt: skip


def _leak_summary(leaks: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The matrix as summary lines: its diagonal, what lies beside it, what of it is real."""
    out: dict[str, dict[str, float]] = {}
    matrix, beyond = leaks["matrix"], leaks["beyond_crosstalk"]
    on = [matrix[f][f] for f in matrix if np.isfinite(matrix[f][f])]
    if on:
        mean = float(np.mean(on))
        out["leakage.diagonal.mean"] = {"median": mean, "worst": min(on), "count": len(on)}
    off = [v for f, row in matrix.items() for g, v in row.items() if f != g and np.isfinite(v)]
    rest = [v for row in beyond.values() for v in row.values() if np.isfinite(v)]
    for name, values in (("off_diagonal", off), ("beyond_crosstalk", rest)):
        if values:
            top = max(values)
            out[f"leakage.{name}.max"] = {"median": top, "worst": top, "count": len(values)}
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
