"""A report as one HTML file: no script, nothing loaded, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

import numpy as np

from realtime.bench.figures import (
    COUNTS,
    RECEIVED,
    RECEIVED_SUMS,
    SPREADS,
    middle,
    pooled,
    stage_percentiles,
    values,
)
from realtime.bench.schema import Arm, BrowserResult, Percentiles, Report, Series
from realtime.bench.style import STYLE
from realtime.bench.svg import Bar, Curve, bars, cumulative, over_time

TILES = (
    ("added_ms", "p95"), ("beyond_ms", "p95"), ("mouth_ms", "p50"), ("report_skew_ms", "p50"),
)  # fmt: skip

PATH_UNITS = {
    "loss": "%", "delay": "ms", "jitter": "ms", "reorder": "%", "duplicate": "%", "rate": "kbit/s",
    "from_s": "s", "to_s": "s",
}  # fmt: skip


def html_report(report: Report) -> str:
    """The whole file."""
    body = "".join(_sections(report))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Visavis bench, {escape(report.created)}</title><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def _sections(report: Report) -> Iterator[str]:
    yield f'<h1>Visavis bench</h1><p class="soft">{escape(_summary(report))}</p>'
    for warning in report.warnings:
        yield f'<p class="card warning">{escape(warning)}</p>'
    if len(report.arms) > 1:
        yield f"<p>{_keys([arm.name for arm in report.arms])}</p>"
    yield f'<div class="tiles">{"".join(_tiles(report))}</div>'
    yield f'<h2>Over time and in share</h2><div class="plots">{"".join(_plots(report))}</div>'
    if any(session.phases for arm in report.arms for session in arm.sessions):
        yield f"<h2>Before and after</h2>{_phases(report)}"
    yield f"<h2>All figures</h2>{_figures(report)}"
    for arm in report.arms:
        if arm.browser is not None:
            yield f"<h2>In a browser{_of(arm, report)}</h2>{_browser(arm.browser)}"
    yield f"<h2>Traffic of the client</h2>{_traffic(report)}"
    notices = [
        f"{arm.name}: {notice}" for arm in report.arms for s in arm.sessions for notice in s.notices
    ]
    if notices:
        items = "".join(f"<li>{escape(notice)}</li>" for notice in notices)
        yield f"<h2>Notices</h2><ul>{items}</ul>"
    yield f"<h2>Where and how</h2>{_facts(report)}"


def _summary(report: Report) -> str:
    settings = report.settings
    people = settings.get("sessions", 1)
    path = _path(report)
    said = f"{settings.get('seconds', 0):g} s of {settings.get('audio', 'speech')}"
    who = "one session" if people == 1 else f"{people} sessions at once"
    return f"{said}, {who}, path: {path or 'as it is'} · {report.created}"


def _path(report: Report) -> str:
    impairment = report.settings.get("impairment") or {}
    return ", ".join(
        f"{name.removesuffix('_s')} {value:g} {PATH_UNITS.get(name, '')}".strip()
        for name, value in impairment.items()
    )


def _tiles(report: Report) -> Iterator[str]:
    titles = {figure.field: figure for figure in SPREADS}
    for field, name in TILES:
        found = [pooled(arm, field) for arm in report.arms]
        if field == "beyond_ms" and not any(found):
            continue
        texts = ["none" if f is None else f"{getattr(f, name):.1f} ms" for f in found]
        yield _tile(texts, f"{titles[field].title}, {name}")
    firsts = [middle(arm, "first_frame_ms") for arm in report.arms]
    yield _tile([f"{ms:.0f} ms" for ms in firsts if ms is not None], "Offer to first picture")
    rates = [middle(arm, "fps") for arm in report.arms]
    yield _tile([f"{fps:.1f} fps" for fps in rates if fps is not None], "Pictures")


def _tile(texts: Sequence[str], label: str) -> str:
    numbers = "".join(f"<b>{escape(text)}</b>" for text in texts)
    return f'<div class="card tile">{numbers}<small>{escape(label)}</small></div>'


# --- plots ----------------------------------------------------------------------------


def _plots(report: Report) -> Iterator[str]:
    shades = _shades(report)
    for field, title in (
        ("picture_ms", "Mouth to picture"), ("voice_ms", "Voice and back"),
        ("skew_ms", "Picture after voice"), ("report_skew_ms", "Lip-sync by sender reports"),
    ):  # fmt: skip
        curves = _session_curves(report, field)
        yield _figure(
            title, "ms, median and range over time", over_time(curves, "ms", title, shades)
        )
    for field, title in (
        ("added_ms", "Added, mouth to picture"), ("beyond_ms", "Added beyond the path"),
        ("voice_ms", "Voice and back"), ("interval_ms", "Between pictures"),
    ):  # fmt: skip
        raw = [(k, np.array(values(arm.sessions, field))) for k, arm in enumerate(report.arms)]
        curves = [Curve(report.arms[k].name, np.zeros(0), v, k % 3) for k, v in raw]
        yield _figure(title, "% of all, by ms", cumulative(curves, "ms", f"{title}, cumulative"))
    rows = [
        Bar(_stage_name(name, arm, report), stage.p50, (stage.p95, stage.p99), k % 3)
        for name in dict.fromkeys(n for arm in report.arms for n in stage_percentiles(arm))
        for k, arm in enumerate(report.arms)
        if (stage := stage_percentiles(arm).get(name)) is not None
    ]
    yield _figure("Server, by stage", "bar p50, marks p95 and p99", bars(rows, "ms", "Stages"))
    for field, title in (("down_kbps", "To the client"), ("up_kbps", "From the client")):
        curves = _session_curves(report, field)
        drawing = over_time(curves, "kbit/s", title, shades, zero=True)
        yield _figure(title, "kbit/s at the client's socket", drawing)
    use: tuple[tuple[str, str, Callable[[Arm], Series | None]], ...] = (
        ("Server memory", "MB resident, over seconds", lambda arm: arm.server.rss_mb),
        ("Server processor", "%, 100 is one core", lambda arm: arm.server.cpu_percent),
    )
    for title, hint, of in use:
        known = [(k, found) for k, arm in enumerate(report.arms) if (found := of(arm)) is not None]
        curves = [_curve("", found, k) for k, found in known]
        unit = known[0][1].unit if known else ""
        drawing = over_time(curves, unit, title, zero=title == "Server processor")
        yield _figure(title, hint, drawing)


def _stage_name(name: str, arm: Arm, report: Report) -> str:
    return name if arm is report.arms[0] else ""


def _session_curves(report: Report, field: str) -> list[Curve]:
    """Every session's series; with one arm sessions differ in colour, else arms do."""
    single = len(report.arms) == 1
    return [
        _curve(arm.name, session.series[field], n if single else k)
        for k, arm in enumerate(report.arms)
        for n, session in enumerate(arm.sessions)
        if field in session.series
    ]


def _curve(name: str, found: Series, style: int) -> Curve:
    order = np.argsort(found.t_s, kind="stable")
    return Curve(name, np.array(found.t_s)[order], np.array(found.values)[order], style % 3)


def _shades(report: Report) -> list[tuple[float, float]]:
    impairment = report.settings.get("impairment") or {}
    if "to_s" not in impairment:
        return []
    return [(float(impairment.get("from_s", 0.0)), float(impairment["to_s"]))]


def _figure(title: str, hint: str, drawing: str) -> str:
    if not drawing:
        return ""
    caption = f"<figcaption>{escape(title)} <small>{escape(hint)}</small></figcaption>"
    return f'<figure class="card">{caption}{drawing}</figure>'


def _keys(names: Sequence[str]) -> str:
    return "".join(
        f'<span class="key"><i class="k{k % 3}"></i>{escape(name)}</span>'
        for k, name in enumerate(names)
    )


# --- tables ---------------------------------------------------------------------------


def _figures(report: Report) -> str:
    rows = []
    for figure in SPREADS:
        found = [pooled(arm, figure.field) for arm in report.arms]
        if any(found):
            rows.append((figure.title, figure.hint, [c for f in found for c in _cells(f)]))
    for plain in COUNTS:
        cells = []
        for arm in report.arms:
            value = middle(arm, plain.field)
            cells += ["" if value is None else _plain(value, plain.unit), "", ""]
        if any(cells):
            rows.append((plain.title, plain.hint, cells))
    heads = [
        f"{arm.name} {name}" if len(report.arms) > 1 else name
        for arm in report.arms
        for name in ("p50", "p95", "p99")
    ]
    return _table(heads, rows)


def _phases(report: Report) -> str:
    rows = [
        (
            f"{arm.name}: {phase.name}" if len(report.arms) > 1 else phase.name,
            f"{phase.from_s:g} to {phase.to_s:g} s",
            [*_cells(phase.picture_ms)[:2], *_cells(phase.voice_ms)[:2], _cells(phase.skew_ms)[0]],
        )
        for arm in report.arms
        for phase in arm.sessions[0].phases
    ]
    return _table(["picture p50", "p95", "voice p50", "p95", "skew p50"], rows)


def _of(arm: Arm, report: Report) -> str:
    return f": {escape(arm.name)}" if len(report.arms) > 1 else ""


def _browser(browser: BrowserResult) -> str:
    """What a browser measured of its own conversation: plots, then all figures."""
    plots = [
        _figure(
            figure.title, figure.hint,
            over_time([_curve("", found, 0)], figure.unit, figure.title),
        )
        for figure in RECEIVED[:6]
        if (found := browser.series.get(figure.field)) is not None
    ]  # fmt: skip
    rows = [
        ("Click to first picture", "microphone included",
         [f"{browser.first_picture_ms:.0f} ms", "", ""])
    ]  # fmt: skip
    for figure in RECEIVED:
        if (spread := browser.figures.get(figure.field)) is not None:
            numbers = (spread.p50, spread.p95, spread.p99)
            cells = [f"{number:.1f} {figure.unit}" for number in numbers]
            rows.append((figure.title, figure.hint, cells))
    for figure in RECEIVED_SUMS:
        cell = _plain(round(browser.sums.get(figure.field, 0.0), 1), figure.unit)
        rows.append((figure.title, figure.hint, [cell, "", ""]))
    told = f"{browser.name}, {browser.reports} reports of a second, on a path as it is"
    return (
        f'<p class="soft">{escape(told)}</p><div class="plots">{"".join(plots)}</div>'
        f'<div class="gap">{_table(["p50", "p95", "p99"], rows)}</div>'
    )


def _traffic(report: Report) -> str:
    rows = []
    for arm in report.arms:
        for n, session in enumerate(arm.sessions, 1):
            for way, count in (("up", session.up), ("down", session.down)):
                cells = [count.packets, f"{count.bytes / 1000:.0f} kB", count.lost]
                cells += [count.overflowed, count.reordered, count.duplicated]
                rows.append((f"{arm.name} {n}, {way}", "", [str(cell) for cell in cells]))
    heads = ["packets", "bytes", "lost", "overflowed", "reordered", "doubled"]
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[tuple[str, str, list[str]]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in ("", *heads))
    lines = []
    for title, hint, cells in rows:
        small = f"<small>{escape(hint)}</small>" if hint else ""
        data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{escape(title)}{small}</td>{data}</tr>")
    return (
        f'<div class="card wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _plain(value: float, unit: str) -> str:
    if unit == "ms" and value >= 10_000:
        value, unit = round(value / 1000, 1), "s"
    return f"{value:g} {unit}".strip()


def _cells(found: Percentiles | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    return [f"{number:.1f} ms" for number in (found.p50, found.p95, found.p99)]


def _facts(report: Report) -> str:
    facts = {**report.machine, **{k: str(v) for k, v in report.settings.items()}}
    facts["impairment"] = _path(report) or "none"
    for arm in report.arms:
        slope = arm.server.rss_slope_mb_per_hour
        text = "run too short" if slope is None else f"{slope:+.1f} MB per hour"
        facts[f"memory slope, {arm.name}"] = text
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return f'<div class="card"><dl>{items}</dl></div>'
