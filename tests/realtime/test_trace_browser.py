"""What a real browser measures reaches its strip, the server's metrics and the trace."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from realtime.settings import Settings
from realtime.trace import Trace
from tests.realtime.test_trace import check_format
from tests.serving import serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(90)]

CELLS = ("fps", "latency", "buffer", "skew", "engine")


def talk(chromium: str, url: str, voice: Path, enough: threading.Event) -> dict[str, str]:
    """Open the page, speak until it is enough; what its strip shows at the end."""
    arguments = [
        "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={voice}", "--autoplay-policy=no-user-gesture-required",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            page = browser.new_page()
            page.goto(url)
            page.locator(".portrait").first.click()
            page.click("#start")
            page.wait_for_selector("body[data-phase=live]", timeout=30_000)
            page.wait_for_selector("#strip-buffer:has-text('ms')", timeout=15_000)
            enough.wait(30)
            return {name: page.inner_text(f"#strip-{name}") for name in CELLS}
        finally:
            browser.close()


def receiver_values(trace: Trace) -> dict[str, list[float]]:
    """Everything that the receiver reported, by name."""
    reported: dict[str, list[float]] = {}
    for event in trace.export()["traceEvents"]:
        if event.get("cat") == "receiver":
            for name, value in event["args"].items():
                reported.setdefault(name, []).append(value)
    return reported


async def test_a_browsers_report_is_shown_and_traced(chromium: str, speech_48k: Path) -> None:
    settings = Settings(trace=True, prepare_portraits=False)
    enough = threading.Event()
    traces: dict[str, Trace] = {}
    async with serving(settings) as running:
        call = asyncio.to_thread(talk, chromium, running.url, speech_48k, enough)
        talking = asyncio.create_task(call)
        while not talking.done():
            await asyncio.sleep(0.1)
            for session in running.hub._sessions.values():
                if session.trace is not None:
                    traces[session.id] = session.trace
            if any(len(receiver_values(trace).get("fps", ())) >= 4 for trace in traces.values()):
                enough.set()
        strip = await talking
        text = running.hub.metrics.text().decode()
    (trace,) = traces.values()
    document = trace.export()
    check_format(document)
    reported = receiver_values(trace)
    assert len(reported["fps"]) >= 3
    assert max(reported["fps"]) > 0
    # A browser that shows pictures has received, buffered, decoded and presented them.
    for name in ("jitter_buffer_ms", "decode_ms", "present_ms", "voice_buffer_ms"):
        assert max(reported[name]) > 0.0, name
        assert max(reported[name]) < 5000.0, name
    assert 'visavis_receiver_seconds_count{figure="present"}' in text
    assert all(strip[name].split()[0].strip("+\N{MINUS SIGN}").isdigit() for name in CELLS[:4]), (
        strip
    )
    assert strip["engine"] == "fake"
