"""The bench against a real server with fake networks, from the client's socket to the report."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from realtime import admission, cli
from realtime.bench.command import parse_stretch
from realtime.bench.errors import BenchError
from realtime.bench.html import html_report
from realtime.bench.impair import Impairment
from realtime.bench.run import BenchOptions, run_bench
from realtime.bench.schema import Report, load_report
from realtime.settings import Settings
from tests.conftest import DATA
from tests.fakes import paint_face
from tests.realtime.test_trace import check_format
from tests.serving import make_web, serving

pytestmark = pytest.mark.e2e

SPEECH = DATA / "speech_b_48k.wav"
run = CliRunner().invoke


@contextmanager
def in_a_thread(settings: Settings) -> Iterator[str]:
    """Address of a server in a thread of its own, as the bench client needs it."""
    # How much fits is not what is tested here, and on a busy machine it is little.
    patch = pytest.MonkeyPatch()
    for budget in ("RENDER_BUDGET", "ENCODE_BUDGET", "LOOP_BUDGET"):
        patch.setattr(admission, budget, 1e6)
    up, done, url = threading.Event(), threading.Event(), ""

    async def main() -> None:
        nonlocal url
        async with serving(settings) as running:
            url = running.url
            up.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert up.wait(10)
    try:
        yield url
    finally:
        patch.undo()
        done.set()
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with one portrait and no page."""
    web = make_web(tmp_path_factory.mktemp("site") / "web", {"grey": 120})
    with in_a_thread(Settings(web_dir=web, max_sessions=3, stamp=True, trace=True)) as url:
        yield url


@pytest.fixture(scope="module")
def lossy(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Six seconds of real speech under 3 % loss, through the command; folder of its files."""
    folder = tmp_path_factory.mktemp("bench")
    arguments = [
        "bench", "--url", server, "--audio", str(SPEECH), "--seconds", "6", "--size", "256",
        "--loss", "3", "--delay", "20", "--seed", "5", "--json", str(folder / "a.json"),
        "--html", str(folder / "a.html"), "--trace", str(folder / "trace.json"),
    ]  # fmt: skip
    result = run(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "first picture after" in result.output
    return load_report(folder / "a.json"), folder


def test_six_seconds_under_loss_are_measured_from_end_to_end(lossy: tuple[Report, Path]) -> None:
    report, _ = lossy
    (arm,) = report.arms
    (session,) = arm.sessions
    if session.filled_ms > 600 or session.frames < 60:
        # Client and server are one process here: without processor time no voice gets through.
        assert report.warnings, "only a busy machine excuses this"
        pytest.skip(f"machine too busy: {session.filled_ms:.0f} ms of the voice never came")
    assert session.picture_by == "stamp"
    assert session.algorithmic_ms == 80
    assert session.picture_ms is not None
    assert session.voice_ms is not None
    assert session.added_ms is not None
    # 80 ms are inherent; a second would be a clock that is wrong, not a machine that is slow.
    assert 80 < session.picture_ms.p50 < 900
    assert 80 < session.voice_ms.p50 < 900
    assert session.added_ms.p50 == pytest.approx(session.picture_ms.p50 - 80, abs=0.02)
    assert session.report_skew_ms is not None
    assert abs(session.report_skew_ms.p50) < 60, "both tracks follow one clock"
    assert 0 < session.connect_ms <= session.first_frame_ms
    for count in (session.up, session.down):
        assert 0.005 < count.lost / count.packets < 0.08
        assert count.bytes > 20_000
    assert {"receive", "queue", "audio", "draw", "compose", "encode"} <= session.stages.keys()
    assert session.server_added_ms is not None
    assert session.server_added_ms.p50 < session.picture_ms.p50
    assert len(session.series["picture_ms"].values) == session.picture_ms.count
    assert arm.server.rss_mb is not None
    assert min(arm.server.rss_mb.values) > 10
    assert report.settings["impairment"] == {"loss": 3.0, "delay": 20.0}
    assert session.up_path_ms is not None
    assert session.down_path_ms is not None
    assert session.beyond_ms is not None
    assert session.up_path_ms.p50 == pytest.approx(20.0, abs=0.02)
    assert session.down_path_ms.p99 == pytest.approx(20.0, abs=0.02)
    assert session.up_path_ms.count < session.beyond_ms.count, "some of 75 at 3 % were lost"
    assert session.beyond_ms.p50 == pytest.approx(session.added_ms.p50 - 40, abs=0.05)
    assert report.machine["aiortc"].startswith("1.16")
    assert report.machine["engine"] == "fake"


def test_the_trace_of_a_run_is_one_valid_document(lossy: tuple[Report, Path]) -> None:
    _, folder = lossy
    document = json.loads((folder / "trace.json").read_text())
    check_format(document)
    names = {event["name"] for event in document["traceEvents"]}
    assert {"frame", "tick", "draw", "encode", "key frame", "receiver fps"} <= names


@pytest.mark.timeout(90)
def test_the_page_of_a_run_reads_on_a_phone(lossy: tuple[Report, Path], chromium: str) -> None:
    _, folder = lossy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 390, "height": 800})
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.goto((folder / "a.html").as_uri())
            width = page.evaluate("document.documentElement.scrollWidth")
            sizes = page.eval_on_selector_all(
                "svg text", "all => all.map(text => text.getBoundingClientRect().height)"
            )
            drawn = page.eval_on_selector_all("svg polyline", "all => all.length")
        finally:
            browser.close()
    assert width <= 390
    assert asked == [(folder / "a.html").as_uri()], "nothing is loaded"
    assert drawn >= 4
    assert min(sizes) >= 9, "text in the plots is large enough to read"


def test_two_sessions_with_a_webcam_under_a_short_burst(server: str, tmp_path: Path) -> None:
    video = tmp_path / "webcam.mp4"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for _ in range(50):
            for packet in stream.encode(av.VideoFrame.from_ndarray(paint_face(size=256), "rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    impairment = Impairment(loss=40, burst=4, from_s=1.5, to_s=3.0)
    options = BenchOptions(
        url=server, audio=SPEECH, video=video, seconds=5.0, sessions=2, size=256,
        impairment=impairment,
    )  # fmt: skip
    report = run_bench(options)
    sessions = report.arms[0].sessions
    assert len(sessions) == 2
    for session in sessions:
        assert [phase.name for phase in session.phases][:2] == ["before", "impaired"]
        assert session.phases[-1].to_s == 5.0
        assert session.up.lost > 0
        assert "motion" in session.stages
    assert sessions[0].up.lost != sessions[1].up.lost or (
        sessions[0].down.lost != sessions[1].down.lost
    ), "each session has a network of its own"
    assert "burst 4" in html_report(report)


@pytest.mark.timeout(90)
def test_a_browsers_own_figures_are_in_the_report(
    chromium: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISAVIS_CHROMIUM", chromium)
    with in_a_thread(Settings(prepare_portraits=False, trace=True)) as url:
        report = run_bench(BenchOptions(url=url, audio=SPEECH, seconds=5.0, size=256, browser=True))
    browser = report.arms[0].browser
    assert browser is not None
    assert browser.name.startswith("Chromium ")
    assert browser.first_picture_ms > 0
    assert browser.reports >= 3
    assert {"fps", "present_ms", "decode_ms", "jitter_buffer_ms"} <= browser.figures.keys()
    assert browser.figures["fps"].p50 > 1
    assert browser.figures["present_ms"].p50 > browser.figures["decode_ms"].p50
    page = html_report(report)
    assert "In a browser" in page
    assert "Received to shown" in page


def test_what_cannot_be_measured_is_said(server: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="404"):
        run_bench(BenchOptions(url=server, seconds=2, portrait="nobody"))
    with pytest.raises(BenchError, match="did not start"):
        run_bench(BenchOptions(seconds=2, serve_args=("--checkpoint", str(tmp_path / "none"))))
    with pytest.raises(BenchError, match="leave --url out"):
        run_bench(BenchOptions(url=server, against_stock=True))
    for arguments, words in (
        (["--url", "http://127.0.0.1:9"], "cannot be reached"),
        (["--impair-seconds", "17-15"], "no stretch"),
        (["--loss", "100"], "loss must be"),
    ):
        result = run(cli.app, ["bench", "--seconds", "2", *arguments])
        assert result.exit_code == 1
        assert words in " ".join(result.output.split())


def test_stretches_are_two_numbers() -> None:
    assert parse_stretch("15-17") == (15.0, 17.0)
    assert parse_stretch("0.5-2") == (0.5, 2.0)
    for wrong in ("15", "15-", "-3-5", "5-5", "a-b", ""):
        with pytest.raises(ValueError, match="no stretch"):
            parse_stretch(wrong)
