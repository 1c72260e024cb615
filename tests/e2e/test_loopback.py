"""Two clients against a real server over loopback, with fake networks.

The fake engine opens the mouth with loudness, so what the picture shows can be compared
with what the same session's voice says at the same capture time.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from models.mel import log_mel
from realtime.resample import Resampler48To16
from realtime.settings import Settings
from tests.fakes import FaceState, FakeEngine, read_face
from tests.serving import Client, Running, client, make_web, serving

pytestmark = pytest.mark.e2e

RATE = 48_000
FRAME = 1920


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    web = make_web(tmp_path / "web", {"light": 150, "dark": 70})
    return Settings(web_dir=web, max_sessions=2)


def syllables(seconds: float, hz: float, rate_hz: float, seed: int) -> NDArray[np.int16]:
    """Voiced bursts of irregular length: a buzz of `hz` switched about `rate_hz` times a second."""
    rng = np.random.default_rng(seed)
    at = np.arange(int(seconds * RATE))
    buzz = sum(np.sin(2 * np.pi * hz * k * at / RATE) / k for k in range(1, 12))
    gate = np.zeros(len(at))
    place = int(0.2 * RATE)
    while place < len(at):
        on, off = rng.uniform(0.5, 1.0, 2) * RATE / rate_hz
        gate[place : place + int(on)] = 1.0
        place += int(on + off)
    gate = np.convolve(gate, np.ones(480) / 480, "same")
    return np.asarray(7000 * buzz * gate, np.int16)


def line_of(made: Client) -> tuple[int, NDArray[np.int16]]:
    """First index and all samples that a client heard, as one line."""
    return made.blocks[0].index, np.concatenate([block.pcm for block in made.blocks])


def seen_by(made: Client) -> list[tuple[float, FaceState]]:
    """Capture time on the server's clock, and the face, of every received picture."""
    seen = []
    for _, frame in made.frames:
        assert frame.pts is not None
        at = made.peer.video_time_s(frame.pts)
        if at is not None:
            seen.append((at, read_face(picture(frame))))
    return seen


def picture(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


class Voice:
    """How loud the heard voice is at a capture time, as the networks would see it."""

    def __init__(self, made: Client) -> None:
        first, pcm = line_of(made)
        origin = made.peer.audio_time_s(first)
        assert origin is not None
        self._origin = origin
        self._mel = log_mel(Resampler48To16().push(pcm)).mean(axis=1)

    def at(self, times: list[float], lag_ms: int = 0) -> NDArray[np.float64]:
        """Mean of the four mel frames of the video frame that began `lag_ms` before each time."""
        starts = [round((at - self._origin) * 100 - lag_ms / 10) for at in times]
        last = len(self._mel) - 4
        return np.array([self._mel[min(max(s, 0), last) :][:4].mean() for s in starts])

    def lag_ms(self, mouth: NDArray[np.float64], times: list[float]) -> int:
        """How much later than the voice the mouth moves, by correlation in steps of 10 ms."""
        lags = range(-150, 151, 10)
        scores = [np.corrcoef(mouth, self.at(times, lag))[0, 1] for lag in lags]
        return lags[int(np.argmax(scores))]


def match(said: NDArray[np.int16], heard: NDArray[np.int16]) -> float:
    """Best normalised correlation of one second of speech with what was heard."""
    probe = said[RATE : 2 * RATE].astype(np.float64)
    size = 1 << (len(heard) + len(probe)).bit_length()
    spectrum = np.fft.rfft(heard.astype(np.float64), size) * np.conj(np.fft.rfft(probe, size))
    dots = np.fft.irfft(spectrum, size)[: len(heard) - len(probe)]
    power = np.cumsum(np.concatenate([[0.0], heard.astype(np.float64) ** 2]))
    energy = power[len(probe) :][: len(dots)] - power[: len(dots)]
    return float(np.max(dots / np.sqrt(energy * (probe @ probe) + 1e-9)))


async def converse(made: Client, portrait: str, said: NDArray[np.int16]) -> None:
    response = await made.open(portrait, size=256)
    assert response.status_code == 201, response.text
    await made.message("hello")
    await made.speak(said)
    await asyncio.sleep(0.4)


async def test_voice_and_picture_come_back_in_sync(settings: Settings) -> None:
    said = syllables(5.0, 140, 2.5, 1)
    async with serving(settings) as running, client(running) as made:
        await converse(made, "light", said)
        stats = [m for m in made.messages if m["type"] == "stats"]
    first, heard = line_of(made)
    assert first == 0
    assert match(said, heard) > 0.9

    seen = seen_by(made)
    assert len(seen) > 90
    times = [at for at, _ in seen]
    assert np.allclose(np.diff(times) / 0.040, np.round(np.diff(times) / 0.040), atol=1e-3)
    mouth = np.array([face.mouth for _, face in seen])
    voice = Voice(made)
    assert np.corrcoef(mouth, voice.at(times))[0, 1] > 0.8
    assert mouth.max() > 0.4
    assert mouth.min() < 0.1
    assert abs(voice.lag_ms(mouth, times)) <= 40

    assert stats[-1]["frames"] > 50
    assert abs(stats[-1]["av_skew_ms"]) <= 40
    assert stats[-1]["algorithmic_latency_ms"] == 80
    assert {"audio", "draw", "compose", "convert", "encode"} <= stats[-1]["stages"].keys()


async def test_two_sessions_never_see_each_other(settings: Settings) -> None:
    voices = {"light": syllables(4.0, 110, 2.0, 2), "dark": syllables(4.0, 210, 3.3, 3)}
    tints = {"light": 150, "dark": 70}
    engines: list[FakeEngine] = []

    def factory() -> FakeEngine:
        engines.append(FakeEngine())
        return engines[-1]

    async with (
        serving(settings, engine_factory=factory) as running,  # type: ignore[arg-type]
        client(running) as one,
        client(running) as two,
    ):
        made = {"light": one, "dark": two}
        await asyncio.gather(*(converse(made[name], name, voices[name]) for name in made))
        refused = await third(running)
        one.send(type="set_source", factor="pose", source="preset", name="turn_left")
        await one.message("state")
        for name, other in (("light", "dark"), ("dark", "light")):
            forbidden = await running.http.delete(
                f"/api/sessions/{made[name].session_id}",
                headers={"Authorization": f"Bearer {made[other].token}"},
            )
            assert forbidden.status_code == 403
    assert refused == 503
    assert len(engines) == 1
    for name, other in (("light", "dark"), ("dark", "light")):
        _, heard = line_of(made[name])
        assert match(voices[name], heard) > 0.9
        assert match(voices[other], heard) < 0.4
        seen = seen_by(made[name])
        assert len(seen) > 60
        assert {abs(face.tint - tints[name]) <= 6 for _, face in seen} == {True}
        mouth = np.array([face.mouth for _, face in seen])
        times = [at for at, _ in seen]
        assert np.corrcoef(mouth, Voice(made[name]).at(times))[0, 1] > 0.8
        assert np.corrcoef(mouth, Voice(made[other]).at(times))[0, 1] < 0.5
        hellos = [m for m in made[name].messages if m["type"] == "hello"]
        assert [hello["session_id"] for hello in hellos] == [made[name].session_id]
        assert hellos[0]["portrait"] == name.title()
    assert not any(message["type"] == "state" for message in two.messages)


async def third(running: Running) -> int:
    with ThreadPoolExecutor(1) as pool:
        late = Client(running.http, pool)
        response = await late.open("light")
        await late.peer.close()
    assert response.headers["retry-after"].isdigit()
    return response.status_code


async def test_ending_frees_the_place_at_once(settings: Settings) -> None:
    async with serving(settings) as running:
        for _ in range(3):
            async with client(running) as made:
                assert (await made.open("dark", size=256)).status_code == 201
                ended = await running.http.delete(
                    f"/api/sessions/{made.session_id}",
                    headers={"Authorization": f"Bearer {made.token}"},
                )
                assert ended.status_code == 204
                assert running.hub.session_count == 0
