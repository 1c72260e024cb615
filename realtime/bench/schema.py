"""What a benchmark writes: JSON with a version, read back with bounds by msgspec.

Durations are milliseconds unless a name says otherwise, `t_s` counts from when the client
began to speak. Percentiles and series, never a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from realtime.bench.errors import BenchError

SCHEMA_VERSION = 2
"""1 was a flat list of sessions without series; it is refused, not guessed at."""
_POINTS = 200_000
MIN_SLOPE_S = 60.0


class Percentiles(msgspec.Struct, frozen=True):
    """Of `count` values: linear interpolation between order statistics, as numpy's default."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    count: int


class Series(msgspec.Struct, frozen=True):
    """Raw values over time."""

    unit: str
    t_s: list[float]
    values: list[float]


class Phase(msgspec.Struct, frozen=True):
    """Latencies of one stretch of the run, e.g. before, during and after an impairment."""

    name: str
    from_s: float
    to_s: float
    picture_ms: Percentiles | None
    voice_ms: Percentiles | None
    skew_ms: Percentiles | None = None


class PathCount(msgspec.Struct, frozen=True):
    """One direction of the client's UDP path: what went in and what became of it."""

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    reordered: int = 0
    duplicated: int = 0


class SessionResult(msgspec.Struct):
    """What one client measured."""

    connect_ms: float
    first_frame_ms: float
    frames: int
    fps: float
    interval_ms: Percentiles | None
    """Between consecutive decoded pictures."""
    frozen: int = 0
    """How often no new picture came for more than 200 ms."""
    frozen_s: float = 0.0
    picture_ms: Percentiles | None = None
    """From saying the first sample of a frame's own sound until the frame is decoded."""
    picture_by: str = ""
    """`stamp` (number in the pixels, place by loudness) or `reports` (RTCP sender reports)."""
    added_ms: Percentiles | None = None
    """`picture_ms` without the algorithmic part."""
    beyond_ms: Percentiles | None = None
    """`added_ms` without what an impaired path itself took of each frame, see `up_path_ms`."""
    up_path_ms: Percentiles | None = None
    """How long the packet with the last sound that a frame needs was under way; None on a path
    that is left as it is. Lost packets do not count."""
    down_path_ms: Percentiles | None = None
    """The same of a frame's last video packet."""
    voice_ms: Percentiles | None = None
    """From saying a sample until it is decoded again, by correlation."""
    mouth_ms: Percentiles | None = None
    """From speech after silence until the mouth's pixels move."""
    skew_ms: Percentiles | None = None
    """By content: how much later than its sound a picture arrives."""
    skew_drift_ms_per_hour: float | None = None
    report_skew_ms: Percentiles | None = None
    """What is left when a receiver aligns by sender reports: lip-sync error in any player."""
    late: int = 0
    held: int = 0
    dropped: int = 0
    algorithmic_ms: int = 0
    server_added_ms: Percentiles | None = None
    """The server's own spans: mic packet in to avatar packet out, without the algorithmic part."""
    stages: dict[str, Percentiles] = {}
    """The server's spans by stage, matched by session and frame."""
    events: dict[str, int] = {}
    """How many held frames, key frames and losses the server's trace holds."""
    up: PathCount = PathCount()
    down: PathCount = PathCount()
    concealed_ms: float = 0.0
    """Of the returned voice, invented here for lost packets."""
    filled_ms: float = 0.0
    """Of the returned voice, silence because nothing came in time."""
    phases: list[Phase] = []
    series: dict[str, Series] = {}
    notices: list[str] = []


class ServerUse(msgspec.Struct, frozen=True):
    """What the server process used, by its own metrics."""

    rss_mb: Series | None = None
    cpu_percent: Series | None = None
    """Of one core."""
    rss_slope_mb_per_hour: float | None = None
    """Least squares without the first quarter; None for less than a minute."""


class BrowserResult(msgspec.Struct):
    """What a browser measured of a conversation of its own, in reports of about a second."""

    name: str
    first_picture_ms: float
    """From the click on Start, microphone included, until a picture is shown."""
    reports: int = 0
    figures: dict[str, Percentiles] = {}
    """Over the reports, by the names of `realtime.protocol.ClientStats`."""
    sums: dict[str, float] = {}
    """Counted over the whole conversation."""
    series: dict[str, Series] = {}


class Arm(msgspec.Struct):
    """One kind of server that was measured."""

    name: str
    sessions: list[SessionResult]
    server: ServerUse
    rounds: int = 1
    browser: BrowserResult | None = None
    """With --browser, after the clients."""


class Report(msgspec.Struct):
    """A whole run."""

    schema_version: int
    created: str
    machine: dict[str, str]
    settings: dict[str, Any]
    arms: list[Arm]
    warnings: list[str] = []
    """Why these figures may be worth less than they look."""

    def to_json(self) -> bytes:
        """Indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def load_report(path: Path) -> Report:
    """Read a report. Raises BenchError for what is none, or of another version."""
    try:
        raw = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise BenchError(f"{path} is no JSON: {error}.") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BenchError(f"{path} has schema version {version}, this is for {SCHEMA_VERSION}.")
    try:
        return msgspec.convert(raw, Report)
    except msgspec.ValidationError as error:
        raise BenchError(f"{path} is no bench report: {error}.") from error


def percentiles(values: Sequence[float] | np.ndarray[Any, Any]) -> Percentiles | None:
    """Percentiles with two decimals; None of nothing."""
    array = np.asarray(values, np.float64)
    if len(array) == 0:
        return None
    p50, p90, p95, p99 = np.percentile(array, (50, 90, 95, 99))
    p50, p90, p95, p99, top = (round(float(n), 2) for n in (p50, p90, p95, p99, array.max()))
    return Percentiles(p50, p90, p95, p99, top, len(array))


def series(
    unit: str, t_s: Sequence[float] | np.ndarray[Any, Any], values: Any, decimals: int = 2
) -> Series:
    """A series, thinned evenly if it is longer than a report can hold."""
    step = max(1, -(-len(t_s) // _POINTS))
    times = [round(float(t), 3) for t in t_s[::step]]
    return Series(unit, times, [round(float(v), decimals) for v in values[::step]])


def slope_per_hour(t_s: Sequence[float], values: Sequence[float]) -> float | None:
    """Least-squares slope per hour of what follows the first quarter (warm-up)."""
    if len(t_s) < 8 or t_s[-1] - t_s[0] < MIN_SLOPE_S:
        return None
    begin = len(t_s) // 4
    slope = np.polyfit(np.asarray(t_s[begin:]), np.asarray(values[begin:]), 1)[0]
    return round(float(slope) * 3600, 2)
