"""How the server listens: uvicorn's settings, and what its HTTP protocol does not bound by itself.

Added here: a request's head must come within seconds (uvicorn waits for ever for a first one), and
one address may hold so many connections at a time. A connection that becomes a WebSocket leaves
these counts; sessions bound their own listeners.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from realtime.guard import Watchman
from realtime.limits import address_key
from realtime.settings import LIMITS, Settings

MAX_CONNECTIONS = 512
MAX_HEAD_BYTES = 16_384
MAX_WEBSOCKET_BYTES = 4096


class BoundedProtocol(H11Protocol):
    """See the module's docstring. One per connection; `bounded` binds the class attributes."""

    watchman: Watchman
    exempt: frozenset[str]
    connected: Counter[str]

    _key = ""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection; refuse one too many without a word."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if address and address not in self.exempt:
            self._key = address_key(address)
            self.connected[self._key] += 1
            if self.connected[self._key] > LIMITS.connections_per_address:
                self.watchman.refuse("connections", "one address holds too many connections")
                transport.abort()
                return
        self._arm()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head only so long."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._arm()
        else:
            self._disarm()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """The connection is no HTTP connection any more."""
        self._leave()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go."""
        self._leave()
        super().connection_lost(exc)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(LIMITS.header_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _leave(self) -> None:
        self._disarm()
        if self._key:
            self.connected[self._key] -= 1
            if self.connected[self._key] <= 0:
                del self.connected[self._key]
            self._key = ""

    def _too_slow(self) -> None:
        self._timer = None
        self.watchman.refuse("slow", "a request's head did not come in time")
        self.transport.abort()


def bounded(watchman: Watchman, exempt: frozenset[str]) -> type[BoundedProtocol]:
    """The protocol of one server. `exempt`: proxies, whose connections are many people's."""
    members = {"watchman": watchman, "exempt": exempt, "connected": Counter[str]()}
    return type("Bounded", (BoundedProtocol,), members)


def server_config(app: Starlette, settings: Settings, uds: str | None = None) -> uvicorn.Config:
    """uvicorn's configuration for the application of `create_app` (or of the front).

    `uds`: listen at this Unix socket instead of a given one.
    """
    protocol = bounded(app.state.watchman, frozenset(settings.trusted_proxies))
    return uvicorn.Config(
        app, loop="auto", http=protocol, ws="websockets-sansio", lifespan="on", log_config=None,
        access_log=False, server_header=False, ws_max_size=MAX_WEBSOCKET_BYTES,
        timeout_keep_alive=15, timeout_graceful_shutdown=5, limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES, proxy_headers=False,
        ssl_certfile=settings.tls_certificate, ssl_keyfile=settings.tls_key, uds=uds,
    )  # fmt: skip
