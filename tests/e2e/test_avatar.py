"""The main job, as a person meets it: `visavis serve`, a browser, Start, speak.

The real server with its real networks and page, and Chromium with recorded speech for a
microphone; one test also with a film of a turning head for a camera. Only what the page
received is judged, by signals that cannot agree by chance (`avatar_probe`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.face import lip_gap
from models.runtime import load_engine
from models.runtime.base import BaseEngine
from tests.e2e import avatar_probe as probe

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.e2e

DESKTOP = {"width": 1440, "height": 900}
LIVE_MS = 20_000
SETTLE_S = 3.0
RECORD_S = 11.0
#: Where the fake microphone's file is silent, in seconds, without the fading of the smoothed
#: level and the mouth's own closing; and where it speaks.
PAUSE = (4.55, 5.35)
SPEECH = ((0.3, 3.9), (5.9, 9.2))
#: More of the machine than this in other hands, and timing says nothing about us;
MOST_FOREIGN = 0.25
#: and where that leaves fewer pictures a second than this, nothing else does either.
LEAST_FPS = 6.0


@dataclass(frozen=True)
class Conversation:
    """One conversation and what was measured around it."""

    start_s: float
    first_picture_ms: float
    recording: probe.Recording
    strip: str
    foreign: float


@pytest.fixture(scope="module")
def engine() -> BaseEngine:
    """The networks, for reading faces in the test's own process."""
    return load_engine("openvino", threads=1)


@contextmanager
def picture_at_end(page: probe.Page, folder: Path) -> Iterator[None]:
    """Save how the page looks in the end, whatever the end is; pytest keeps the folder."""
    try:
        yield
    finally:
        with suppress(sync_api.Error):
            page.screenshot(path=folder / "page.png")
        print(f"page: {folder / 'page.png'}, server's log: {folder / 'server.log'}")


def converse(
    chromium: str, folder: Path, speech: Path, portrait: int, camera: Path | None = None
) -> Conversation:
    """Serve, open the page, choose, Start, listen and watch, Stop."""
    foreign = probe.busy_share()
    with (
        probe.real_server(folder / "server.log") as server,
        sync_api.sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=chromium, args=probe.chromium_arguments(speech, camera)
        )
        page = browser.new_page(viewport=DESKTOP, base_url=server.url)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(probe.RECORDER)
        page.goto("/")
        page.locator(".portrait").nth(portrait).click()
        if camera is not None:
            page.click("#camera")
            page.wait_for_selector("#self-view:not([hidden])")
        with picture_at_end(page, folder):
            page.evaluate("() => window.avatarProbe.arm()")
            page.click("#start")
            first_picture_ms = page.evaluate("() => window.avatarProbe.first")
            page.wait_for_selector("body[data-phase=live]", timeout=LIVE_MS)
            if camera is None:
                probe.record(page, RECORD_S, settle_s=SETTLE_S)
            else:
                page.wait_for_selector("#strip-webcam:has-text('Tracking')", timeout=LIVE_MS)
                probe.record(page, probe.TURNING_S, settle_s=0.0, camera=True)
        strip = " ".join(page.inner_text(".strip").split())
        page.click("#start")
        page.wait_for_selector("body[data-phase=idle]")
        recording = probe.take(page)
        browser.close()
    assert errors == []
    foreign = max(foreign, probe.busy_share())
    print(
        f"ready {server.start_s:.1f} s, first picture {first_picture_ms:.0f} ms, "
        f"{recording.fps:.1f} fps, others used {foreign:.0%}; {strip}"
    )
    return Conversation(server.start_s, first_picture_ms, recording, strip, foreign)


@pytest.fixture(scope="module")
def conversation(
    chromium: str, speech_48k: Path, tmp_path_factory: pytest.TempPathFactory
) -> Conversation:
    """A woman's voice moves the first portrait."""
    return converse(chromium, tmp_path_factory.mktemp("avatar"), speech_48k, 0)


@pytest.fixture(scope="module")
def received(conversation: Conversation) -> probe.Recording:
    """What the page received, unless other programs starved everybody."""
    needs_air(conversation)
    return conversation.recording


@pytest.fixture(scope="module")
def heard(received: probe.Recording, speech_48k: Path) -> probe.Heard:
    """The returned voice, found in the file."""
    return probe.find_in_loop(received.voice, probe.load_wav(speech_48k))


@pytest.fixture(scope="module")
def opening(received: probe.Recording, engine: BaseEngine) -> probe.Signal:
    """See `openings`."""
    return openings(received, engine)


def openings(received: probe.Recording, engine: BaseEngine) -> probe.Signal:
    """How far the lips are apart in every received picture, as E_mot sees it."""
    readings = (engine.motion(picture) for picture in received.pictures)
    return np.array([float(lip_gap(reading.landmarks)) for reading in readings])


@pytest.fixture(scope="module")
def skew(
    received: probe.Recording, opening: probe.Signal, engine: BaseEngine
) -> tuple[float, float]:
    """See `judged_skew`."""
    return judged_skew(received, opening, engine)


def judged_skew(
    received: probe.Recording, opening: probe.Signal, engine: BaseEngine
) -> tuple[float, float]:
    """Milliseconds that lips come later than the voice they belong to, and how sure that is.

    Judged by content alone, not by anybody's timestamps: the session's own pipeline says
    how far the lips would open for the voice that *came back*, every 10 ms, and the lag at
    which the openings that were *presented* match it best is the skew, to a few
    milliseconds, since a second of speech opens the mouth in no way that another one does.
    Sound counts when it leaves the jitter buffer and pictures when they are handed to the
    compositor: sound card and screen come after that, and a headless browser has neither.
    """
    times, openings = probe.expected_opening(received.voice, engine, probe.bundled(0, engine))
    shown = received.shown_s - received.voice_s
    # The pipeline's first second knows too little of the past.
    known = (shown > times[0] + 1.0) & (shown < times[-1] - 0.3)
    return probe.best_lag(
        opening[known],
        shown[known],
        lambda at: np.interp(at, times, openings),
        range(-250, 251, 2),
    )


def needs_quiet(conversation: Conversation) -> None:
    """Skip a test of timing where other programs keep the machine busy."""
    if conversation.foreign > MOST_FOREIGN:
        pytest.skip(f"other programs use {conversation.foreign:.0%} of this machine")


def needs_air(conversation: Conversation) -> None:
    """Skip where other programs left so little that hardly anything came."""
    if conversation.recording.fps < LEAST_FPS:
        needs_quiet(conversation)


def test_first_picture_comes_soon(conversation: Conversation) -> None:
    assert conversation.start_s < 20
    assert conversation.first_picture_ms < 4000
    assert "openvino" in conversation.strip


def test_the_voice_that_returns_is_the_one_spoken(heard: probe.Heard) -> None:
    print(f"envelopes correlate by {heard.likeness:.3f}")
    assert heard.likeness > 0.9


def test_mouth_follows_the_voice(
    received: probe.Recording, heard: probe.Heard, opening: probe.Signal
) -> None:
    since = received.shown_s - received.voice_s

    # The right voice must fit far better than the same voice at wrong times.
    true = max(probe.correlation(opening, heard.level(since, s)) for s in _steps(-0.2, 0.2))
    length = len(heard.loop) / probe.ENVELOPE_HZ
    wrong = [probe.correlation(opening, heard.level(since, s)) for s in _steps(0.6, length - 0.6)]
    print(f"right time {true:.2f}, wrong times at most {max(wrong):.2f}")
    assert true > 0.45
    assert true > max(wrong) + 0.15

    # Open while there is speech, shut and still while there is none.
    speaking, silent = _inside(heard.place(since), SPEECH), _inside(heard.place(since), (PAUSE,))
    assert silent.sum() >= 3
    print(
        f"opening in speech {opening[speaking].mean():.4f} ± {opening[speaking].std():.4f}, "
        f"in silence {opening[silent].mean():.4f} ± {opening[silent].std():.4f}"
    )
    assert opening[silent].std() < 0.4 * opening[speaking].std()
    assert opening[silent].mean() < np.percentile(opening[speaking], 25)


def test_the_picture_of_the_mouth_moves_with_the_voice(
    received: probe.Recording, heard: probe.Heard
) -> None:
    """The same without any network of ours: pixels of the mouth against those of the brow."""
    since = received.shown_s - received.voice_s
    gray = np.stack([picture.astype(np.float32).mean(2) for picture in received.pictures])
    mouth, brow = gray[:, 164:204, 96:160], gray[:, 50:90, 96:160]
    rest = _inside(heard.place(since), (PAUSE,))
    speaking = _inside(heard.place(since), SPEECH)
    change = [np.abs(part - part[rest].mean(0)).mean((1, 2)) for part in (mouth, brow)]
    print(
        f"mouth {change[0][speaking].mean():.2f} / {change[0][rest].mean():.2f}, "
        f"brow {change[1][speaking].mean():.2f} / {change[1][rest].mean():.2f}"
    )
    assert change[0][speaking].mean() > 2 * change[0][rest].mean()
    assert change[0][speaking].mean() > 1.5 * change[1][speaking].mean()


def test_lips_and_voice_are_together(
    conversation: Conversation, skew: tuple[float, float], engine: BaseEngine, chromium: str,
    speech_48k: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """The first conversation may meet a cold machine (disk, browser); then a second one counts."""
    lag_ms, likeness = skew
    print(f"skew {lag_ms:.0f} ms, r = {likeness:.2f}")
    needs_quiet(conversation)
    if abs(lag_ms) > 40 or likeness <= 0.75:
        conversation = converse(chromium, tmp_path, speech_48k, 0)
        received = conversation.recording
        lag_ms, likeness = judged_skew(received, openings(received, engine), engine)
        print(f"second conversation: skew {lag_ms:.0f} ms, r = {likeness:.2f}")
        needs_quiet(conversation)
    assert likeness > 0.75
    assert abs(lag_ms) <= 40


def test_sender_reports_tell_the_truth(
    received: probe.Recording, skew: tuple[float, float]
) -> None:
    """What the browser works out from the server's clock must be what really happens."""
    reported = float(np.median(received.reported_skew_ms))
    print(f"skew by sender reports {reported:.0f} ms, by content {skew[0]:.0f} ms")
    assert abs(reported - skew[0]) <= 40


def test_pictures_come_steadily(conversation: Conversation) -> None:
    needs_quiet(conversation)
    assert conversation.recording.fps > 12


def test_head_follows_the_webcam(
    chromium: str, speech_48k: Path, tmp_path: Path, engine: BaseEngine
) -> None:
    film = tmp_path / "person.mjpeg"
    probe.film_person(film, engine, probe.bundled(0, engine))
    conversation = converse(chromium, tmp_path, speech_48k, 1, film)
    needs_air(conversation)
    made = conversation.recording
    seen = np.array([float(engine.motion(picture).code.pose[0]) for picture in made.pictures])
    assert len(made.camera) > 4 * probe.TURNING_S, "the camera hardly showed anything"
    at, turned = made.camera[:, 0], probe.yaw_of_grey(made.camera[:, 1])
    known = made.shown_s > at[0] + 1.5
    lag_ms, likeness = probe.best_lag(
        seen[known],
        made.shown_s[known],
        lambda when: np.interp(when, at, turned),
        range(0, 1500, 20),
    )
    reach = seen[known].std() / turned.std()
    print(f"yaw follows {lag_ms:.0f} ms later, r = {likeness:.2f}, reach {reach:.2f}")
    assert turned.std() > 0.1, "the film does not turn"
    assert likeness > 0.8
    assert 0.3 < reach < 1.5


def _steps(first_s: float, last_s: float) -> Iterator[float]:
    """Every 20 ms."""
    return iter(np.arange(first_s, last_s, 0.02))


def _inside(place: probe.Signal, spans: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which places in the file lie in one of the spans."""
    return np.logical_or.reduce([(place > begin) & (place < end) for begin, end in spans])
