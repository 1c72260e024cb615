"""Results by date and checkpoint in `trainer/results/`, so that a regression shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

FOLDER = Path(__file__).resolve().parent.parent / "results"
INDEX = "index.json"
#: Figures of the index, and whether more is better.
FIGURES: dict[str, bool] = {
    "speech.mouth_gap.r": True,
    "driven.yaw.r": True,
    "driven.pitch.r": True,
    "driven.roll.r": True,
    "driven.blink.r": True,
    "driven.gaze_x.r": True,
    "driven.smile.r": True,
    "driven.identity.independent": False,
    "driven.sharpness.face": True,
    "driven.sharpness.mouth": True,
    "self.picture.psnr_db": True,
    "self.picture.perceptual": False,
    "voice.mouth_gap.r": True,
    "swap.kid": False,
    "leakage.explained.max": False,
    "leakage.raw.max": False,
}
#: A change by more than this share of the older figure is pointed out.
NOTABLE = 0.03
#: As many evaluations fit beside each other on 80 columns.
SHOWN = 3


def record(result: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Keep a result as `YYYY-MM-DD-<checkpoint>.json` and enter it into the index.

    A second run of the same day, checkpoint and suite replaces the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in result.items() if k != "drawn"}
    name = f"{result['when'][:10]}-{result['checkpoint']['digest']}"
    if result["protocol"]["suite"] != "full":
        name += "-" + result["protocol"]["suite"]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rounded(kept), indent=1) + "\n")
    entries = [e for e in read_index(folder) if e["file"] != path.name]
    medians = {k: result["summary"].get(k, {}).get("median") for k in FIGURES}
    entries.append({
        "file": path.name, "when": result["when"], "checkpoint": result["checkpoint"]["digest"],
        "commit": result["commit"], "suite": result["protocol"]["suite"],
        "suite_version": result["protocol"].get("suite_version", 1),
        "seed": result["protocol"]["seed"], "independent": result["protocol"]["independent"],
        "figures": rounded(medians),
    })  # fmt: skip
    entries.sort(key=lambda e: e["when"])
    (folder / INDEX).write_text(json.dumps(entries, indent=1) + "\n")
    return path


def rounded(value: Any) -> Any:
    """Floats to four digits and NaN to null, which JSON has no word for."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return None if value != value or abs(value) == float("inf") else round(value, 4)
    return value


def read_index(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All entries, oldest first."""
    path = folder / INDEX
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return entries


def regressions(older: dict[str, Any], newer: dict[str, Any]) -> list[str]:
    """Figures that became notably worse between two entries of the same suite and measure."""
    if not _comparable(older, newer):
        return []
    out = []
    for name, more_is_better in FIGURES.items():
        a, b = older["figures"].get(name), newer["figures"].get(name)
        if a is None or b is None:
            continue
        worse = (a - b) if more_is_better else (b - a)
        if worse > NOTABLE * max(abs(a), 1e-6):
            out.append(name)
    return out


def _comparable(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Same choice of clips, same measure; entries before the second suite name no version."""
    if a.get("suite_version", 1) != b.get("suite_version", 1):
        return False
    return all(a[k] == b[k] for k in ("suite", "independent", "seed"))


def previous(entries: list[dict[str, Any]], entry: dict[str, Any]) -> dict[str, Any] | None:
    """The newest older entry that can be compared with `entry`."""
    older = [e for e in entries if e["when"] < entry["when"] and _comparable(e, entry)]
    return older[-1] if older else None


def table(folder: Path = FOLDER) -> Table:
    """The history for a person; worse figures are marked."""
    entries = read_index(folder)
    out = Table(title=f"The last evaluations of {len(entries)}, oldest first", title_justify="left")
    out.add_column("figure (median)", no_wrap=True)
    for entry in entries[-SHOWN:]:
        note = entry["suite"] + ("" if entry["independent"] else ", own measure")
        out.add_column(f"{entry['when'][:10]}\n{entry['checkpoint']}\n{note}", justify="right")
    worse = []
    for entry in entries:
        before = previous(entries, entry)
        worse.append(set(regressions(before, entry)) if before else set())
    for name in FIGURES:
        cells = []
        for entry, bad in list(zip(entries, worse, strict=True))[-SHOWN:]:
            value = entry["figures"].get(name)
            text = "-" if value is None else f"{value:.3f}"
            cells.append(f"[red]{text} worse[/red]" if name in bad else text)
        out.add_row(name, *cells)
    return out
