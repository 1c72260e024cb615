"""Run the server until it is interrupted; says in one line when it is ready."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import socket
import sys
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from models.runtime import load_engine
from models.runtime.engine import Engine
from realtime.children import MakeApp, serve_app
from realtime.cluster import Cluster, create_front
from realtime.hub import Hub
from realtime.listening import server_config
from realtime.server import create_app
from realtime.settings import Settings


class ServeError(RuntimeError):
    """The server could not run; the message is a sentence for a person."""


class AnnouncingServer(uvicorn.Server):
    """Calls `announce` when the engine is warm; stops when it cannot be."""

    def __init__(
        self, config: uvicorn.Config, app: Starlette, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.failure: Exception | None = None
        self._app = app
        self._announce = announce
        self._waiting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen first, so that /healthz answers while the engine loads."""
        await super().startup(sockets)
        if self.started:
            self._waiting = asyncio.create_task(self._wait(self._app.state.hub), name="announce")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop waiting, then stop."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _wait(self, hub: Hub | Cluster) -> None:
        assert hub.ready is not None
        try:
            await hub.ready
        except Exception as error:
            self.failure = error
            self.should_exit = True
        else:
            # What is loaded now stays: looking through it once more would stop all threads for
            # a frame or two, in the middle of a conversation.
            gc.collect()
            gc.freeze()
            self._announce()


def run_server(
    settings: Settings,
    *,
    engine_factory: Callable[[], Engine] | None = None,
    make_app: MakeApp = serve_app,
) -> None:
    """Serve until interrupted (blocks). Raises ServeError.

    Prints `Visavis is ready: URL` once, after warm-up. `engine_factory`, and `make_app` of several
    processes, are for tests.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=128)
    except OSError as error:
        raise ServeError(
            f"{settings.host}:{settings.port} cannot be used ({error.strerror}); try --port."
        ) from error
    settings = dataclasses.replace(settings, port=listener.getsockname()[1])

    def load() -> Engine:
        return load_engine(
            settings.engine, settings.checkpoint, settings.inference_threads, settings.precision
        )

    if settings.processes > 1:
        app = create_front(settings, make_app)
    else:
        app = create_app(settings, engine_factory=engine_factory or load)
    server = AnnouncingServer(server_config(app, settings), app, lambda: announce(settings))
    with listener:
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            return
    if server.failure is not None:
        raise ServeError(
            f"the engine cannot run: {server.failure} `visavis doctor` tells more."
        ) from server.failure
    if not server.started:
        raise ServeError("the server did not start; --verbose tells more.")


def announce(settings: Settings) -> None:
    """Print the one line that scripts wait for."""
    print(f"Visavis is ready: {settings.url}", flush=True)
    if not settings.loopback and settings.tls_certificate is None:
        text = "other machines need https for the microphone: see --tls-certificate"
        print(f"visavis: {text}", file=sys.stderr)
