"""`visavis bench --engine-only`: how fast the networks are, stage by stage, without a network.

`python -m realtime.engine_bench` does the same where the command line's packages are missing.

Bundled portraits and a hum go through each engine's own surface at several batch sizes.
The configuration that ships is measured with its weights; the `paper` configuration has none,
so it is measured untrained, which has the same cost and draws nothing. Reports p50, p95 and
p99 of a batch, never a mean, with hardware, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from models.checkpoint import CheckpointError
from models.codes import Array
from models.composite import compose
from models.config import ModelConfig
from models.rates import FPS, MODEL_RATE_HZ
from models.runtime import load_engine
from models.runtime.base import BaseEngine, Network, to_network
from models.runtime.engine import Drawing, EngineError
from models.runtime.flavour import MAX_BATCH
from models.runtime.frames import DrawsFrames, FrameRequest, frame_renderer, to_i420
from models.streaming import AudioWindow

if TYPE_CHECKING:
    from rich.table import Table

BATCHES = (1, 2, 4, 8, 16)
SIZE_PX = 512
MIN_RUNS = 5
PORTRAITS = Path(__file__).resolve().parent.parent / "web" / "portraits"
Pixels = NDArray[np.uint8]
Clock = Callable[[], int]
DEVICE_RUNS = 50
Work = Callable[[], object]


@runtime_checkable
class Profiled(Protocol):
    """A renderer that can time its stages on the device."""

    def profile(self, batch: int, size: int, runs: int) -> dict[str, list[float]]:
        """Milliseconds per stage."""


@dataclass(frozen=True, slots=True)
class StageFigures:
    """One stage at one batch size: milliseconds of the whole batch."""

    batch: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    frames_per_s: float
    """batch / p50."""


@dataclass(frozen=True, slots=True)
class ConfigurationFigures:
    """One configuration on one engine."""

    configuration: str
    trained: bool
    engine: str
    reason: str
    size_px: int
    parameters: dict[str, int]
    stages: dict[str, list[StageFigures]]


def run_engine_bench(
    engine: str, batches: list[int], seconds: float, json_path: Path | None
) -> None:
    """Measure, print a table per configuration, and write everything to `json_path`.

    `seconds` is spent on each configuration, spread over its stages and batch sizes.

    Raises:
        EngineError: the engine cannot run here.
    """
    from rich.console import Console

    console = Console(highlight=False)
    for said in configurations(engine, batches, seconds, json_path):
        if isinstance(said, str):
            console.print(said, markup=False)
        else:
            console.print(_table(said))


def configurations(
    engine: str,
    batches: list[int],
    seconds: float,
    json_path: Path | None,
    names: Sequence[str] = ("live", "paper"),
) -> Iterator[str | ConfigurationFigures]:
    """Measure one configuration after another; yields figures, and sentences in between.

    What is known is written to `json_path` after each. Raises EngineError.
    """
    from realtime.bench.site import machine

    if any(not 1 <= batch <= MAX_BATCH for batch in batches):
        raise EngineError(f"batches are 1 to {MAX_BATCH}, got {batches}")
    makers = {"live": live_engine, "paper": paper_engine}
    facts = machine()
    found: list[ConfigurationFigures] = []
    for name in names:
        if name == "paper":
            yield "paper: untrained networks; the first call makes them, which takes minutes"
        try:
            loaded = makers[name](engine)
        except (CheckpointError, EngineError) as error:
            if name == "live":
                raise
            yield f"{name}: not measured: {error}"
            continue
        found.append(measure(loaded, batches or list(BATCHES), seconds))
        # Two configurations need not fit a card at once.
        del loaded
        if json_path is not None:
            document = {"machine": facts, "configurations": [asdict(f) for f in found]}
            json_path.write_text(json.dumps(document, indent=2) + "\n")
        yield found[-1]
    yield ", ".join(f"{key} {value}" for key, value in facts.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print plain lines; the exit status is 1 when the engine cannot run here."""
    parser = argparse.ArgumentParser(prog="python -m realtime.engine_bench", description=__doc__)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seconds", type=float, default=10.0, help="per configuration")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--only", choices=("live", "paper"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    names = (given.only,) if given.only else ("live", "paper")
    try:
        for said in configurations(given.engine, given.batch, given.seconds, given.json, names):
            print(said if isinstance(said, str) else _lines(said), flush=True)
    except (CheckpointError, EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _lines(figures: ConfigurationFigures) -> str:
    """One configuration without a table."""
    lines = [f"{figures.configuration}: {figures.engine}, {figures.reason}"]
    for stage, rows in figures.stages.items():
        for row in rows:
            lines.append(
                f"{stage:18} x{row.batch:<3} {row.p50_ms:9.3f} ms p50 {row.p95_ms:9.3f} ms p95 "
                f"{row.frames_per_s:9.0f} frames/s"
            )
    return "\n".join(lines)


def live_engine(name: str) -> BaseEngine:
    """The shipped checkpoint."""
    return load_engine(name)  # type: ignore[arg-type]


def paper_engine(name: str) -> BaseEngine:
    """Untrained `paper` networks, made at the first call and kept in the user's cache."""
    from models.config import paper_config
    from models.untrained import untrained_checkpoint

    made = untrained_checkpoint(paper_config(), exported=name != "torch")
    return load_engine(name, made.path)  # type: ignore[arg-type]


# --- what is measured -----------------------------------------------------------------


def measure(
    engine: BaseEngine,
    batches: list[int],
    seconds: float,
    clock: Clock = time.perf_counter_ns,
) -> ConfigurationFigures:
    """All stages of one engine. A batch that the engine runs one by one is timed as a whole."""
    works = [(stage, batch, work) for batch in batches for stage, work in stages(engine, batch)]
    each_ns = int(seconds * 1e9 / max(len(works), 1))
    figures: dict[str, list[StageFigures]] = {}
    for stage, batch, work in works:
        figures.setdefault(stage, []).append(_summary(batch, timed(work, each_ns, clock)))
    for stage, batch, took in device_stages(engine, batches):
        figures.setdefault(stage, []).append(_summary(batch, took))
    manifest = engine.manifest
    return ConfigurationFigures(
        engine.config.name, "metrics" in manifest or "training_steps" in manifest, engine.name,
        engine.reason, SIZE_PX, manifest.get("parameters", {}), figures,
    )  # fmt: skip


def stages(engine: BaseEngine, batch: int) -> Iterator[tuple[str, Work]]:
    """What one batch costs on the caller's side, transfers included.

    audio, motion and appearance are networks; `frame` is a whole frame where the engine draws
    whole frames, else generator, compose and convert one after another.
    """
    mel, sources = speech(engine.config, batch), portraits(SIZE_PX, batch)
    size = engine.config.image_size
    crops = [
        np.asarray(cv2.resize(s, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
        for s in sources
    ]
    yield "audio", lambda: engine.audio_batch(mel)
    yield "motion", lambda: engine.motion_batch(crops)
    yield "appearance", _each(engine, "appearance", [{"source": to_network(c)} for c in crops])
    if isinstance(engine, DrawsFrames):
        renderer = frame_renderer(engine)
        requests = requests_of(engine, sources)
        yield "frame", lambda: renderer.render(requests)
        return
    feeds = [engine.resting(crop) for crop in crops]
    yield "generator", _each(engine, "generator", feeds)
    drawings = [_drawing(engine.run("generator", feed)) for feed in feeds]
    pairs = list(zip(drawings, sources, strict=True))
    yield "compose", lambda: [compose(d, s, SIZE_PX) for d, s in pairs]
    yield "convert", lambda: [to_i420(s) for s in sources]


def device_stages(engine: BaseEngine, batches: list[int]) -> Iterator[tuple[str, int, list[int]]]:
    """Stages of a fused frame in device time, where the engine's renderer can tell them."""
    if not isinstance(engine, DrawsFrames):
        return
    renderer = frame_renderer(engine)
    if not isinstance(renderer, Profiled):
        return
    for batch in batches:
        renderer.render(requests_of(engine, portraits(SIZE_PX, batch)))
        for stage, took_ms in renderer.profile(batch, SIZE_PX, DEVICE_RUNS).items():
            yield f"device {stage}", batch, [int(ms * 1e6) for ms in took_ms]


def timed(work: Work, budget_ns: int, clock: Clock) -> list[int]:
    """Nanoseconds of as many runs as fit, at least `MIN_RUNS`, after one that is not counted."""
    work()
    took: list[int] = []
    end = clock() + budget_ns
    while len(took) < MIN_RUNS or clock() < end:
        start = clock()
        work()
        took.append(clock() - start)
    return took


def _summary(batch: int, took_ns: list[int]) -> StageFigures:
    p50, p95, p99 = (float(v) / 1e6 for v in np.percentile(took_ns, (50, 95, 99)))
    return StageFigures(
        batch, len(took_ns), round(p50, 4), round(p95, 4), round(p99, 4),
        round(batch * 1000 / p50, 1) if p50 else 0.0,
    )  # fmt: skip


# --- inputs ---------------------------------------------------------------------------


def portraits(size: int, count: int) -> list[Pixels]:
    """Bundled portraits, (size, size, 3) RGB, one after another; noise where there are none."""
    found: list[Pixels] = []
    for path in sorted(PORTRAITS.glob("*.jpg"))[:count]:
        picture = cv2.imread(str(path))
        if picture is not None:
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            found.append(np.asarray(cv2.resize(rgb, (size, size)), np.uint8))
    if not found:
        found = [np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)]
    return [found[i % len(found)] for i in range(count)]


def speech(config: ModelConfig, count: int) -> Array:
    """(count, T, 80) mel windows of a hum with syllables: what costs is the same as in speech."""
    seconds = 2 + count // FPS
    t = np.arange(seconds * MODEL_RATE_HZ) / MODEL_RATE_HZ
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20))
    samples = 0.1 * hum * (1 + np.sin(2 * np.pi * 4 * t))
    windows = [mel for _, mel in AudioWindow(config).push(samples.astype(np.float32))]
    return np.stack(windows[-count:])


def requests_of(engine: BaseEngine, sources: list[Pixels]) -> list[FrameRequest]:
    """Every picture as a portrait that looks as it is."""
    found = []
    for source in sources:
        size = engine.config.image_size
        small = cv2.resize(source, (size, size), interpolation=cv2.INTER_AREA)
        appearance = engine.appearance(np.asarray(small, np.uint8))
        found.append(FrameRequest(appearance, source, appearance.code))
    return found


def _each(engine: BaseEngine, network: Network, feeds: list[dict[str, Array]]) -> Work:
    return lambda: [engine.run(network, feed) for feed in feeds]


def _drawing(outputs: dict[str, Array]) -> Drawing:
    flow, rgb = (np.ascontiguousarray(outputs[n][0].transpose(1, 2, 0)) for n in ("flow", "rgb"))
    return Drawing(flow, outputs["mask"][0, 0], rgb)


def _table(figures: ConfigurationFigures) -> Table:
    """One configuration for a person."""
    note = "" if figures.trained else ", untrained: only its speed means anything"
    from rich.table import Table

    table = Table(
        title=f"{figures.configuration}{note}: {figures.engine}, {figures.reason}",
        title_justify="left",
    )
    for column in ("stage", "batch", "p50 ms", "p95 ms", "p99 ms", "frames/s"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, rows in figures.stages.items():
        for row in rows:
            table.add_row(
                stage, str(row.batch), f"{row.p50_ms:.3f}", f"{row.p95_ms:.3f}",
                f"{row.p99_ms:.3f}", f"{row.frames_per_s:.0f}",
            )  # fmt: skip
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
