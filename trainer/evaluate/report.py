"""The evaluation as one HTML file that needs nothing else: tables, plots, contact sheets."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.explained import square
from trainer.evaluate.score import FOLLOWED, UNITS
from trainer.evaluate.truth import FLOORS
from trainer.prepare.media import pictures

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Pixels = NDArray[np.uint8]
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}td,th{padding:.2em .7em;border-bottom:1px solid #ddd;
text-align:right}td:first-child,th:first-child{text-align:left}.yes{color:#0a7a2f}.no{color:#b3261e}
img{max-width:100%;display:block;margin:.4em 0}code{background:#f3f3f3;padding:0 .25em}
.note{color:#555;max-width:70em}details{margin:.5em 0}
"""


class Html(str):
    """Text that is HTML already and must not be escaped."""

    __slots__ = ()


def number(value: Any, digits: int = 3) -> str:
    """A figure as text; a dash where nothing was measured."""
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Rows of plain values, escaped, or of `Html`."""

    def cell(value: Any) -> str:
        if isinstance(value, Html):
            return value
        return html.escape(value if isinstance(value, str) else number(value))

    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return (
        "<table><tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head) + f"</tr>{body}</table>"
    )


def picture(image: Pixels, quality: int = 88) -> str:
    """An <img> that carries its picture (H, W, 3) RGB as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def figure(plot: Any) -> str:
    """An <img> of a matplotlib figure; closes it."""
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=90, bbox_inches="tight")
    plt.close(plot)
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def heat(matrix: Mapping[str, Mapping[str, float]], title: str, low: float, high: float) -> str:
    """A matrix {row: {column: value}} as a coloured table plot."""
    rows, columns = list(matrix), list(next(iter(matrix.values())))
    values = np.array([[matrix[r][c] for c in columns] for r in rows], float)
    plot, axes = plt.subplots(figsize=(1.4 + 0.9 * len(columns), 0.9 + 0.55 * len(rows)))
    axes.imshow(values, vmin=low, vmax=high, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for i in range(len(rows)):
        for j in range(len(columns)):
            dark = np.isfinite(values[i, j]) and values[i, j] > (low + high) / 2
            axes.text(j, i, number(float(values[i, j]), 2), ha="center", va="center",
                      color="white" if dark else "black")  # fmt: skip
    axes.set_title(title)
    return figure(plot)


def traces(ours: Mapping[str, Any], driver: Mapping[str, Any], names: Sequence[str]) -> str:
    """Driver and avatar over time, one small plot per signal."""
    columns = 3
    lines = -(-len(names) // columns)
    plot, grid = plt.subplots(lines, columns, figsize=(12, 1.9 * lines), squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        axes.plot(driver[name], color="#999", label="driver")
        axes.plot(ours[name], color="#1557b0", label="avatar")
        axes.set_title(f"{name} {UNITS.get(name, '')}".strip(), fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    grid.flat[0].legend(fontsize=7)
    plot.tight_layout()
    return figure(plot)


def sheet(videos: Sequence[Path], columns: int = 8, side: int = 150) -> Pixels:
    """The same moments of several videos under each other: (rows * side, columns * side, 3)."""
    rows = []
    for video in videos:
        frames = list(pictures(video))
        picks = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        small = [cv2.resize(frames[i], (side, side), interpolation=cv2.INTER_AREA) for i in picks]
        rows.append(np.concatenate(small, 1))
    return np.asarray(np.concatenate(rows, 0), np.uint8)


_SHOWN = {
    "speech": ("driver", "ours"),
    "voice": ("ours",),
    "driven": ("driver", "ours"),
    "codes": ("driver", "ours"),
    "self": ("driver", "ours"),
    "exact": ("driver", "other", "ours_a", "ours_b"),
    "swap": ("a", "b", "a_lip", "a_pose", "a_eye", "a_exp"),
}


def write(result: dict[str, Any], signals: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the report; `signals` are the measured arrays by video path."""
    protocol, parts = result["protocol"], []
    parts.append(f"<h1>Evaluation of {html.escape(str(result['checkpoint']['name']))} "
                 f"<code>{result['checkpoint']['digest']}</code></h1>")  # fmt: skip
    notes = [f"{k}: {v}" for k, v in protocol.items()]
    parts.append("<p class=note>" + html.escape("; ".join(notes)) + "</p>")
    if not protocol["independent"]:
        parts.append("<p class=no><b>Measured by our own E_mot: not independent. Use "
                     "--measure-python for figures that can be compared.</b></p>")  # fmt: skip
    parts.append("<h2>Targets</h2>" + table(
        [[t["title"], t["wanted"], t["median"], t["worst"], str(t["count"]), _mark(t["met"])]
         for t in result["targets"]],
        ["", "wanted", "median", "worst", "clips", ""],
    ))  # fmt: skip
    parts += _ceilings(result["summary"])
    if result["leakage"]["pairs"]:
        parts += _leakage(result["leakage"])
    parts += _sets(result["summary"])
    if result["probes"]:
        parts.append("<h2>What each code knows</h2>")
        parts.append(heat(result["probes"], "linear probe R² on unseen identities", 0, 1))
    if result["speech_in_codes"]:
        rows = [[k, v["top1"], v["chance"]] for k, v in result["speech_in_codes"].items()]
        parts.append("<p>Own sound found among 50, from one frame's code:</p>"
                     + table(rows, ["code", "top-1", "chance"]))  # fmt: skip
    parts.append("<h2>All figures</h2><details><summary>median, worst, clips</summary>" + table(
        [[k, v["median"], v["worst"], str(int(v["count"]))] for k, v in result["summary"].items()],
        ["figure", "median", "worst", "clips"],
    ) + "</details>")  # fmt: skip
    parts += [_item(d, signals) for d in result["drawn"]]
    if result["skipped"]:
        parts.append("<h2>Left out</h2>" + table(
            [[s["item"], s["why"]] for s in result["skipped"]], ["item", "why"]))  # fmt: skip
    page = f"<!doctype html><meta charset=utf-8><title>Visavis evaluation</title><style>{_STYLE}"
    path.write_text(page + "</style>" + "\n".join(parts))


def _leakage(leak: dict[str, Any]) -> list[str]:
    """Both matrices, the intervals of the second, and what the measure itself confuses."""
    out = ["<h2>Leakage</h2><p class=note>Row: the code that was swapped. Column: the factor that "
           "moved. Wanted: 1 on the diagonal, 0 beside it. First what a code carries of its driver "
           "and what is drawn along with it beyond what true faces show; then everything that "
           "moved, the measure's confusion and noise included.</p>"]  # fmt: skip
    rows = leak["explained"]
    out.append(heat(square(rows), f"taken apart, {leak['pairs']} pairs", 0, 1))
    parts = ("", " low", " high", " carried", " along")
    cells = [[f"{f} into {g}", *(row.get(g + k) for k in parts), leak["matrix"][f][g]]
             for f, row in rows.items() for g in square(rows)[f]]  # fmt: skip
    out.append(table(cells, ["", "share", "5 %", "95 %", "carried", "drawn along", "raw"]))
    out.append(heat(leak["matrix"], f"raw, {leak['pairs']} pairs", 0, 1))
    out.append(heat(leak["signals"], "raw, by signal", 0, 1))
    if leak["crosstalk_of_the_measure"]:
        out.append(f"<p class=note>The measure itself, raw: {leak['exact_pairs']} pairs of clips "
                   "that were drawn alike in all but one factor. What stands beside the diagonal "
                   "here is not the avatar's.</p>")  # fmt: skip
        out.append(heat(leak["crosstalk_of_the_measure"], "exact pairs", 0, 1))
    return out


def _ceilings(summary: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the measure sees of the drivers' own labels, beside what it sees of ours."""
    rows = []
    for name in FLOORS:
        found = [summary.get(f"driven.{name}.{k}", {}) for k in
                 ("r", "seen_r", "truth_r", "slope", "measure_r", "measure_slope")]  # fmt: skip
        if found[4]:
            rows.append([name, *(f.get("median") for f in found), str(int(found[0]["count"]))])
    if not rows:
        return []
    note = ("<p class=note>Drivers with exact labels. The measure on their own true frames says "
            "how well it sees at all.</p>")  # fmt: skip
    head = ["median", "ours: driver as measured, r", "where the measure sees it, r", "labels, r",
            "slope", "measure on true frames: labels, r", "slope", "clips"]  # fmt: skip
    return ["<h2>What the measure can see</h2>" + note + table(rows, head)]


def _sets(summary: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Sets of pictures against real frames of the same people."""
    rows = [[kind, found["median"], found["spread"], found["floor"], str(int(found["count"]))]
            for kind in ("self", "swap") if (found := summary.get(f"{kind}.kid"))]  # fmt: skip
    if not rows:
        return []
    head = ["KID on O-Net features, x 1000", "all", "spread", "real against other real", "people"]
    return ["<h2>Pictures as sets</h2>" + table(rows, head)]


def _mark(met: bool | None) -> Html:
    if met is None:
        return Html("-")
    return Html("<span class=yes>met</span>" if met else "<span class=no>missed</span>")


def _item(drawn: dict[str, Any], signals: Mapping[str, Mapping[str, Any]]) -> str:
    """Contact sheet and traces of one item."""
    videos = [Path(drawn["videos"][k]) for k in _SHOWN[drawn["kind"]] if k in drawn["videos"]]
    rows = ", ".join(k for k in _SHOWN[drawn["kind"]] if k in drawn["videos"])
    out = (f"<h3>{drawn['kind']}: {html.escape(drawn['name'])}</h3><p class=note>rows: {rows}</p>"
           + picture(sheet(videos)))  # fmt: skip
    ours, driver = (signals.get(drawn["videos"].get(k, "")) for k in ("ours", "driver"))
    if ours is not None and driver is not None:
        names = ["mouth_gap"] if drawn["kind"] == "speech" else list(FOLLOWED)
        out += "<details><summary>signals</summary>" + traces(ours, driver, names) + "</details>"
    return out
