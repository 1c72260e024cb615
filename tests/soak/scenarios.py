"""Long and rough conversations with a real server, fake networks, and a bad network path.

Every scenario takes its length, so that the same code runs for seconds in every change and for
an hour on demand. It returns figures; the tests judge them.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from realtime.bench.impair import Impairment
from realtime.bench.path import UdpPath, use_path
from realtime.session import Session
from realtime.settings import Settings
from tests.fakes import FakeEngine
from tests.serving import Client, Running, client, make_web, serving, until

RATE = 48_000
PAGE_BYTES = 4096


def rss_bytes() -> int:
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@dataclass
class Figures:
    """What one conversation was like. Times in seconds since its begin, latencies in ms."""

    added_ms: list[tuple[float, float]] = field(default_factory=list)
    skew_ms: list[tuple[float, float]] = field(default_factory=list)
    rss: list[tuple[float, int]] = field(default_factory=list)
    levels: list[tuple[float, int]] = field(default_factory=list)
    frames: int = 0

    def added(self, start_s: float, end_s: float) -> float:
        """Median of what the server added between two times."""
        return float(np.median([ms for at, ms in self.added_ms if start_s <= at < end_s]))

    def skew(self, start_s: float, end_s: float) -> float:
        """Median A/V skew between two times."""
        return float(np.median([ms for at, ms in self.skew_ms if start_s <= at < end_s]))

    def rss_slope(self, start_s: float) -> float:
        """Growth of memory from `start_s` on, bytes a second."""
        at, size = zip(*[point for point in self.rss if point[0] >= start_s], strict=True)
        return float(np.polyfit(at, size, 1)[0])


def settings(folder: Path, **more: Any) -> Settings:
    """A server with one portrait."""
    return Settings(web_dir=make_web(folder / "web", {"grey": 120}), requests_per_s=0.0, **more)


def buzz(seconds: float) -> NDArray[np.int16]:
    """A voice-like sound, on and off."""
    at = np.arange(int(seconds * RATE))
    tone = sum(np.sin(2 * np.pi * 140 * k * at / RATE) / k for k in range(1, 9))
    return np.asarray(6000 * tone * (np.sin(2 * np.pi * 1.3 * at / RATE) > -0.3), np.int16)


@asynccontextmanager
async def measured(running: Running, made: Client) -> AsyncIterator[tuple[Session, Figures]]:
    """Watch one session from inside: every frame's added latency, skew four times a second."""
    session = running.hub.session(made.session_id, made.token)
    figures, began = Figures(), time.monotonic()
    original = session.tally.on_added

    def on_added(duration_ns: int) -> None:
        figures.added_ms.append((time.monotonic() - began, duration_ns / 1e6))
        original(duration_ns)

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.25)
            now = time.monotonic() - began
            figures.rss.append((now, rss_bytes()))
            figures.levels.append((now, session.level))
            if session._link is not None:
                figures.skew_ms.append((now, session._link.skew.skew_ms))
            # The client's own memory is not what is measured here.
            made.blocks.clear()
            made.messages.clear()
            made.frames.clear()

    session.tally.on_added = on_added  # type: ignore[method-assign]
    watching = asyncio.create_task(watch())
    try:
        yield session, figures
    finally:
        figures.frames = session.tally.frames
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def speak(made: Client, seconds: float) -> None:
    """Talk in real time for `seconds`."""
    sound, began = buzz(10.0), time.monotonic()
    made.peer.set_capture_origin(0)
    index = 0
    while time.monotonic() - began < seconds:
        at = index % len(sound)
        made.peer.send_audio(sound[at : at + 480], index)
        index += 480
        await asyncio.sleep(max(0.0, began + index / RATE - time.monotonic()))


# --- scenarios ----------------------------------------------------------------------------


async def speech(folder: Path, seconds: float, impairment: Impairment, **more: Any) -> Figures:
    """Speech over a bad path. Needs a `PathLoop`."""
    path = UdpPath(impairment, seed=1)

    async def converse() -> Figures:
        use_path(path)
        async with serving(settings(folder)) as running, client(running, **more) as made:
            assert (await made.open("grey", size=256)).status_code == 201
            path.begin()
            async with measured(running, made) as (_, figures):
                await speak(made, seconds)
            return figures

    try:
        return await asyncio.create_task(converse())
    finally:
        path.close()


async def shaken(folder: Path, seconds: float, shake: Callable[[], None], shakes: int) -> Figures:
    """Speech; `shake` is called `shakes` times in the middle third."""
    async with serving(settings(folder)) as running, client(running) as made:
        assert (await made.open("grey", size=256)).status_code == 201
        async with measured(running, made) as (_, figures):
            speaking = asyncio.create_task(speak(made, seconds))
            await asyncio.sleep(seconds / 3)
            for _ in range(shakes):
                shake()
                await asyncio.sleep(seconds / 3 / shakes)
            await speaking
        return figures


@contextmanager
def wall_clock_steps() -> Iterator[Callable[[], None]]:
    """A wall clock that jumps by an hour, back and forth, whenever the function is called."""
    offset, real, real_ns = [0.0], time.time, time.time_ns

    def step() -> None:
        offset[0] = -3600.0 if offset[0] > 0 else 3600.0

    with (
        mock.patch("time.time", side_effect=lambda: real() + offset[0]),
        mock.patch("time.time_ns", side_effect=lambda: real_ns() + int(offset[0] * 1e9)),
    ):
        yield step


def stall() -> None:
    """Hold the event loop for half a second, as a long garbage collection or a bug would."""
    time.sleep(0.5)


async def cycles(folder: Path, count: int) -> dict[str, int]:
    """Connect and leave `count` times, every second time without a word; what stays behind."""
    quick = settings(folder, watchdog_s=0.5, resume_s=0.3, max_sessions=2)
    async with serving(quick) as running:

        async def one(abrupt: bool) -> None:
            async with client(running, keep_frames=False) as made:
                assert (await made.open("grey", size=256)).status_code == 201
                await speak(made, 0.1)
                if abrupt:
                    for transceiver in made.peer._pc.getTransceivers():
                        await transceiver.receiver.transport.transport._connection.close()
                else:
                    token = {"Authorization": f"Bearer {made.token}"}
                    path = f"/api/sessions/{made.session_id}"
                    assert (await running.http.delete(path, headers=token)).status_code == 204
            await until(lambda: running.hub.session_count == 0)

        for k in range(4):
            await one(bool(k % 2))
        await until(lambda: not running.hub._sessions)
        gc.collect()
        tasks, threads, rss = len(asyncio.all_tasks()), threading.active_count(), rss_bytes()
        for k in range(count):
            await one(bool(k % 2))
        await until(lambda: not running.hub._sessions)
        gc.collect()
        return {
            "tasks": len(asyncio.all_tasks()) - tasks,
            "threads": threading.active_count() - threads,
            "rss": rss_bytes() - rss,
            "boxes": sum(not box.closed for box in running.hub._worker._schedule.boxes),
        }


async def killed(folder: Path, kills: int) -> list[float]:
    """Kill the render thread in the middle of speech; seconds until pictures came again."""
    engines: list[FakeEngine] = []

    def factory() -> Any:
        engines.append(FakeEngine())
        return engines[-1]

    def die(*_: object) -> Any:
        raise SystemExit

    gaps = []
    async with (
        serving(settings(folder), engine_factory=factory) as running,
        client(running) as made,
    ):
        assert (await made.open("grey", size=256)).status_code == 201
        speaking = asyncio.create_task(speak(made, 3600))
        await until(lambda: made.frames)
        for _ in range(kills):
            seen, count, began = len(made.frames), len(engines), time.monotonic()
            engines[-1].draw = die  # type: ignore[method-assign]
            await until(lambda: len(engines) > count, 10.0)  # noqa: B023
            await until(lambda: len(made.frames) > seen + 3, 30.0)  # noqa: B023
            gaps.append(time.monotonic() - began)
            await asyncio.sleep(0.2)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
    return gaps
