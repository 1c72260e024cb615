"""Three plots as inline SVG: over time, cumulative, bars. No library, no script.

Colours and fonts are CSS classes of the report, so light and dark both read. A drawing is
440 units wide, a little more than a phone: text of 14 units stays readable there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 440, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
BUCKETS = 90
#: An axis in ms never spans less: a tenth of a millisecond must not look like a cliff.
LEAST_MS = 5.0
#: Values beyond this percentile do not stretch the axis; they are drawn at its edge.
_AXIS_PERCENTILE = 99.7
ROW = 30


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: `x` ascending for plots over time, unused for cumulative ones."""

    name: str
    x: Floats
    y: Floats
    style: int = 0
    """Which of the report's colours."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar plot: the bar ends at `value`, whiskers at `marks`."""

    name: str
    value: float
    marks: tuple[float, ...] = ()
    style: int = 0


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        """Drawing coordinate of a value, held inside the axis."""
        share = (value - self.low) / (self.high - self.low)
        return self.begin + min(1.0, max(0.0, share)) * (self.end - self.begin)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that span [low, high]."""
    span = max(high - low, 1e-9)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]


def over_time(
    curves: Sequence[Curve],
    unit: str,
    label: str,
    shades: Sequence[tuple[float, float]] = (),
    *,
    zero: bool = False,
) -> str:
    """Median line and min-max band of each curve over seconds; `shades` mark stretches.

    With `zero` the axis begins there.
    """
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return ""
    x = _Axis(0.0, max(float(c.x[-1]) for c in curves) or 1.0, LEFT, WIDTH - RIGHT)
    shown = [buckets(c.x, c.y) for c in curves]
    y = _value_axis([band for _, _, low, high in shown for band in (low, high)], unit, zero)
    parts = [_shade(x, begin, end) for begin, end in shades]
    parts += _frame(x, y, "s")
    for curve, (at, mid, low, high) in zip(curves, shown, strict=True):
        top = [(x.at(a), y.at(v)) for a, v in zip(at, high, strict=True)]
        bottom = [(x.at(a), y.at(v)) for a, v in zip(at, low, strict=True)]
        parts.append(f'<polygon class="b{curve.style}" points="{_points([*top, *bottom[::-1]])}"/>')
        line = [(x.at(a), y.at(v)) for a, v in zip(at, mid, strict=True)]
        parts.append(f'<polyline class="l{curve.style}" points="{_points(line)}"/>')
    return _svg(parts, HEIGHT, label)


def cumulative(curves: Sequence[Curve], unit: str, label: str) -> str:
    """Share of values up to each value, with the 95 % line."""
    curves = [curve for curve in curves if len(curve.y)]
    if not curves:
        return ""
    low, high = _range([c.y for c in curves])
    places = ticks(low, high)
    x = _Axis(places[0], places[-1], LEFT, WIDTH - RIGHT)
    y = _Axis(0.0, 100.0, HEIGHT - BOTTOM, TOP)
    parts = _frame(x, y, unit, x_ticks=places)
    edge = y.at(95)
    parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{edge}" y2="{edge}"/>')
    parts.append(f'<text class="tick" x="{LEFT + 4}" y="{edge + 13}">95 %</text>')
    for curve in curves:
        shares = np.linspace(0, 100, 201)
        line = [
            (x.at(float(v)), y.at(float(p)))
            for v, p in zip(np.percentile(curve.y, shares), shares, strict=True)
        ]
        parts.append(f'<polyline class="l{curve.style}" points="{_points(line)}"/>')
    return _svg(parts, HEIGHT, label)


def bars(rows: Sequence[Bar], unit: str, label: str) -> str:
    """Horizontal bars with whiskers, one below the other."""
    if not rows:
        return ""
    height = TOP + len(rows) * ROW + BOTTOM
    left = 104
    high = max(max((row.value, *row.marks)) for row in rows)
    places = ticks(0.0, high or 1.0)
    x = _Axis(0.0, places[-1], left, WIDTH - RIGHT - 8)
    parts = []
    for place in places:
        parts.append(_line("grid", x.at(place), TOP, x.at(place), height - BOTTOM))
        parts.append(_text("tick mid", x.at(place), height - BOTTOM + 17, _number(place)))
    parts.append(_text("tick end", WIDTH - RIGHT, height - 4, unit))
    for k, row in enumerate(rows):
        top = TOP + k * ROW + 6
        middle = top + (ROW - 12) / 2
        parts.append(_text("name end", left - 8, middle + 4, row.name))
        end = x.at(row.value)
        parts.append(
            f'<rect class="f{row.style}" x="{left}" y="{top}" width="{max(1.0, end - left):.1f}" '
            f'height="{ROW - 12}" rx="2"/>'
        )
        if row.marks:
            parts.append(_line(f"l{row.style}", end, middle, x.at(row.marks[-1]), middle))
        for mark in row.marks:
            parts.append(_line(f"l{row.style}", x.at(mark), top + 3, x.at(mark), top + ROW - 15))
    return _svg(parts, height, label)


def buckets(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Middle, median, minimum and maximum of equal stretches of x; empty ones are left out."""
    if len(x) <= BUCKETS:
        return x, y, y, y
    edges = np.linspace(float(x[0]), float(x[-1]), BUCKETS + 1)
    cuts = np.searchsorted(x, edges[1:-1])
    rows = [
        (float(a.mean()), float(np.median(v)), float(v.min()), float(v.max()))
        for a, v in zip(np.split(x, cuts), np.split(y, cuts), strict=True)
        if len(a)
    ]
    at, mid, low, high = (np.array(column) for column in zip(*rows, strict=True))
    return at, mid, low, high


def _range(values: Sequence[Floats]) -> tuple[float, float]:
    flat = np.concatenate(list(values))
    low, high = float(flat.min()), float(np.percentile(flat, _AXIS_PERCENTILE))
    if low > 0 and low < 0.6 * high:
        low = 0.0
    return (low, high) if high > low else (low, low + 1.0)


def _value_axis(values: Sequence[Floats], unit: str, zero: bool) -> _Axis:
    low, high = _range(values)
    if zero:
        low = min(low, 0.0)
    if unit == "ms" and high - low < LEAST_MS:
        low, high = (low + high - LEAST_MS) / 2, (low + high + LEAST_MS) / 2
    places = ticks(low, high, count=4)
    return _Axis(places[0], places[-1], HEIGHT - BOTTOM, TOP)


def _frame(x: _Axis, y: _Axis, x_unit: str, x_ticks: Sequence[float] | None = None) -> list[str]:
    parts = []
    for place in ticks(y.low, y.high, 4):
        if y.low <= place <= y.high:
            parts.append(_line("grid", LEFT, y.at(place), WIDTH - RIGHT, y.at(place)))
            parts.append(_text("tick end", LEFT - 6, y.at(place) + 4, _number(place)))
    for place in x_ticks or ticks(x.low, x.high):
        if x.low <= place <= x.high:
            anchor = "end" if x.at(place) > WIDTH - RIGHT - 12 else "mid"
            parts.append(_text(f"tick {anchor}", x.at(place), HEIGHT - BOTTOM + 17, _number(place)))
    parts.append(_text("tick end", WIDTH - RIGHT, HEIGHT - 4, x_unit))
    return parts


def _shade(x: _Axis, begin: float, end: float) -> str:
    left, right = x.at(begin), x.at(end)
    height = HEIGHT - BOTTOM - TOP
    return (
        f'<rect class="shade" x="{left:.1f}" y="{TOP}" width="{max(1.0, right - left):.1f}" '
        f'height="{height}"/>'
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(style: str, x: float, y: float, text: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _number(value: float) -> str:
    text = f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _svg(parts: Sequence[str], height: float, label: str) -> str:
    inside = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )
