"""What a child process of the cluster tests runs; imported by name in that process."""

from __future__ import annotations

from starlette.applications import Starlette

from models.runtime.engine import Engine
from realtime.server import create_app
from realtime.settings import Settings
from tests.fakes import FakeEngine
from tests.serving import FAKE_PARTS


def fake_app(settings: Settings) -> Starlette:
    """A whole server with fake networks."""
    return create_app(settings, engine_factory=FakeEngine, parts=FAKE_PARTS)  # type: ignore[arg-type]


def broken_app(settings: Settings) -> Starlette:
    """A server whose engine cannot be loaded."""

    def load() -> Engine:
        raise RuntimeError("no weights here")

    return create_app(settings, engine_factory=load, parts=FAKE_PARTS)
