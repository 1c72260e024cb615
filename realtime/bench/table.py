"""A report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from realtime.bench.figures import (
    COUNTS,
    RECEIVED,
    RECEIVED_SUMS,
    SPREADS,
    middle,
    pooled,
    stage_percentiles,
)
from realtime.bench.schema import Arm, BrowserResult, Percentiles, Report


def tables(report: Report) -> Iterator[Table]:
    """One table of figures with a group of columns per arm, then phases where there are any."""
    table = Table(title="Measured from the client's side", title_justify="left")
    table.add_column("ms where nothing is said", min_width=18)
    for arm in report.arms:
        for name in ("p50", "p95", "p99"):
            heading = f"{arm.name}\n{name}" if len(report.arms) > 1 else name
            table.add_column(heading, justify="right")
    for figure in COUNTS:
        cells = []
        for arm in report.arms:
            value = middle(arm, figure.field)
            cells += ["" if value is None else f"{value:g}", "", ""]
        unit = f", {figure.unit}" if figure.unit not in ("", "ms") else ""
        if any(cells):
            table.add_row(figure.title.lower() + unit, *cells)
    table.add_section()
    for figure in SPREADS:
        found = [pooled(arm, figure.field) for arm in report.arms]
        if any(found):
            table.add_row(figure.title.lower(), *_cells(found))
    table.add_section()
    stages = [stage_percentiles(arm) for arm in report.arms]
    for name in dict.fromkeys(name for arm_stages in stages for name in arm_stages):
        table.add_row(f"  {name}", *_cells([arm_stages.get(name) for arm_stages in stages]))
    yield table
    for arm in report.arms:
        if any(session.phases for session in arm.sessions):
            yield phase_table(arm)
        if arm.browser is not None:
            yield browser_table(arm.name, arm.browser)


def phase_table(arm: Arm) -> Table:
    """Latencies before, during and after an impairment, first session."""
    table = Table(title=f"{arm.name}: before and after", title_justify="left")
    for column in ("", "from", "to", "picture p50", "p95", "voice p50", "p95", "skew p50"):
        table.add_column(column, justify="right" if column else "left")
    for phase in arm.sessions[0].phases:
        table.add_row(
            phase.name, f"{phase.from_s:g} s", f"{phase.to_s:g} s",
            *_pair(phase.picture_ms), *_pair(phase.voice_ms), *_pair(phase.skew_ms)[:1],
        )  # fmt: skip
    return table


def browser_table(arm: str, browser: BrowserResult) -> Table:
    """What a browser measured of its own conversation."""
    table = Table(title=f"{arm}: measured by {browser.name}", title_justify="left")
    for column in ("ms where nothing is said", "p50", "p95", "p99"):
        table.add_column(column, justify="right" if column.startswith("p") else "left")
    table.add_row("start to first picture shown", f"{browser.first_picture_ms:.0f}", "", "")
    for figure in RECEIVED:
        if figure.field in browser.figures:
            unit = f", {figure.unit}" if figure.unit != "ms" else ""
            cells = _cells([browser.figures[figure.field]])
            table.add_row(f"{figure.title.lower()}{unit}", *cells)
    for figure in RECEIVED_SUMS:
        table.add_row(figure.title.lower(), f"{browser.sums.get(figure.field, 0):.0f}", "", "")
    return table


def footer(report: Report) -> Iterator[str]:
    """Memory, processor time, traffic, machine: a line each."""
    for arm in report.arms:
        use = arm.server
        if use.rss_mb is not None and use.cpu_percent is not None:
            rss, cpu = use.rss_mb.values, sorted(use.cpu_percent.values)
            slope = use.rss_slope_mb_per_hour
            grows = "too short for a slope" if slope is None else f"{slope:+.1f} MB per hour"
            yield (
                f"{arm.name}: memory {rss[0]:.0f} MB at the start, {rss[-1]:.0f} MB at the end "
                f"({grows}); processor {cpu[len(cpu) // 2]:.0f} % of a core"
            )
        for number, session in enumerate(arm.sessions, 1):
            up, down = session.up, session.down
            yield (
                f"{arm.name} session {number}: up {up.packets} packets, {up.bytes} bytes, "
                f"{up.lost + up.overflowed} lost; down {down.packets} packets, {down.bytes} bytes, "
                f"{down.lost + down.overflowed} lost"
            )
            yield from (f"{arm.name} session {number}: {notice}" for notice in session.notices)
    yield from report.warnings
    yield ", ".join(f"{key} {value}" for key, value in report.machine.items())


def _cells(found: list[Percentiles | None]) -> list[str]:
    cells: list[str] = []
    for spread in found:
        numbers = () if spread is None else (spread.p50, spread.p95, spread.p99)
        cells += [f"{number:.1f}" for number in numbers] or ["", "", ""]
    return cells


def _pair(spread: Percentiles | None) -> tuple[str, str]:
    return ("", "") if spread is None else (f"{spread.p50:.1f} ms", f"{spread.p95:.1f} ms")
