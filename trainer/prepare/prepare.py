"""`visavis prepare`: a folder of talking videos -> shards, manifest, report, training cache.

A file is finished when its record lies in `done/`; an interrupted run goes on with the
next file, and a file that changed is done again. Nothing is used without a declaration of
its licence (`trainer.prepare.declare`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from models.runtime import load_engine
from models.runtime.base import BaseEngine
from trainer.evaluate.measuring import Measure, open_measure
from trainer.prepare import people as who
from trainer.prepare.clips import cut_video
from trainer.prepare.declare import Licence, LicenceError, licence_of
from trainer.prepare.filters import Limits
from trainer.prepare.media import MediaError
from trainer.prepare.report import FileReport, Report, counted
from trainer.prepare.shards import assemble, read_shard, write_shard
from trainer.prepare.sync import SyncLimits

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg"}
#: Change it when clips would come out differently, so that old records are not trusted.
VERSION = 1


class PrepareError(RuntimeError):
    """Nothing can be prepared; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to prepare and how strictly."""

    videos: Path
    out: Path
    people: str = "folder"
    checkpoint: Path | None = None
    threads: int = 2
    measure_python: Path | None = None
    measure_model: Path | None = None
    limits: Limits = field(default_factory=Limits)
    sync: SyncLimits = field(default_factory=SyncLimits)


@dataclass(frozen=True, slots=True)
class _Done:
    """What is remembered of a finished file."""

    report: FileReport
    licence: Licence
    shards: list[str]


def prepare(options: Options, console: Console, engine: BaseEngine | None = None) -> Report:
    """Prepare everything below `options.videos`; `engine` is loaded unless one is given.

    Raises PrepareError; MeasureError, CheckpointError, EngineError from what it uses.
    """
    videos, licences = _find(options)
    engine = engine or load_engine("auto", options.checkpoint, options.threads)
    measure = None
    if options.measure_python is not None:
        measure = open_measure(
            options.measure_python, options.measure_model, engine, options.out / "measured", ""
        )
    report = Report()
    done: list[_Done] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("files", total=len(videos), what="")
        for video in videos:
            name = str(video.relative_to(options.videos))

            def show(frames: int, name: str = name) -> None:
                bar.update(task, what=f"{name}, {frames} pictures read")

            record = _record_path(options, video)
            finished = _read_done(record)
            if finished is not None:
                report.resumed += 1
            else:
                finished = _one(options, engine, measure, video, licences[video], show)
                record.parent.mkdir(parents=True, exist_ok=True)
                record.write_text(json.dumps(asdict(finished), indent=1) + "\n")
            done.append(finished)
            report.files.append(finished.report)
            bar.advance(task)
        clips = sum(len(d.shards) for d in done)
        packing = bar.add_task("writing the cache", total=clips, what="")
        _finish(options, engine, done, report, lambda: bar.advance(packing))
    (options.out / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    (options.out / "report.txt").write_text(report.text() + "\n")
    return report


def _find(options: Options) -> tuple[list[Path], dict[Path, Licence]]:
    root = options.videos
    if not root.is_dir():
        raise PrepareError(f"There is no folder {root}.")
    inside = options.out.resolve()
    videos = sorted(
        p for p in root.rglob("*")
        if p.suffix.lower() in SUFFIXES and p.is_file() and inside not in p.resolve().parents
    )  # fmt: skip
    if not videos:
        raise PrepareError(f"{root} holds no videos ({', '.join(sorted(SUFFIXES))}).")
    licences, missing = {}, []
    for video in videos:
        try:
            licences[video] = licence_of(video, root)
        except LicenceError as error:
            missing.append(str(error))
    if missing:
        more = f"\n(and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise PrepareError(missing[0] + more)
    return videos, licences


def _one(
    options: Options,
    engine: BaseEngine,
    measure: Measure | None,
    video: Path,
    licence: Licence,
    show: Any,
) -> _Done:
    """Cut one file and write its shards."""
    inside = video.relative_to(options.videos)
    report = FileReport(str(inside))
    names = []
    try:
        clips = cut_video(
            video, engine, report, limits=options.limits, sync_limits=options.sync, on_frame=show
        )
        for number, clip in enumerate(clips):
            name = f"{_slug(inside)}-{number:03d}"
            write_shard(options.out, name, clip)
            if measure is not None:
                film = options.out / "clips" / f"{name}.mp4"
                found = measure.read([film]).get(film)
                if found is not None and len(found["landmarks"]) == len(clip.face.crops):
                    points = found["landmarks"] / engine.config.image_size
                    write_shard(options.out, name, clip, points.astype(np.float32))
            names.append(name)
        if not clips:
            kinds = max(report.dropped_s, key=lambda k: report.dropped_s[k], default="empty")
            report.error = f"nothing usable, mostly: {kinds}"
    except (MediaError, ValueError) as error:
        report.error = str(error)
        report.clips, report.kept_s = 0, 0.0
        names = []
    return _Done(report, licence, names)


def _slug(inside: Path) -> str:
    """File name of a video's clips: its path in letters that every system takes."""
    person = "" if len(inside.parts) == 1 else re.sub(r"[^\w-]+", "_", inside.parts[0]) + "/"
    rest = inside if len(inside.parts) == 1 else Path(*inside.parts[1:])
    words = re.sub(r"[^\w-]+", "_", str(rest.with_suffix("")))
    return f"{person}{words}-{hashlib.sha256(str(inside).encode()).hexdigest()[:6]}"


def _record_path(options: Options, video: Path) -> Path:
    """One record per path, size, date and settings of a video."""
    stat = video.stat()
    inside = video.relative_to(options.videos)
    limits = json.dumps([asdict(options.limits), asdict(options.sync)], sort_keys=True)
    words = f"{VERSION} {inside} {stat.st_size} {stat.st_mtime_ns} {options.checkpoint} {limits}"
    return options.out / "done" / f"{hashlib.sha256(words.encode()).hexdigest()[:20]}.json"


def _read_done(record: Path) -> _Done | None:
    try:
        said = json.loads(record.read_text())
        return _Done(FileReport(**said["report"]), Licence(**said["licence"]), said["shards"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None


def _finish(
    options: Options, engine: BaseEngine, done: list[_Done], report: Report, on_done: Any
) -> None:
    """People, split, cache and manifest, from all files finished so far."""
    names = [name for d in done for name in d.shards]
    if not names:
        report.warnings.append("Nothing was usable, so there is no cache.")
        _write_manifest(options, done, [], [])
        return
    shards = [read_shard(options.out, name) for name in names]
    folders = [
        who.by_folder(options.videos / d.report.file, options.videos)
        for d in done for _ in d.shards
    ]  # fmt: skip
    vectors = np.stack([s.identity for s in shards])
    people = folders
    if options.people == "face":
        people = [f"person{g:03d}" for g in who.by_face(vectors)]
    else:
        for a, b in who.look_alike(folders, vectors):
            report.warnings.append(
                f"{a} and {b} look like one person; put them into one folder if they are"
            )
    held = who.held_out(people, names)
    for shard, person in zip(shards, people, strict=True):
        report.people[person] = round(report.people.get(person, 0.0) + len(shard.code) / 25, 2)
    report.held_out = sorted({n for n, out in zip(names, held, strict=True) if out})
    whole = len(set(people)) >= 4
    report.split = (
        f"Held out for measuring: {counted(len(report.held_out), 'clip')}, "
        + ("whole people." if whole else "by clip, because there are fewer than four people.")
    )  # fmt: skip
    if not report.held_out:
        report.split = "One clip only: nothing is held out, so nothing can be measured."
    assemble(options.out / "cache", shards, people, held, engine.face, on_done)
    _write_manifest(options, done, people, held)


def _write_manifest(
    options: Options, done: list[_Done], people: list[str], held: list[bool]
) -> None:
    entries = []
    rows = iter(zip(people, held, strict=True))
    for one in done:
        for name in one.shards:
            person, out = next(rows)
            entries.append({
                "clip": f"clips/{name}.mp4", "shard": f"shards/{name}.npz", "person": person,
                "split": "held out" if out else "train", "video": one.report.file,
                "licence": one.licence.licence, "source": one.licence.source,
                "declared_in": one.licence.folder,
                "sha256": _digest(options.out / "shards" / f"{name}.npz"),
            })  # fmt: skip
    licences = sorted({(d.licence.licence, d.licence.source) for d in done if d.shards})
    manifest = {
        "format": 1, "fps": 25, "crop_px": 256, "sample_rate_hz": 16_000,
        "labels": "MediaPipe FaceLandmarker" if options.measure_python else "E_mot",
        "data": [{"name": source, "licence": licence} for licence, source in licences],
        "clips": entries,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
