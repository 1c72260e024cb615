"""The page in a real browser, against `page_server.py`: no weights, no network, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.e2e

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIVE_MS = 20_000
WAIT_MS = 10_000
DESKTOP = {"width": 1440, "height": 900}
NARROW = [{"width": 360, "height": 740}, {"width": 390, "height": 844}]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
Page = Any


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """URL of a page server in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "page_server.py"), "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the page server did not start"
        yield url
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A headless Chromium with a fake microphone and camera."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server_url: str) -> Iterator[Page]:
    """The page with its portraits loaded; unexpected script errors fail the test."""
    context = browser.new_context(viewport=DESKTOP, base_url=server_url)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page)
    yield page
    context.close()
    assert errors == []


def open_page(page: Page, path: str = "/") -> None:
    """Go to `path` and wait until the portraits are there."""
    page.goto(path)
    page.wait_for_selector(".portrait", state="attached")


def choose(page: Page, index: int = 0) -> None:
    """Choose a portrait with the mouse."""
    page.locator(".portrait").nth(index).click()


def picture(*, flat: bool) -> dict[str, Any]:
    """A PNG for a file input; a flat one stands for a picture without a face."""
    pixels = np.full((320, 320, 3), 128, np.uint8)
    if not flat:
        cv2.circle(pixels, (160, 160), 110, (40, 120, 230), -1)
    encoded, data = cv2.imencode(".png", pixels)
    assert encoded
    return {"name": "my_photo.png", "mimeType": "image/png", "buffer": bytes(data)}


def refuse_microphone(page: Page, error: str) -> None:
    """Make the browser refuse devices with this DOMException."""
    page.evaluate(
        """(name) => {
          navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", name));
        }""",
        error,
    )


def test_loads_without_console_errors_under_strict_csp(page: Page) -> None:
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
    response = page.goto("/")
    page.wait_for_selector(".portrait")
    page.wait_for_load_state("networkidle")
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    assert complaints == []
    assert page.locator("script:not([src]), style, [style]:not(input, .meter-bar)").count() == 0


def test_portraits_are_listed(page: Page) -> None:
    assert page.locator(".portrait").count() == 6
    assert page.get_by_role("radio", name="Ines").count() == 1
    assert page.locator(".portrait img").first.evaluate("image => image.decode().then(() => true)")


def test_start_needs_a_portrait(page: Page) -> None:
    start = page.locator("#start")
    assert start.is_disabled()
    choose(page)
    assert start.is_enabled()
    assert "Ines" in page.locator("#poster").get_attribute("alt")


def test_keyboard_order(page: Page) -> None:
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate(
                """() => {
                  const on = document.activeElement;
                  return on.id || on.name || on.className || on.localName;
                }"""
            )
        )
    assert order == [
        "skip", "howto-open", "take-photo", "upload", "portrait", "mic", "camera", "summary",
    ]  # fmt: skip


def test_portrait_by_keyboard_alone(page: Page) -> None:
    page.locator(".portrait input").first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    assert page.locator(".portrait input").nth(1).is_checked()
    assert page.locator("#start").is_enabled()


def test_every_control_has_a_name(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, video")]
          .filter((e) => !e.hidden && !(e.textContent.trim() || e.labels?.length || e.ariaLabel))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_upload_error_of_the_server_is_shown(page: Page) -> None:
    page.click("#upload")
    page.set_input_files("#enrol-file", picture(flat=True))
    page.wait_for_selector("#enrol-preview:not([hidden])")
    assert page.locator("#enrol-submit").is_disabled(), "consent is not given yet"
    page.check("#enrol-consent")
    page.click("#enrol-submit")
    error = page.locator("#enrol-error")
    error.wait_for()
    assert "No face was found" in error.inner_text()
    assert page.locator("#enrol").is_visible()
    assert page.locator(".portrait").count() == 6


def test_file_that_is_no_picture_is_refused(page: Page) -> None:
    page.click("#upload")
    text = {"name": "notes.png", "mimeType": "image/png", "buffer": b"not a picture"}
    page.set_input_files("#enrol-file", text)
    page.wait_for_selector("#enrol-error:not([hidden])")
    assert "JPEG, PNG or WebP" in page.inner_text("#enrol-error")
    assert page.locator("#enrol-submit").is_disabled()


def test_upload_becomes_the_chosen_portrait(browser: Any, server_url: str) -> None:
    context = browser.new_context(viewport=DESKTOP, base_url=server_url)
    page = context.new_page()
    info = {"id": "up-1", "name": "Me", "kind": "uploaded", "thumbnail": "/icon.svg"}
    sent: list[Any] = []

    def enrol(route: Any) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        sent.append((route.request.url, route.request.post_data_buffer[:2]))
        route.fulfill(status=201, body=json.dumps(info), content_type="application/json")

    page.route("**/api/portraits*", enrol)
    open_page(page)
    page.click("#upload")
    page.set_input_files("#enrol-file", picture(flat=False))
    page.check("#enrol-consent")
    page.click("#enrol-submit")
    page.wait_for_selector("#enrol:not([open])", state="attached")
    assert page.get_by_role("radio", name="Me").is_checked()
    assert len(sent) == 1
    assert "name=my+photo&consent=true" in sent[0][0]
    assert sent[0][1] == b"\xff\xd8", "sent as JPEG, without the file's metadata"
    context.close()


def test_photo_by_webcam(page: Page) -> None:
    page.click("#take-photo")
    page.wait_for_selector("#photo-take:enabled")
    page.click("#photo-take")
    page.wait_for_selector("#enrol-preview:not([hidden])")
    assert page.inner_text("#enrol-again") == "Retake"
    page.click("#enrol-again")
    page.wait_for_selector("#photo-take:enabled")
    page.keyboard.press("Escape")
    assert not page.locator("#enrol").is_visible()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("NotAllowedError", "Microphone access is blocked"),
        ("NotFoundError", "No microphone was found"),
        ("NotReadableError", "The microphone is busy"),
    ],
)
def test_refused_microphone_is_explained(page: Page, error: str, words: str) -> None:
    refuse_microphone(page, error)
    choose(page)
    page.click("#start")
    page.wait_for_selector("#message:not([hidden])")
    assert words in page.inner_text("#message")
    assert page.locator("#message").get_attribute("role") == "alert"
    assert page.locator("body").get_attribute("data-phase") == "idle"


def test_insecure_address_is_explained(page: Page) -> None:
    page.add_init_script("Object.defineProperty(window, 'isSecureContext', {value: false})")
    open_page(page)
    choose(page)
    page.click("#start")
    page.wait_for_selector("#message:not([hidden])")
    assert "https://" in page.inner_text("#message")


def test_full_server_tells_when_to_come_back(page: Page) -> None:
    problem = {
        "type": "/problems/full",
        "title": "The server is full",
        "status": 503,
        "detail": "All 4 places are taken.",
    }
    page.route(
        "**/api/sessions",
        lambda route: route.fulfill(
            status=503,
            headers={"Retry-After": "7", "Content-Type": "application/problem+json"},
            body=json.dumps(problem),
        ),
    )
    choose(page)
    page.click("#start")
    page.wait_for_selector("#message:not([hidden])")
    text = page.inner_text("#message")
    assert "The server is full" in text
    assert "Try again in" in text


def test_engine_that_cannot_run_is_told_at_once(page: Page) -> None:
    problem = {
        "type": "/problems/engine-unusable",
        "title": "The server cannot draw pictures",
        "status": 503,
        "detail": "The networks are missing.",
    }
    page.route(
        "**/api/sessions",
        lambda route: route.fulfill(
            status=503,
            headers={"Content-Type": "application/problem+json"},
            body=json.dumps(problem),
        ),
    )
    choose(page)
    page.click("#start")
    page.wait_for_selector("#message:not([hidden])")
    assert page.locator("#message").get_attribute("data-level") == "error"
    assert "The networks are missing." in page.inner_text("#message")
    assert not page.locator("#message-countdown").is_visible()
    assert page.locator("body").get_attribute("data-phase") == "idle"


@pytest.mark.parametrize("size", [*NARROW, {"width": 820, "height": 1180}], ids=str)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_horizontal_scroll(
    browser: Any, server_url: str, size: dict[str, int], scheme: str
) -> None:
    context = browser.new_context(viewport=size, color_scheme=scheme, base_url=server_url)
    page = context.new_page()
    open_page(page)
    choose(page)
    page.locator("details summary").click()
    overflow = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    box = page.locator("#start").bounding_box()
    context.close()
    assert overflow <= 0
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= size["width"]
    assert box["height"] >= 44, "large enough for a finger"


def test_conversation(page: Page) -> None:
    """Start, steer, camera on, stop: what is asked of the server and what is shown."""
    offers: list[dict[str, Any]] = []
    ended: list[str] = []

    def watch(request: Any) -> None:
        if request.method == "POST" and request.url.endswith("/api/sessions"):
            offers.append(json.loads(request.post_data))
        if request.method == "DELETE":
            ended.append(request.headers["authorization"])

    page.on("request", watch)
    choose(page, 1)
    page.click("#start")
    page.wait_for_selector("body[data-phase=live]", timeout=LIVE_MS)
    sdp = offers[0]["sdp"]
    assert offers[0]["portrait"] == "tomas"
    assert sdp.count("a=sendrecv") == 2
    assert "a=ptime:10" in sdp
    assert "m=application" in sdp
    assert page.evaluate("document.getElementById('video').muted"), "no echo unless asked for"

    page.wait_for_selector("#strip-engine:has-text('openvino')")
    assert "GPU" in page.locator("#strip-engine-reason").text_content()
    page.wait_for_selector("#strip-fps:has-text('fps')")
    page.wait_for_selector("#strip-latency:has-text('ms')")
    assert page.locator("#lip-source option").all_inner_texts()[0] == "Microphone"

    page.click(".chip:has-text('Smile')")
    page.wait_for_selector(".chip[aria-pressed=true]:has-text('Smile')")
    assert page.input_value("#exp-source") == "preset"
    assert page.locator(".chip").count() == 6, "only the expression's own presets"
    page.select_option("#eye-source", "preset")
    looks = page.locator("[aria-label='Eyes: which one'] option").all_inner_texts()
    assert looks == ["Neutral", "Look left", "Wink"]
    page.select_option("#eye-source", "idle")
    page.select_option("#pose-source", "slider")
    page.wait_for_selector("#pose-slider-yaw")
    page.click("#camera")
    page.wait_for_selector("#strip-webcam:has-text('Tracking')")
    followed = [page.input_value(f"#{factor}-source") for factor in ("lip", "pose", "eye", "exp")]
    assert followed == ["mic", "slider", "webcam", "preset"], "only what idled follows the camera"
    page.click("#pause")
    page.wait_for_selector("#stage-state:has-text('Paused')")

    with page.expect_request(lambda request: request.method == "DELETE"):
        page.click("#start")
    page.wait_for_selector("body[data-phase=idle]")
    assert len(offers) == 1, "the camera came without a new offer"
    assert len(ended) == 1
    assert ended[0].startswith("Bearer ")


def test_clean_view_by_address(page: Page) -> None:
    open_page(page, "/?view=clean&portrait=amara&autostart=1")
    page.wait_for_selector("body[data-phase=live][data-view=clean]", timeout=LIVE_MS)
    page.wait_for_selector(".stage.has-picture")
    assert page.locator(".mark").is_visible(), "the picture stays marked as generated"
    for hidden in (".header", ".panel", ".transport", ".tray"):
        assert not page.locator(hidden).is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".panel").is_visible()


def test_the_mark_in_the_picture_replaces_the_pages_own(page: Page) -> None:
    offers: list[dict[str, Any]] = []
    page.on("request", lambda r: offers.append(json.loads(r.post_data))
            if r.method == "POST" and r.url.endswith("/api/sessions") else None)  # fmt: skip
    open_page(page, "/?portrait=amara&autostart=1&mark=1")
    page.wait_for_selector("body[data-phase=live]", timeout=LIVE_MS)
    assert offers[0]["marked"] is True
    page.wait_for_selector(".stage.is-marked")
    assert not page.locator(".mark").is_visible(), "it would lie over the one in the picture"
    page.click(".devices summary")
    switch = page.get_by_role("switch", name="Show “AI” in the picture")
    assert switch.is_checked()
    switch.uncheck()
    page.wait_for_selector(".stage:not(.is-marked)")
    assert page.locator(".mark").is_visible()
    switch.check()
    page.wait_for_selector(".stage.is-marked")


def test_sdp_and_link_header(page: Page) -> None:
    offer = (
        "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=rtpmap:111 opus/48000/2\r\n"
        "a=fmtp:111 minptime=20;stereo=1\r\na=maxptime:60\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\n"
    )
    call = "async (sdp) => (await import('/sdp.js')).lowLatencyAudio(sdp)"
    once = page.evaluate(call, offer)
    audio, video = once.split("m=video")
    assert "a=ptime:10\r\n" in audio
    assert "maxptime" not in audio
    assert "minptime=10" in audio
    assert "stereo=0" in audio
    assert "ptime" not in video
    assert page.evaluate(call, once) == once

    link = '<turn:a.example?transport=udp>; rel="ice-server"; username="u"; credential="p,\\"q"'
    servers = page.evaluate(
        "async (link) => (await import('/api.js')).iceServersOf(link)",
        f'<stun:b.example>; rel="ice-server", {link}, <x>; rel="next"',
    )
    assert [server["urls"] for server in servers] == [
        "stun:b.example",
        "turn:a.example?transport=udp",
    ]
    assert servers[1]["credential"] == 'p,"q'
