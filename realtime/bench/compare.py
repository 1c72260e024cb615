"""Two reports, or two arms of one, side by side, with a verdict that knows noise.

Frames of one run are not independent: a busy second spoils all of its frames. So a run is
cut into blocks of about two seconds, the percentile is taken in each, and the spread of
the blocks says how far the run's own figure could have come out differently (batch means;
Law, "Simulation Modeling and Analysis", on output analysis of a single run). A difference
counts when it is more than three standard errors and more than five percent; otherwise
the verdict is that none stands out, which is not the same as that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from realtime.bench.figures import COUNTS, SPREADS, Figure, middle, stage_percentiles, values
from realtime.bench.schema import Arm, Report

Verdict = Literal["better", "worse", "no difference that stands out", "cannot be told"]

BLOCKS = 12
MIN_BLOCKS = 4
MIN_PER_BLOCK = 5
ERRORS = 3.0
SHARE = 0.05
#: Below this, in ms, nobody would see or hear it.
SMALLEST_MS = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One compared figure. `ratio` is B / A, None where A is zero or the sign may differ."""

    title: str
    unit: str
    a: float | None
    b: float | None
    ratio: float | None
    error_ms: float | None
    """Standard error of the difference; None where it cannot be known."""
    verdict: Verdict


def compare_arms(a: Arm, b: Arm) -> list[Row]:
    """All figures that both have."""
    rows = []
    for figure in SPREADS:
        one, other = values(a.sessions, figure.field), values(b.sessions, figure.field)
        if one and other:
            rows += [_spread(figure, percent, one, other) for percent in (50, 95)]
    for figure in COUNTS:
        rows.append(_count(figure, a, b))
    mine, theirs = stage_percentiles(a), stage_percentiles(b)
    for name in (name for name in mine if name in theirs):
        one95, other95 = mine[name].p95, theirs[name].p95
        rows.append(
            Row(f"stage {name}, p95", "ms", one95, other95, _ratio(one95, other95), None,
                "cannot be told")
        )  # fmt: skip
    return rows


def differences(a: Report, b: Report) -> list[str]:
    """What makes the two runs unlike each other besides what was to be compared."""
    found = [
        f"{key}: {a.machine.get(key, 'unknown')} and {b.machine.get(key, 'unknown')}"
        for key in ("processor", "cores", "system", "engine", "python", "aiortc")
        if a.machine.get(key) != b.machine.get(key)
    ]
    found += [
        f"{key}: {a.settings.get(key)} and {b.settings.get(key)}"
        for key in ("seconds", "sessions", "size", "audio", "video", "impairment", "portrait")
        if a.settings.get(key) != b.settings.get(key)
    ]
    return found


def comparison_table(names: tuple[str, str], rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(title=f"A: {names[0]}   B: {names[1]}", title_justify="left")
    for column in ("", "A", "B", "B / A", "±", "B is"):
        table.add_column(column, justify="left" if column in ("", "B is") else "right")
    colours = {"better": "green", "worse": "red"}
    for row in rows:
        verdict = row.verdict
        shown = f"[{colours[verdict]}]{verdict}[/]" if verdict in colours else f"[dim]{verdict}[/]"
        table.add_row(
            row.title, _text(row.a, row.unit), _text(row.b, row.unit),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.error_ms is None else _text(row.error_ms, row.unit), shown,
        )  # fmt: skip
    return table


def block_percentiles(raw: Sequence[float], percent: float) -> NDArray[np.float64]:
    """The percentile in consecutive blocks of equal size; empty when there are too few values."""
    count = min(BLOCKS, len(raw) // MIN_PER_BLOCK)
    if count < MIN_BLOCKS:
        return np.zeros(0)
    blocks = np.array_split(np.asarray(raw, np.float64), count)
    return np.array([np.percentile(block, percent) for block in blocks])


def _spread(figure: Figure, percent: int, one: list[float], other: list[float]) -> Row:
    a, b = (float(np.percentile(raw, percent)) for raw in (one, other))
    blocks = [block_percentiles(raw, percent) for raw in (one, other)]
    title = f"{figure.title}, p{percent}"
    ratio = _ratio(a, b) if figure.better != "zero" else None
    if not all(len(block) for block in blocks):
        return Row(title, figure.unit, a, b, ratio, None, "cannot be told")
    error = math.sqrt(sum(float(block.var(ddof=1)) / len(block) for block in blocks))
    return Row(title, figure.unit, a, b, ratio, error, _verdict(figure, a, b, error))


def _verdict(figure: Figure, a: float, b: float, error: float) -> Verdict:
    if figure.better == "zero":
        a, b = abs(a), abs(b)
    gap = b - a
    if abs(gap) <= max(ERRORS * error, SHARE * max(abs(a), abs(b)), SMALLEST_MS):
        return "no difference that stands out"
    grew = gap > 0
    return "better" if grew == (figure.better == "higher") else "worse"


def _count(figure: Figure, a: Arm, b: Arm) -> Row:
    """Plain figures; their noise is known only from several sessions or rounds."""
    one, other = middle(a, figure.field), middle(b, figure.field)
    ratio = _ratio(one, other) if one is not None and other is not None else None
    raw = [[float(getattr(s, figure.field) or 0.0) for s in arm.sessions] for arm in (a, b)]
    if one is None or other is None or min(map(len, raw)) < MIN_BLOCKS:
        return Row(figure.title, figure.unit, one, other, ratio, None, "cannot be told")
    error = math.sqrt(sum(float(np.var(v, ddof=1)) / len(v) for v in raw))
    verdict = _verdict(figure, one, other, error)
    return Row(figure.title, figure.unit, one, other, ratio, error, verdict)


def _ratio(a: float, b: float) -> float | None:
    return b / a if a > 0 and b >= 0 else None


def _text(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.1f} {unit}".strip()
