"""Host candidates from a fixed range of UDP ports, for firewalls that open only some.

aioice always binds to port 0. Here the sockets are bound first and given to aioice's own
protocol; STUN and TURN are asked as aioice asks them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
from collections.abc import Awaitable, Callable

from aioice import Candidate
from aioice import Connection as IceConnection
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import StunProtocol, server_reflexive_candidate

from realtime.rtc.description import NoResourcesError

_RECEIVE_BUFFER_BYTES = 1 << 20

Gather = Callable[..., Awaitable[list[Candidate]]]


async def gather_in_range(
    connection: IceConnection,
    gather: Gather,
    component: int,
    addresses: list[str],
    ports: range,
    limit_s: float,
) -> list[Candidate]:
    """Candidates of one component with host sockets in `ports`; `gather` is aioice's method.

    Raises NoResourcesError if no address got a socket.
    """
    protocols = [p for a in addresses if (p := await _bind(connection, a, ports)) is not None]
    if addresses and not protocols:
        raise NoResourcesError(f"No UDP port from {ports.start} to {ports.stop - 1} is free.")
    for protocol in protocols:
        host, port = protocol.transport.get_extra_info("sockname")[:2]
        protocol.local_candidate = Candidate(
            foundation=candidate_foundation("host", "udp", host),
            component=component, transport="udp", priority=candidate_priority(component, "host"),
            host=host, port=port, type="host",
        )  # fmt: skip
    connection._protocols += protocols
    # Without addresses aioice has no host sockets of its own to make and asks TURN only.
    relayed = gather(component, [], timeout=limit_s)
    mapped = _reflexive(connection, protocols, limit_s)
    others = await asyncio.gather(relayed, mapped)
    return [p.local_candidate for p in protocols] + others[0] + others[1]


async def _bind(connection: IceConnection, address: str, ports: range) -> StunProtocol | None:
    """A socket on the first free port from a random one on; None if the address has none."""
    loop = asyncio.get_running_loop()
    start = random.randrange(len(ports))
    for i in range(len(ports)):
        port = ports[(start + i) % len(ports)]
        with contextlib.suppress(OSError):
            transport, protocol = await loop.create_datagram_endpoint(
                lambda: StunProtocol(connection), local_addr=(address, port)
            )
            sock = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            return protocol
    return None


async def _reflexive(
    connection: IceConnection, protocols: list[StunProtocol], limit_s: float
) -> list[Candidate]:
    """What the STUN server says about each IPv4 socket, as far as it answers in time."""
    server = connection.stun_server
    tasks = [
        asyncio.create_task(server_reflexive_candidate(protocol, server))
        for protocol in protocols
        if server and ipaddress.ip_address(protocol.local_candidate.host).version == 4
    ]
    if not tasks:
        return []
    done, late = await asyncio.wait(tasks, timeout=limit_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    return [task.result()[0] for task in done if task.exception() is None]
