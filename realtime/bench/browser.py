"""The same conversation in a real browser, and what that browser measured of it.

Chromium opens the server's own page with the recording for a microphone. The page reports
`getStats` and `requestVideoFrameCallback` timings over the data channel once a second, as for
any visitor; the session's trace hands them out. Blocking. Needs playwright and a Chromium;
both are looked for only when asked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from models.rates import WIRE_RATE_HZ
from realtime.bench.errors import BenchError
from realtime.bench.media import Voice
from realtime.bench.schema import BrowserResult, percentiles, series
from realtime.bench.web import TraceReader
from realtime.protocol import SessionAnswer

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
LIVE_MS = 30_000
READ_EVERY_S = 10.0
#: Reports of the first seconds belong to connecting.
WARM_REPORTS = 2
#: Sums since the call began: the last report counts. Of all others 0 means unknown.
SUMS = ("freeze_ms", "frames_dropped", "packets_lost")
_START = """() => new Promise((shown) => {
  const clicked = performance.now();
  document.getElementById("video").requestVideoFrameCallback(() => shown(performance.now() - clicked));
  document.getElementById("start").click();
})"""  # noqa: E501


def browse(url: str, voice: Voice, seconds: float, portrait: str, size: int) -> BrowserResult:
    """Converse for `seconds` in Chromium. Raises BenchError."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise BenchError("--browser needs playwright: pip install playwright") from None
    with tempfile.TemporaryDirectory() as folder:
        speech = _write_wav(voice, Path(folder) / "speech.wav")
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=find_chromium(), args=_arguments(speech)
                )
                try:
                    return _converse(browser, url, seconds, portrait, size)
                finally:
                    browser.close()
        except Error as error:
            raise BenchError(f"The browser: {error.message.splitlines()[0]}") from None


def find_chromium() -> str | None:
    """VISAVIS_CHROMIUM, else one of the usual names, else None: playwright's own."""
    named = os.environ.get("VISAVIS_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


def _write_wav(voice: Voice, path: Path) -> Path:
    """The recording as Chromium's fake microphone takes it; it is played in a loop."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(WIRE_RATE_HZ)
        file.writeframes(voice.pcm.astype("<i2").tobytes())
    return path


def _arguments(speech: Path) -> list[str]:
    # A browser in a container has no user namespace for its sandbox; it opens our page only.
    return [
        "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={speech}", "--autoplay-policy=no-user-gesture-required",
    ]  # fmt: skip


def _converse(browser: Any, url: str, seconds: float, portrait: str, size: int) -> BrowserResult:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(LIVE_MS)
    page.goto(f"{url}/?portrait={portrait}")
    page.wait_for_selector("#start:not([disabled])")
    page.eval_on_selector("#size-select", "(select, size) => { select.value = size; }", str(size))
    with page.expect_response(_is_offer) as offered:
        first_picture_ms = page.evaluate(_START)
    response = offered.value
    if response.status != 201:
        raise BenchError(f"The browser's offer was answered {response.status}: {response.text()}")
    page.wait_for_selector("body[data-phase=live]")
    trace = TraceReader(url, msgspec.convert(response.json(), SessionAnswer))
    trace.begin()
    left_s = seconds
    while left_s > 0:
        step_s = min(READ_EVERY_S, left_s)
        page.wait_for_timeout(step_s * 1000)
        trace.read()
        left_s -= step_s
    page.click("#start")
    page.wait_for_selector("body[data-phase=idle]")
    if not trace.digest.receiver:
        raise BenchError("The page reported nothing: does the server trace its sessions?")
    return browser_result(f"Chromium {browser.version}", first_picture_ms, trace.digest.receiver)


def _is_offer(response: Any) -> bool:
    return response.request.method == "POST" and str(response.url).endswith("/api/sessions")


def browser_result(
    name: str, first_picture_ms: float, reported: Mapping[str, Sequence[tuple[float, float]]]
) -> BrowserResult:
    """Figures of what a page reported: (seconds, value) by name, in order of time."""
    result = BrowserResult(name, round(first_picture_ms, 1))
    begin = min(points[0][0] for points in reported.values())
    for figure, points in reported.items():
        at, values = np.array(points).T
        result.reports = max(result.reports, len(values))
        if figure in SUMS:
            result.sums[figure] = float(values[-1])
            continue
        counts = np.arange(len(values)) >= WARM_REPORTS
        if figure != "fps":
            counts &= values != 0
        found = percentiles(values[counts])
        if found is not None:
            result.figures[figure] = found
            unit = "fps" if figure == "fps" else "ms"
            result.series[figure] = series(unit, at[counts] - begin, values[counts])
    return result
