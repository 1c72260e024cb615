"""A call that breaks in a real browser goes on with the same session of the real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
LIVE_MS = 30_000
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
REMEMBER_PEERS = """
const Real = RTCPeerConnection;
window.peers = [];
window.RTCPeerConnection = class extends Real {
  constructor(...all) { super(...all); window.peers.push(this); }
};
"""


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """URL of the real server with fake networks."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.e2e.fake_server"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the server did not start"
        yield url
        process.terminate()
        process.wait(15)


def test_a_broken_call_goes_on_with_the_same_session(chromium: str, server_url: str) -> None:
    asked: list[tuple[str, str]] = []
    answered: list[int] = []

    def on_request(request: Any) -> None:
        if "/api/sessions" in request.url and "candidates" not in request.url:
            asked.append((request.method, request.url.removeprefix(server_url)))

    def on_response(response: Any) -> None:
        if response.url.endswith("/resume"):
            answered.append(response.status)

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_context(base_url=server_url).new_page()
        page.add_init_script(REMEMBER_PEERS)
        page.on("request", on_request)
        page.on("response", on_response)
        page.goto("/")
        page.wait_for_selector(".portrait", state="attached")
        page.locator(".portrait").nth(0).click()
        page.click("#start")
        page.wait_for_selector("body[data-phase=live]", timeout=LIVE_MS)
        assert asked == [("POST", "/api/sessions")]
        page.evaluate("window.peers[0].close()")
        page.wait_for_selector("body[data-phase=reconnecting]", timeout=LIVE_MS)
        page.wait_for_selector("body[data-phase=live]", timeout=LIVE_MS)
        assert answered == [200]
        (method, path) = asked[1]
        assert method == "POST"
        assert path.endswith("/resume")
        assert len(asked) == 2, "no new session, and the old one was not ended"
        # The page's policy forbids the browser's own way of waiting for a condition.
        shown = "document.getElementById('video').getVideoPlaybackQuality().totalVideoFrames"
        for _ in range(100):
            if page.evaluate(shown) > 5:
                break
            page.wait_for_timeout(100)
        assert page.evaluate(shown) > 5
        page.click("#start")
        page.wait_for_selector("body[data-phase=idle]", timeout=LIVE_MS)
        assert asked[-1][0] == "DELETE"
        browser.close()
