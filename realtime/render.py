"""`visavis render`: the live pipeline from files to a file.

Sound of any format goes through the same `Pipeline` as a microphone's packets; driving
videos are read into clips. Frame f is shown at f / 25 s over the original, undelayed
sound, so picture and voice are in sync by construction. One pass, bounded memory;
composing and encoding overlap with the networks; an engine on a card draws whole frames there,
many at once, and cuts the crops of driving videos itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import av
import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from models.codes import Factor
from models.composite import compose
from models.mark import put_mark
from models.portrait import Portrait, PortraitError, decode_image, prepare_portrait
from models.rates import FPS, FRAME_SAMPLES_48K
from models.runtime import EngineName, Precision, load_engine
from models.runtime.engine import Drawing, Engine, ReadsYuv
from models.runtime.frames import LARGEST_PX, DrawsFrames, FrameRequest
from models.tracking import FaceTracker
from realtime.pipeline import Pipeline, SourceError, Tick
from realtime.presets import PRESETS
from realtime.protocol import SourceKind, StageMs
from realtime.render_files import (
    SYNTHETIC_NOTE,
    AudioFile,
    Mp4Writer,
    Pcm,
    Pixels,
    RenderError,
)
from realtime.sources import Clip, ClipError
from realtime.sources.driver import read_driver
from realtime.stages import StageRecorder
from realtime.worker import RenderJob, Tracker, run_networks, to_i420

OnProgress = Callable[[str, int, int | None], None]
"""Called with what is done now, how many frames are ready, and how many to expect."""

PORTRAIT_DIR = Path(__file__).resolve().parent.parent / "web" / "portraits"
MIN_SIZE_PX, MAX_SIZE_PX = 64, 1024
#: Frames on their way between the networks and the file.
_IN_FLIGHT = 4
#: How much longer than its driver a recording may be before the driver is looped.
_LOOP_SLACK_FRAMES = 5


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What to render. Videos may also be .npz clips."""

    portrait: str
    """Path of a picture, or the id of a bundled portrait."""
    audio: Path
    output: Path
    pose: Path | None = None
    eyes: Path | None = None
    expression: str | None = None
    """Name of an expression preset, or path of a video."""
    lip: str = "audio"
    """`audio`, or path of a video."""
    size: int = 512
    engine: EngineName = "auto"
    checkpoint: Path | None = None
    threads: int = 0
    precision: Precision = "auto"
    seed: int = 0
    mark: bool = False
    """Lay the visible mark over every picture."""
    portrait_dirs: tuple[Path, ...] = (PORTRAIT_DIR,)


@dataclass(frozen=True, slots=True)
class RenderReport:
    """What was made and how fast."""

    frames: int
    seconds: float
    """Length of the video."""
    wall_s: float
    """Time from the first sound to the finished file, without loading and drivers."""
    engine: str
    stages: dict[str, StageMs]
    """Percentiles of audio, draw, compose, convert and encode."""

    @property
    def speed(self) -> float:
        """Times real time."""
        return self.seconds / self.wall_s if self.wall_s else 0.0


@dataclass(frozen=True, slots=True)
class RenderParts:
    """What `render_file` is made of; tests put fakes here."""

    load: Callable[[EngineName, Path | None, int, Precision], Engine] = load_engine
    make_tracker: Callable[[Engine], Tracker] = FaceTracker
    prepare: Callable[..., Portrait] = prepare_portrait
    compose: Callable[[Drawing, Pixels, int], Pixels] = compose


def render_file(
    options: RenderOptions,
    *,
    on_progress: OnProgress = lambda what, done, total: None,
    parts: RenderParts | None = None,
) -> RenderReport:
    """Render one video; blocks, single use of the calling thread as the engine's.

    The output appears only when it is complete. Raises RenderError; EngineError or
    CheckpointError when the networks cannot be loaded.
    """
    parts = parts or RenderParts()
    _check(options)
    picture, name = _find_portrait(options.portrait, options.portrait_dirs)
    with AudioFile(options.audio) as audio:
        on_progress("loading the networks", 0, None)
        engine = parts.load(options.engine, options.checkpoint, options.threads, options.precision)
        portrait = _prepare(picture, name, engine, parts)
        clips = _read_drivers(options, engine, parts, audio.frames, on_progress)
        pipeline = _make_pipeline(options, portrait, engine, clips)
        part = options.output.with_name(options.output.name + ".part")
        try:
            with Mp4Writer(part, options.size, audio.channels) as writer:
                encoder = _Encoder(engine, parts, writer, options.mark)
                report = _run(pipeline, encoder, audio, on_progress)
            part.replace(options.output)
        except (OSError, av.FFmpegError) as error:
            raise RenderError(f"{options.output} cannot be written: {error}.") from error
        finally:
            part.unlink(missing_ok=True)
    return report


def render_with_progress(options: RenderOptions, console: Console | None = None) -> RenderReport:
    """`render_file` with a progress bar on the terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} frames"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return render_file(options, on_progress=show)


# --- what goes in ---------------------------------------------------------------------


class _Listing(msgspec.Struct, frozen=True):
    """One entry of a folder's portraits.json."""

    id: str
    name: str
    file: str


def _check(options: RenderOptions) -> None:
    if not MIN_SIZE_PX <= options.size <= MAX_SIZE_PX or options.size % 2:
        raise RenderError(
            f"The size must be an even number from {MIN_SIZE_PX} to {MAX_SIZE_PX}, "
            f"not {options.size}."
        )
    if options.output.suffix.lower() != ".mp4":
        raise RenderError(f"The output must end in .mp4, not {options.output.name}.")
    if not options.output.absolute().parent.is_dir():
        raise RenderError(f"There is no folder {options.output.absolute().parent}.")
    for path in (options.audio, options.pose, options.eyes):
        if path is not None and not path.is_file():
            raise RenderError(f"There is no file {path}.")
    if options.lip != "audio" and not Path(options.lip).is_file():
        raise RenderError(f"There is no file {options.lip}; say 'audio' or name a video.")
    if options.expression is None or options.expression in PRESETS["exp"]:
        return
    if not Path(options.expression).is_file():
        names = ", ".join(PRESETS["exp"])
        raise RenderError(
            f"{options.expression!r} is neither a file nor an expression preset ({names})."
        )


def _find_portrait(wanted: str, folders: tuple[Path, ...]) -> tuple[Path, str]:
    """Path and name of the picture: a bundled id, or else a file."""
    ids: list[str] = []
    for folder in folders:
        listing = folder / "portraits.json"
        if not listing.is_file():
            continue
        for entry in msgspec.json.decode(listing.read_bytes(), type=list[_Listing]):
            ids.append(entry.id)
            if entry.id == wanted:
                return folder / entry.file, entry.name
    path = Path(wanted)
    if path.is_file():
        return path, path.stem
    known = f" Bundled portraits: {', '.join(ids)}." if ids else ""
    raise RenderError(f"There is no picture and no bundled portrait called {wanted}.{known}")


def _prepare(picture: Path, name: str, engine: Engine, parts: RenderParts) -> Portrait:
    try:
        image = decode_image(picture.read_bytes())
        return parts.prepare(image, engine, id="render", name=name)
    except PortraitError as error:
        raise RenderError(f"{picture.name}: {error}") from error
    except OSError as error:
        raise RenderError(f"{picture} cannot be read.") from error


def _read_drivers(
    options: RenderOptions,
    engine: Engine,
    parts: RenderParts,
    frames: int | None,
    on_progress: OnProgress,
) -> dict[Factor, Clip]:
    """One clip per factor that a video drives; a file that drives several is read once."""
    paths: dict[Factor, Path] = {}
    if options.pose is not None:
        paths["pose"] = options.pose
    if options.eyes is not None:
        paths["eye"] = options.eyes
    if options.expression is not None and options.expression not in PRESETS["exp"]:
        paths["exp"] = Path(options.expression)
    if options.lip != "audio":
        paths["lip"] = Path(options.lip)
    read: dict[Path, Clip] = {}
    for path in paths.values():
        if path not in read:
            what = f"reading {path.name}"

            def show(done: int, total: int | None, what: str = what) -> None:
                on_progress(what, done, total)

            try:
                update = parts.make_tracker(engine).update
                planes = isinstance(engine, ReadsYuv)
                clip = read_driver(path, update, engine.config, show, planes=planes)
            except ClipError as error:
                raise RenderError(str(error)) from error
            read[path] = _fit(clip, frames)
    return {factor: read[path] for factor, path in paths.items()}


def _fit(clip: Clip, frames: int | None) -> Clip:
    """A driver that is as long as the sound is played as it is; a shorter one loops."""
    if frames is None or frames > len(clip) + _LOOP_SLACK_FRAMES:
        return clip
    held = np.repeat(clip.codes[-1:], 2 * _LOOP_SLACK_FRAMES, axis=0)
    codes = np.concatenate([clip.codes, held])[: frames + _LOOP_SLACK_FRAMES]
    return Clip(codes, clip.name, seam_frames=0)


def _make_pipeline(
    options: RenderOptions, portrait: Portrait, engine: Engine, clips: dict[Factor, Clip]
) -> Pipeline:
    sources: dict[Factor, tuple[SourceKind, str | None]] = {f: ("clip", f) for f in clips}
    if options.expression is not None and "exp" not in clips:
        sources["exp"] = ("preset", options.expression)
        if options.expression in PRESETS["eye"] and "eye" not in clips:
            sources["eye"] = ("preset", options.expression)
    try:
        return Pipeline(
            portrait,
            engine.config,
            size=options.size,
            sources=sources,
            clips={str(factor): clip for factor, clip in clips.items()},
            seed=options.seed,
            clock=lambda: 0,
        )
    except SourceError as error:
        raise RenderError(str(error)) from error


# --- what comes out -------------------------------------------------------------------


def _run(
    pipeline: Pipeline, encoding: _Encoder, audio: AudioFile, on_progress: OnProgress
) -> RenderReport:
    """Push all sound through the pipeline and write what comes out."""
    started = time.monotonic_ns()
    samples = 0
    with encoding as encoder:
        for pcm in audio.chunks():
            encoder.sound(pcm)
            for tick in pipeline.push_audio(pcm, samples):
                encoder.picture(tick)
            samples += len(pcm)
            on_progress("rendering", encoder.pictures, audio.frames)
        # The last frames wait for sound after the end: silence.
        total = -(-samples // FRAME_SAMPLES_48K)
        while encoder.pictures < total:
            silence = np.zeros(FRAME_SAMPLES_48K, np.int16)
            for tick in pipeline.push_audio(silence, samples):
                if tick.frame_index < total:
                    encoder.picture(tick)
            samples += len(silence)
            on_progress("rendering", encoder.pictures, total)
    wall_s = (time.monotonic_ns() - started) / 1e9
    return RenderReport(total, total / FPS, wall_s, encoder.engine.name, encoder.stages.summary())


@dataclass(slots=True)
class _Encoder:
    """Networks in the caller's thread, encoding in one of its own, in order.

    An engine that draws whole frames gets as many of them at once as it takes; for any other,
    composing overlaps with the networks in the second thread.
    """

    engine: Engine
    parts: RenderParts
    writer: Mp4Writer
    marked: bool = False
    pictures: int = 0
    stages: StageRecorder = field(default_factory=lambda: StageRecorder(capacity=4096))
    _waiting: list[RenderJob] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="encode")
    )
    _flight: deque[Future[dict[str, int]]] = field(default_factory=deque)

    def __enter__(self) -> _Encoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._draw_waiting()
            while kind is None and self._flight:
                self._take()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def sound(self, pcm: Pcm) -> None:
        """Write (n, channels) int16."""
        self._give(lambda: self._write_sound(pcm))

    def picture(self, tick: Tick) -> None:
        """Draw and write one frame, perhaps together with the next ones."""
        job = tick.job
        self.pictures += 1
        if isinstance(self.engine, DrawsFrames) and len(job.source_HWC) <= LARGEST_PX:
            self._waiting.append(job)
            if len(self._waiting) == self.engine.frame_renderer().max_batch:
                self._draw_waiting()
            return
        drawing, _, spans = run_networks(self.engine, job, time.monotonic_ns)
        self.stages.add_spans(spans)
        self._give(lambda: self._compose_picture(job, drawing))

    def _draw_waiting(self) -> None:
        """Draw all frames that wait, in one batch on the engine's device."""
        jobs, self._waiting = self._waiting, []
        if not jobs or not isinstance(self.engine, DrawsFrames):
            return
        start = time.monotonic_ns()
        lips = self.engine.audio_batch(np.stack([job.mel_TM for job in jobs]))
        audio_ns = (time.monotonic_ns() - start) // len(jobs)
        requests = [
            FrameRequest(job.appearance, job.source_HWC, job.snapshot.resolve(lip))
            for job, lip in zip(jobs, lips, strict=True)
        ]
        for job, result in zip(jobs, self.engine.frame_renderer().render(requests), strict=True):
            share = {stage: ns // len(jobs) for stage, ns in result.spans.items()}
            self.stages.add_spans({"audio": audio_ns, **share})
            self._give(partial(self._write_picture, job.frame_index, result.i420))

    def _give(self, work: Callable[[], dict[str, int]]) -> None:
        while len(self._flight) >= _IN_FLIGHT:
            self._take()
        self._flight.append(self._pool.submit(work))

    def _take(self) -> None:
        self.stages.add_spans(self._flight.popleft().result())

    def _write_sound(self, pcm: Pcm) -> dict[str, int]:
        self.writer.sound(pcm)
        return {}

    def _compose_picture(self, job: RenderJob, drawing: Drawing) -> dict[str, int]:
        t0 = time.monotonic_ns()
        rgb = self.parts.compose(drawing, job.source_HWC, len(job.source_HWC))
        t1 = time.monotonic_ns()
        i420 = to_i420(rgb)
        t2 = time.monotonic_ns()
        return {
            "compose": t1 - t0,
            "convert": t2 - t1,
            **self._write_picture(job.frame_index, i420),
        }

    def _write_picture(self, frame_index: int, i420: Pixels) -> dict[str, int]:
        start = time.monotonic_ns()
        if self.marked:
            put_mark(i420)
        self.writer.picture(i420, frame_index)
        return {"encode": time.monotonic_ns() - start}


__all__ = [
    "SYNTHETIC_NOTE", "AudioFile", "Mp4Writer", "RenderError", "RenderOptions", "RenderParts",
    "RenderReport", "render_file", "render_with_progress",
]  # fmt: skip
