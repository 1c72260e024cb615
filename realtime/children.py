"""The server processes behind a front: started, watched, started again when they die.

Each child is a whole server (own loop, own render worker, own engine) that listens at a Unix
socket in a private folder; media goes straight to its UDP ports. A pipe ties it to its front: the
child says over it when it is ready or why it cannot be, and ends when the front is gone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from models.runtime.engine import Engine
from realtime.settings import Settings
from realtime.supervise import RestartDelay

_log = logging.getLogger("visavis.cluster")

STOP_S = 8.0
#: Makes the application of one child; a function of a module, since it is sent to the child.
MakeApp = Callable[[Settings], Any]


def child_prefix(index: int) -> str:
    """What ids of child `index` begin with."""
    return f"p{index}-"


def child_of(id: str, count: int) -> int | None:
    """Index of the child that an id belongs to; None for an id of nobody. `count`: children."""
    head, dash, _ = id.removeprefix("u-").partition("-")
    if not dash or len(head) > 3 or head[:1] != "p":
        return None
    digits = head[1:]
    if not (digits.isascii() and digits.isdigit()) or (len(digits) > 1 and digits[0] == "0"):
        return None
    return int(digits) if int(digits) < count else None


def child_settings(settings: Settings, index: int) -> Settings:
    """A child's share: of the places, of the UDP ports, of the processor.

    The front checks rates and terminates TLS.
    """
    count = settings.processes
    places = settings.max_sessions // count + (index < settings.max_sessions % count)
    ports = settings.udp_ports
    if ports is not None:
        first, last = ports
        width = (last - first + 1) // count
        ports = (first + index * width, first + (index + 1) * width - 1)
    return dataclasses.replace(
        settings,
        max_sessions=max(1, places),
        udp_ports=ports,
        threads=settings.threads or max(1, (os.cpu_count() or 1) // count),
        session_prefix=child_prefix(index),
        processes=1,
        requests_per_s=0.0,
        tls_certificate=None,
        tls_key=None,
    )


class Child:
    """One child process and what is known of it. The front's loop."""

    def __init__(self, index: int, settings: Settings, folder: Path, make_app: MakeApp) -> None:
        self.index = index
        self.path = folder / f"{index}.sock"
        self.ready = False
        self.failure = ""
        """Why its engine could not be loaded at first."""
        self.sessions = 0
        """As known now: asked for every second, counted on in between."""
        self.restarts = 0
        self._settings = child_settings(settings, index)
        self._make_app = make_app
        self._delay = RestartDelay()
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    async def run(self) -> None:
        """Keep the process alive until cancelled; then end it."""
        try:
            while True:
                self._start()
                code = await self._until_dead()
                was_ready, self.ready = self.ready, False
                self.sessions = 0
                if self.failure and not was_ready and not self.restarts:
                    return
                delay_s = self._delay.next_ns(time.monotonic_ns()) / 1e9
                self.restarts += 1
                _log.error("server process %d ended with %s, it is started again", self.index, code)
                await asyncio.sleep(delay_s)
        finally:
            await asyncio.shield(asyncio.to_thread(self._stop))

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.path.unlink(missing_ok=True)
        self._process = context.Process(
            target=run_child, args=(self._settings, self.path, self._make_app, theirs),
            name=f"visavis-{self.index}", daemon=True,
        )  # fmt: skip
        self._process.start()
        theirs.close()

    async def _until_dead(self) -> int | None:
        """Read what the child says until its end of the pipe is closed; returns the exit code."""
        assert self._process is not None
        assert self._pipe is not None
        loop, pipe = asyncio.get_running_loop(), self._pipe
        ended = asyncio.Event()

        def readable() -> None:
            try:
                kind, text = pipe.recv()
            except (EOFError, OSError):
                loop.remove_reader(pipe.fileno())
                ended.set()
                return
            self.ready, self.failure = kind == "ready", "" if kind == "ready" else text

        loop.add_reader(pipe.fileno(), readable)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pipe.fileno())
        await asyncio.to_thread(self._process.join, STOP_S)
        pipe.close()
        return self._process.exitcode

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()


def run_child(settings: Settings, path: Path, make_app: MakeApp, pipe: Connection) -> None:
    """The child's main function: serve at the Unix socket until told to stop."""
    from realtime.listening import server_config
    from realtime.serve import AnnouncingServer

    # Ctrl-C goes to the whole group; the front decides when its children end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_front, args=(pipe,), daemon=True).start()
    app = make_app(settings)
    config = server_config(app, settings, uds=str(path))
    server = AnnouncingServer(config, app, lambda: pipe.send(("ready", "")))
    server.run()
    if server.failure is not None:
        pipe.send(("failed", str(server.failure)))


def _end_with_front(pipe: Connection) -> None:
    """The front says nothing; its end of the pipe closes with it."""
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


def serve_app(settings: Settings) -> Any:
    """The application of a child, with the engine that the settings name."""
    from models.runtime import load_engine
    from realtime.server import create_app

    def load() -> Engine:
        return load_engine(
            settings.engine, settings.checkpoint, settings.inference_threads, settings.precision
        )

    return create_app(settings, engine_factory=load)
