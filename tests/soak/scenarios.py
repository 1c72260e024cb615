"""Long and rough conversations with a real server and a bad network path, on a `Stand`.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from realtime.bench.impair import Impairment
from realtime.bench.path import UdpPath, use_path
from realtime.rtc import AudioBlock
from realtime.session import Session
from tests.serving import Client, Running, client, until
from tests.soak.stand import RATE, Stand

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


async def speak(made: Client, sound: NDArray[np.int16], seconds: float) -> None:
    """Say `sound` (n,) int16 at 48 kHz again and again, in real time, for `seconds`."""
    began = time.monotonic()
    made.peer.set_capture_origin(0)
    index = 0
    while time.monotonic() - began < seconds:
        at = index % len(sound)
        made.peer.send_audio(sound[at : at + 480], index)
        index += 480
        await asyncio.sleep(max(0.0, began + index / RATE - time.monotonic()))


# --- scenarios ----------------------------------------------------------------------------


async def speech(
    stand: Stand, folder: Path, seconds: float, impairment: Impairment, **more: Any
) -> Figures:
    """Speech over a bad path. Needs a `PathLoop`."""
    path = UdpPath(impairment, seed=1)

    async def converse() -> Figures:
        use_path(path)
        async with stand.serving(folder) as running, client(running, **more) as made:
            await stand.open(made)
            path.begin()
            async with measured(running, made) as (_, figures):
                await speak(made, stand.voice, seconds)
            return figures

    try:
        return await asyncio.create_task(converse())
    finally:
        path.close()


async def shaken(
    stand: Stand, folder: Path, seconds: float, shake: Callable[[], None], shakes: int
) -> Figures:
    """Speech; `shake` is called `shakes` times in the middle third."""
    async with stand.serving(folder) as running, client(running) as made:
        await stand.open(made)
        async with measured(running, made) as (_, figures):
            speaking = asyncio.create_task(speak(made, stand.voice, seconds))
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


async def vanish(made: Client) -> None:
    """Stop in the middle of a word: nothing more leaves, nobody is told."""
    for transceiver in made.peer._pc.getTransceivers():
        await transceiver.receiver.transport.transport._connection.close()


async def vanished(stand: Stand, folder: Path, count: int) -> list[float]:
    """Peers that vanish, with the settings a server has: seconds until each one's slot is free."""
    waits = []
    async with stand.serving(folder) as running:
        for _ in range(count):
            async with client(running, keep_frames=False) as made:
                await stand.open(made)
                await speak(made, stand.voice, 0.5)
                began = time.monotonic()
                await vanish(made)
                await until(lambda: running.hub.session_count == 0, 30.0)
                waits.append(time.monotonic() - began)
    return waits


def thread_count() -> int:
    """Living threads but those of the loop's own pool, which grows to its bound when two jobs
    happen to meet, and never shrinks.
    """
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


async def cycles(stand: Stand, folder: Path, count: int) -> dict[str, int]:
    """Connect and leave `count` times, every second time without a word; what stays behind.

    Memory is counted over the second half: pools and caches fill in the first, once.
    """
    quick = {"watchdog_s": 0.5, "resume_s": 0.3, "max_sessions": 2}
    async with stand.serving(folder, **quick) as running:

        async def one(abrupt: bool) -> None:
            async with client(running, keep_frames=False) as made:
                await stand.open(made)
                await speak(made, stand.voice, 0.1)
                if abrupt:
                    await vanish(made)
                else:
                    token = {"Authorization": f"Bearer {made.token}"}
                    path = f"/api/sessions/{made.session_id}"
                    assert (await running.http.delete(path, headers=token)).status_code == 204
            await until(lambda: running.hub.session_count == 0)

        for k in range(4):
            await one(bool(k % 2))
        await until(lambda: not running.hub._sessions)
        gc.collect()
        tasks, threads, rss = len(asyncio.all_tasks()), thread_count(), rss_bytes()
        for k in range(count):
            if k == count // 2:
                gc.collect()
                rss = rss_bytes()
            await one(bool(k % 2))
        await until(lambda: not running.hub._sessions)
        gc.collect()
        return {
            "tasks": len(asyncio.all_tasks()) - tasks,
            "threads": thread_count() - threads,
            "rss": rss_bytes() - rss,
            "boxes": sum(not box.closed for box in running.hub._worker._schedule.boxes),
        }


@dataclass(frozen=True)
class Kill:
    """What the end of one render thread cost a conversation. Seconds."""

    pictures_s: float
    """Until pictures came again."""
    voice_s: float
    """Of returned voice that came in that time, concealed pieces aside."""
    pause_s: float
    """Longest time between two pieces of it."""


class Hearing:
    """When pieces of the returned voice came."""

    def __init__(self, made: Client) -> None:
        self._pieces: list[tuple[float, int]] = []
        made.on_audio = self._note  # type: ignore[method-assign]

    def _note(self, block: AudioBlock) -> None:
        if not block.concealed:
            self._pieces.append((time.monotonic(), len(block.pcm)))

    def between(self, begin: float, end: float) -> tuple[float, float]:
        """Seconds of voice that came from `begin` to `end`, and the longest pause meanwhile."""
        inside = [(at, count) for at, count in self._pieces if begin <= at < end]
        moments = [begin, *(at for at, _ in inside), end]
        return sum(count for _, count in inside) / RATE, float(np.diff(moments).max())


async def killed(stand: Stand, folder: Path, kills: int) -> list[Kill]:
    """Kill the render thread in the middle of speech, again and again."""
    engines: list[Any] = []

    def factory() -> Any:
        engines.append(stand.make_engine())
        return engines[-1]

    def die(*_: object) -> Any:
        raise SystemExit

    found = []
    async with (
        replace(stand, make_engine=factory).serving(folder) as running,
        client(running) as made,
    ):
        await stand.open(made)
        hearing = Hearing(made)
        speaking = asyncio.create_task(speak(made, stand.voice, 3600))
        await until(lambda: made.frames, 10.0)
        await asyncio.sleep(1.0)
        for _ in range(kills):
            count, began = len(engines), time.monotonic()
            engines[-1].audio = engines[-1].draw = die
            await until(lambda: len(engines) > count, 30.0)  # noqa: B023
            seen = len(made.frames)
            await until(lambda: len(made.frames) > seen + 3, 30.0)  # noqa: B023
            end = time.monotonic()
            found.append(Kill(end - began, *hearing.between(began, end)))
            made.frames.clear()
            await asyncio.sleep(0.5)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
    return found
