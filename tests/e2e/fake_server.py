"""The real server with the real page and fake networks, in a process of its own; prints its URL."""

from __future__ import annotations

import socket

import uvicorn

from realtime.listening import server_config
from realtime.server import create_app
from realtime.settings import Settings
from tests.fakes import FakeEngine
from tests.serving import FAKE_PARTS


def main() -> None:
    """Serve until terminated."""
    settings = Settings(prepare_portraits=False)
    app = create_app(settings, engine_factory=FakeEngine, parts=FAKE_PARTS)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://localhost:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(server_config(app, settings)).run(sockets=[listener])


if __name__ == "__main__":
    main()
