"""Figures and files: percentiles by hand, the JSON's round trip, plots, comparison, measures."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from realtime import cli
from realtime.bench.browser import browser_result
from realtime.bench.compare import block_percentiles, compare_arms, differences
from realtime.bench.digest import TraceDigest
from realtime.bench.errors import BenchError
from realtime.bench.figures import pooled, stage_percentiles, values
from realtime.bench.html import html_report
from realtime.bench.impair import Impairment
from realtime.bench.measure import _stretches
from realtime.bench.schema import (
    SCHEMA_VERSION,
    Arm,
    Percentiles,
    Phase,
    Report,
    Series,
    ServerUse,
    SessionResult,
    load_report,
    percentiles,
    series,
    slope_per_hour,
)
from realtime.bench.site import busy_share, warnings
from realtime.bench.svg import Bar, Curve, bars, buckets, cumulative, over_time, ticks
from realtime.bench.table import tables
from realtime.bench.web import server_use

pytestmark = pytest.mark.unit


def session(seed: int, level_ms: float = 110.0, seconds: int = 30) -> SessionResult:
    """A session with made-up latencies whose noise comes in stretches, as real ones do."""
    rng = np.random.default_rng(seed)
    n = seconds * 25
    slow = np.repeat(rng.normal(0, 2.0, n // 25), 25)
    picture = level_ms + slow + rng.gamma(2.0, 3.0, n)
    t_s = np.arange(n) / 25
    skew = rng.normal(3, 2, n)
    result = SessionResult(
        connect_ms=80, first_frame_ms=200 + seed, frames=n, fps=25.0,
        interval_ms=percentiles(rng.normal(40, 3, n)), picture_ms=percentiles(picture),
        picture_by="stamp", added_ms=percentiles(picture - 80), algorithmic_ms=80,
        skew_ms=percentiles(skew), stages={"draw": Percentiles(10, 11, 12, 13, 14, n)},
    )  # fmt: skip
    result.series["picture_ms"] = series("ms", t_s, picture)
    result.series["interval_ms"] = series("ms", t_s, rng.normal(40, 3, n))
    result.series["skew_ms"] = series("ms", t_s, skew)
    return result


def report(*arms: Arm, **settings: object) -> Report:
    use = ServerUse(
        Series("MB", [0, 1, 2], [100, 101, 101]), Series("% of a core", [0.5, 1.5], [30, 31]), 0.5
    )
    for arm in arms:
        arm.server = use
    machine = {"processor": "a <fast> one", "cores": "2"}
    chosen = {"seconds": 30.0, "sessions": 1, "audio": "a.wav", "impairment": {}, **settings}
    return Report(SCHEMA_VERSION, "2026-01-02T03:04:05Z", machine, chosen, list(arms))


def arm(name: str, *sessions: SessionResult) -> Arm:
    return Arm(name, list(sessions), ServerUse())


def test_percentiles_by_hand() -> None:
    assert percentiles([]) is None
    one = percentiles([7.0])
    assert one == Percentiles(7, 7, 7, 7, 7, 1)
    # 101 values 0 .. 100: every percentile is itself.
    assert percentiles(np.arange(101)) == Percentiles(50, 90, 95, 99, 100, 101)
    # Between 10 and 20: 10 + 0.9 * 10.
    assert percentiles([10.0, 20.0]) == Percentiles(15, 19, 19.5, 19.9, 20, 2)
    assert percentiles([1.0, 2.0, 3.0, 1000.0]) == Percentiles(2.5, 700.9, 850.45, 970.09, 1000, 4)


def test_slopes_leave_the_warm_up_out() -> None:
    t_s = np.arange(0, 400.0, 10)
    rising = np.where(t_s < 100, 500 - 4 * t_s, 100 + t_s / 3600 * 36)
    assert slope_per_hour(list(t_s), list(rising)) == pytest.approx(36.0, abs=0.01)
    assert slope_per_hour(list(t_s[:6]), list(rising[:6])) is None
    assert slope_per_hour([0.1 * k for k in range(100)], [1.0] * 100) is None, "under a minute"


def test_long_series_are_thinned_evenly() -> None:
    long = series("ms", np.arange(500_000) / 25, np.arange(500_000))
    assert 100_000 < len(long.values) <= 200_000
    assert set(np.diff(long.values)) == {3.0}
    assert len(long.t_s) == len(long.values)


def test_processor_time_becomes_percent() -> None:
    use = server_use([(0.0, 100.0, 1.0), (1.0, 110.0, 1.5), (3.0, 110.0, 1.7)])
    assert use.cpu_percent is not None
    assert use.rss_mb is not None
    assert use.cpu_percent.values == [50.0, 10.0]
    assert use.cpu_percent.t_s == [0.5, 2.0]
    assert use.rss_mb.values == [100.0, 110.0, 110.0]
    assert use.rss_slope_mb_per_hour is None
    assert server_use([]) == ServerUse()


def test_spans_are_matched_by_name_and_frame() -> None:
    events = [
        {"ph": "b", "cat": "frame", "name": "frame", "id": 1, "ts": 1000},
        {"ph": "b", "cat": "frame", "name": "frame", "id": 2, "ts": 2000},
        {"ph": "e", "cat": "frame", "name": "frame", "id": 2, "ts": 9000},
        {"ph": "e", "cat": "frame", "name": "frame", "id": 1, "ts": 21000},
        {"ph": "X", "cat": "worker", "name": "draw", "ts": 5000, "dur": 2500},
        {"ph": "e", "cat": "frame", "name": "frame", "id": 9, "ts": 3000},
        {"ph": "i", "cat": "events", "name": "held", "ts": 4000},
    ]
    events.append(
        {"ph": "i", "cat": "events", "name": "tick", "ts": 1, "args": {"frame": 4, "level": 9.5}}
    )
    digest = TraceDigest()
    # A span may begin in one reading and end in the next.
    digest.add(events[:3])
    digest.add(events[3:])
    assert sorted(ms for _, ms in digest.spans["frame"]) == [7.0, 20.0]
    assert digest.spans["draw"] == [(0.005, 2.5)]
    assert set(digest.spans) == {"frame", "draw"}
    assert digest.moments == {"held": 1}
    assert digest.levels == {4: 9.5}


def test_what_a_browser_reports_becomes_figures() -> None:
    counter = {"ph": "C", "cat": "receiver", "name": "receiver"}
    digest = TraceDigest()
    for k in range(10):
        values = {"fps": 24.0 if k else 3.0, "glass_ms": 0.0 if k % 2 else 90.0 + k, "freeze_ms": k}
        digest.add([counter | {"ts": 1e6 * (5 + k), "args": {n: v}} for n, v in values.items()])
    digest.add([{"ph": "C", "cat": "counter", "name": "level", "ts": 9e6, "args": {"level": 2}}])
    result = browser_result("a browser", 312.34, digest.receiver)
    assert result.reports == 10
    assert result.first_picture_ms == 312.3
    assert result.figures["fps"].max == 24
    assert result.figures["fps"].count == 8, "connecting is left out"
    assert result.series["glass_ms"].values == [92.0, 94.0, 96.0, 98.0], "zeros are unknown"
    assert result.series["glass_ms"].t_s == [2.0, 4.0, 6.0, 8.0]
    assert result.sums == {"freeze_ms": 9.0}
    made = arm("visavis", session(1))
    made.browser = result
    page = html_report(report(made))
    assert "In a browser" in page
    assert "312 ms" in page
    shown = Console(width=120, record=True, file=io.StringIO())
    for table in tables(report(made)):
        shown.print(table)
    assert "captured to shown" in shown.export_text()


def test_only_programs_that_run_now_make_a_machine_busy(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    # user, nice, system, idle, iowait, irq, softirq, steal
    stat.write_text("cpu 100 0 100 700 50 0 0 0 0 0\ncpu0 1 1 1 1\n")
    assert busy_share(0.0, stat) is None, "no time went by"
    began = threading.Timer(0.05, stat.write_text, ["cpu 110 5 110 740 85 0 0 0 0 0\n"])
    began.start()
    share = busy_share(0.3, stat)
    began.join()
    assert share == pytest.approx(0.25)
    assert busy_share(0.0, tmp_path / "none") is None
    assert warnings({"cores": "2"}) == []
    assert warnings({"cores": "2", "busy_before": "14 %"}) == []
    (told,) = warnings({"cores": "2", "busy_before": "25 %"})
    assert "25 % of this machine's 2 cores" in told


def test_the_json_round_trips_and_says_what_it_is(tmp_path: Path) -> None:
    one = session(1)
    one.phases = [Phase("before", 1, 15, percentiles([1.0, 2.0]), None)]
    made = report(arm("visavis", one, session(2)))
    path = tmp_path / "a.json"
    path.write_bytes(made.to_json())
    assert load_report(path) == made
    plain = json.loads(path.read_text())
    assert plain["schema_version"] == SCHEMA_VERSION
    assert len(plain["arms"][0]["sessions"][0]["series"]["picture_ms"]["values"]) == 750


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"), ("[]", "schema version None"), ('{"schema_version": 1}', "version 1"),
        (f'{{"schema_version": {SCHEMA_VERSION}}}', "no bench report"),
    ],
)  # fmt: skip
def test_files_that_are_no_report_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=words):
        load_report(path)
    with pytest.raises(BenchError, match="cannot be read"):
        load_report(tmp_path / "missing.json")


def test_figures_pool_all_sessions_of_an_arm() -> None:
    both = arm("visavis", session(1, 100), session(2, 200))
    assert len(values(both.sessions, "picture_ms")) == 1500
    spread = pooled(both, "added_ms")
    assert spread is not None
    assert 20 < spread.p50 < 120 < spread.p95
    assert pooled(both, "voice_ms") is None
    assert stage_percentiles(both)["draw"].p95 == 12


# --- compare --------------------------------------------------------------------------


def verdicts(a: Arm, b: Arm) -> dict[str, str]:
    return {row.title: row.verdict for row in compare_arms(a, b)}


def test_two_runs_of_the_same_thing_do_not_differ() -> None:
    for seed in range(8):
        found = verdicts(arm("a", session(seed)), arm("b", session(seed + 100)))
        spreads = {
            title: v for title, v in found.items() if ", p" in title and "stage" not in title
        }
        assert set(spreads.values()) == {"no difference that stands out"}, (seed, spreads)


def test_a_real_difference_is_seen_and_has_a_direction() -> None:
    slow, fast = arm("a", session(1, 150)), arm("b", session(2, 110))
    assert verdicts(slow, fast)["Mouth to picture, p95"] == "better"
    assert verdicts(fast, slow)["Mouth to picture, p50"] == "worse"
    row = next(r for r in compare_arms(slow, fast) if r.title == "Mouth to picture, p50")
    assert row.ratio == pytest.approx(110 / 150, abs=0.03)
    assert row.error_ms is not None
    assert 0 < row.error_ms < 5


def test_a_skew_is_better_nearer_to_zero() -> None:
    behind, ahead = session(1), session(2)
    early = [-40.0 + k % 3 for k in range(750)]
    ahead.series["skew_ms"] = Series("ms", behind.series["skew_ms"].t_s, early)
    assert verdicts(arm("a", behind), arm("b", ahead))["Picture after voice, p50"] == "worse"
    row = next(
        r for r in compare_arms(arm("a", behind), arm("b", ahead)) if "after voice" in r.title
    )
    assert row.ratio is None, "a ratio of signed figures says nothing"


def test_too_little_cannot_be_told() -> None:
    found = verdicts(arm("a", session(1, 100, 1)), arm("b", session(2, 300, 1)))
    assert found["First picture after"] == "cannot be told"
    assert len(block_percentiles([1.0] * 19, 50)) == 0
    assert len(block_percentiles([1.0] * 20, 50)) == 4
    assert len(block_percentiles([1.0] * 2000, 50)) == 12


def test_the_compare_command_warns_when_runs_are_not_alike(tmp_path: Path) -> None:
    one, other = report(arm("visavis", session(1, 150))), report(arm("visavis", session(2)))
    other.machine["cores"] = "16"
    other.settings["size"] = 256
    assert len(differences(one, other)) == 2
    assert differences(one, one) == []
    for name, made in (("a.json", one), ("b.json", other)):
        (tmp_path / name).write_bytes(made.to_json())
    arguments = ["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "not alike: cores: 2 and 16" in text
    assert "better" in text
    arguments[-1] = str(tmp_path / "none.json")
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 1
    assert "cannot be read" in " ".join(result.output.split())


# --- plots and page -------------------------------------------------------------------


def test_ticks_are_round_and_span_the_values() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(93, 118) == [90, 95, 100, 105, 110, 115, 120]
    assert ticks(-3.2, 3.1, 4) == [-4, -2, 0, 2, 4]
    assert ticks(5, 5)[0] <= 5


def test_buckets_keep_the_extremes() -> None:
    x = np.linspace(0, 60, 3000)
    y = np.sin(x)
    y[1234] = 99.0
    at, mid, low, high = buckets(x, y)
    assert len(at) <= 90
    assert high.max() == 99.0
    assert low.min() == pytest.approx(-1.0, abs=1e-3)
    assert (low <= mid).all()
    assert (mid <= high).all()


def test_drawings_are_well_formed_and_inside_their_box() -> None:
    x = np.arange(0, 30, 0.04)
    curve = Curve("a & b", x, 100 + np.sin(x))
    drawings = (
        over_time([curve], "ms", "x < y", [(5, 7)]),
        cumulative([curve], "ms", "share"),
        bars([Bar("draw", 10, (20, 30)), Bar("", 12, (14,), 1)], "ms", "stages"),
    )
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for shape in root.iter():
            for pair in shape.attrib.get("points", "").split():
                a, b = map(float, pair.split(","))
                assert 0 <= a <= width
                assert 0 <= b <= height
    assert over_time([], "ms", "nothing") == cumulative([], "ms", "") == bars([], "ms", "") == ""


def test_the_page_stands_alone_and_escapes() -> None:
    one = session(1)
    one.notices = ["<script>alert(1)</script>"]
    one.phases = [Phase("60 s after", 77, 90, percentiles([100.0]), None)]
    page = html_report(report(arm("visavis", one), arm("stock aiortc", session(2, 190))))
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a &lt;fast&gt; one" in page
    for outside in ("http:", "https:", "src=", "@import", "url("):
        assert outside not in page
    assert page.count("<svg") >= 5
    assert "60 s after" in page
    assert "stock aiortc" in page


def test_a_long_run_is_compared_with_its_own_begin() -> None:
    assert [name for name, _, _ in _stretches(Impairment(loss=3), 3600)] == [
        "first quarter", "last quarter",
    ]  # fmt: skip
    assert _stretches(Impairment(loss=3), 3600)[1][1:] == (2700, 3600)
    assert _stretches(Impairment(), 30) == []
    passing = _stretches(Impairment(loss=20, from_s=15, to_s=17), 95)
    assert [name for name, _, _ in passing] == ["before", "impaired", "recovering", "60 s after"]
    assert passing[-1][1:] == (77, 95)


def test_a_page_tells_drift_path_and_long_times_with_units() -> None:
    one = session(1)
    one.skew_drift_ms_per_hour, one.concealed_ms = -1.77, 105_560.0
    page = html_report(report(arm("visavis", one), impairment={"loss": 3.0, "jitter": 30.0}))
    assert "loss 3 %, jitter 30 ms" in page
    assert "-1.77 ms/h" in page
    assert "105.6 s" in page
    assert "Skew drifts" not in html_report(report(arm("visavis", session(1)))), "unknown"
