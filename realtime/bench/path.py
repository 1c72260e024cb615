"""The client's own UDP path: an event loop whose datagram sockets go through two `Link`s.

Everything that opens a UDP socket in a task where `use_path` was called gets a transport
and a protocol that count, lose, delay. So the whole WebRTC stack, ICE and DTLS included,
meets the bad network without knowing, and no library's internals are touched: the public
method `create_datagram_endpoint` is the only thing that is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast

from realtime.bench.impair import Impairment, Link
from realtime.bench.transit import TransitLog

Address = tuple[Any, ...]
Datagram = tuple[bytes, Address | None]

_current: ContextVar[UdpPath | None] = ContextVar("udp_path", default=None)


class UdpPath:
    """Both directions of one client. Belongs to one loop."""

    def __init__(self, impairment: Impairment, seed: int) -> None:
        self.impairment = impairment
        self.began: float | None = None
        """Loop time at which the conversation began; stretches count from it."""
        self.up: Link[tuple[Callable[[Datagram], None], Datagram]] = Link(impairment, 2 * seed)
        self.down: Link[tuple[Callable[[Datagram], None], Datagram]] = Link(
            impairment, 2 * seed + 1
        )
        self.up_log, self.down_log = TransitLog(), TransitLog()
        """How long each media packet was under way."""
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._closed = False

    def begin(self) -> None:
        """The conversation begins now."""
        self.began = asyncio.get_running_loop().time()

    def close(self) -> None:
        """What is still under way is gone."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def carry(
        self,
        link: Link[tuple[Callable[[Datagram], None], Datagram]],
        deliver: Callable[[Datagram], None],
        datagram: Datagram,
    ) -> None:
        """Send one datagram through; `deliver` gets it when, and if, it arrives."""
        now = asyncio.get_running_loop().time()
        since = None if self.began is None else now - self.began
        in_force = self.impairment.active and self.impairment.in_force(since)
        arrives = link.push((deliver, datagram), len(datagram[0]), now, in_force)
        log = self.up_log if link is self.up else self.down_log
        log.note(datagram[0], now, arrives)
        self._flush(link)

    def _flush(self, link: Link[tuple[Callable[[Datagram], None], Datagram]]) -> None:
        loop = asyncio.get_running_loop()
        for deliver, datagram in link.pop(loop.time()):
            deliver(datagram)
        timer = self._timers.pop(id(link), None)
        if timer is not None:
            timer.cancel()
        deadline = link.deadline()
        if deadline is not None and not self._closed:
            self._timers[id(link)] = loop.call_at(deadline, self._flush, link)


def use_path(path: UdpPath) -> None:
    """UDP sockets that this task (and those it starts from now on) opens go through `path`."""
    _current.set(path)


class PathLoop(asyncio.SelectorEventLoop):
    """An event loop that honours `use_path`."""

    async def create_datagram_endpoint(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.DatagramProtocol], *args: Any, **options: Any
    ) -> tuple[asyncio.DatagramTransport, asyncio.DatagramProtocol]:
        """As in the base class, through the task's path if it has one."""
        path = _current.get()
        create = super().create_datagram_endpoint
        if path is None:
            return await create(protocol_factory, *args, **options)
        _, shell = await create(lambda: _Shell(protocol_factory(), path), *args, **options)
        assert shell.transport is not None
        return shell.transport, shell.inner


class _Shell(asyncio.DatagramProtocol):
    """Stands between the socket and the real protocol."""

    def __init__(self, inner: asyncio.DatagramProtocol, path: UdpPath) -> None:
        self.inner = inner
        self.transport: _Transport | None = None
        self._path = path

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transport does not derive from the class of that name.
        self.transport = _Transport(cast(asyncio.DatagramTransport, transport), self._path)
        self.inner.connection_made(self.transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self._path.carry(self._path.down, self._deliver, (data, addr))

    def error_received(self, exc: Exception) -> None:
        self.inner.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)

    def _deliver(self, datagram: Datagram) -> None:
        if self.transport is not None and not self.transport.is_closing():
            data, address = datagram
            self.inner.datagram_received(data, address or ())


class _Transport(asyncio.DatagramTransport):
    """The socket as the real protocol sees it."""

    def __init__(self, socket: asyncio.DatagramTransport, path: UdpPath) -> None:
        super().__init__()
        self._socket = socket
        self._path = path

    def sendto(self, data: Any, addr: Any = None) -> None:
        if not self._socket.is_closing():
            self._path.carry(self._path.up, self._send, (bytes(data), addr))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._socket.is_closing()

    def close(self) -> None:
        self._socket.close()

    def abort(self) -> None:
        self._socket.abort()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._socket.get_protocol()

    def _send(self, datagram: Datagram) -> None:
        if not self._socket.is_closing():
            self._socket.sendto(*datagram)
