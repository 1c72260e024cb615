"""Why a peer elsewhere would not connect, tried as a session would use it."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from aioice import stun

from realtime import reach
from realtime.reach import check_ice_servers, check_udp_ports
from realtime.rtc import IceServer
from realtime.settings import Settings

pytestmark = pytest.mark.unit


class StunServer(asyncio.DatagramProtocol):
    """Answers binding requests; refuses everything that TURN asks."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's own datagram transport does not derive from the class of that name.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        asked = stun.parse_message(data)
        binding = asked.message_method == stun.Method.BINDING
        kind = stun.Class.RESPONSE if binding else stun.Class.ERROR
        answer = stun.Message(asked.message_method, kind, asked.transaction_id)
        if binding:
            answer.attributes["XOR-MAPPED-ADDRESS"] = ("203.0.113.7", 50_000)
        else:
            answer.attributes["ERROR-CODE"] = (403, "Forbidden")
        self.transport.sendto(bytes(answer), addr)


@contextmanager
def stun_server() -> Iterator[int]:
    """A server on a thread and loop of its own; gives its port."""
    loop = asyncio.new_event_loop()
    made = loop.create_datagram_endpoint(StunServer, local_addr=("127.0.0.1", 0))
    transport, _ = loop.run_until_complete(made)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        transport.close()
        # The socket itself is closed in the loop's next turn.
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "GATHER_S", 2.0)


def test_a_stun_server_that_answers_and_one_that_does_not() -> None:
    with stun_server() as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        urls = (f"stun:127.0.0.1:{port}", f"stun:127.0.0.1:{deaf.getsockname()[1]}")
        answered, silent = check_ice_servers(Settings(ice_servers=tuple(map(IceServer, urls))))
    assert (answered.verdict, answered.subject) == ("ok", "STUN")
    assert (silent.verdict, silent.subject) == ("warning", "STUN")
    assert "did not answer" in silent.detail
    assert "--public-ip" in silent.fix


def test_a_turn_server_that_refuses_us_is_a_problem() -> None:
    with stun_server() as port, warnings.catch_warnings():
        # aioice leaves the socket of a refused allocation to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        url = f"turn:127.0.0.1:{port}"
        servers = (IceServer(url, "user", "wrong"), IceServer(url))
        refused, nameless = check_ice_servers(Settings(ice_servers=servers))
        gc.collect()
    assert refused.verdict == nameless.verdict == "problem"
    assert "no relay" in refused.detail
    assert "password" in refused.fix
    assert "no user" in nameless.detail


def test_media_ports_are_counted_against_the_sessions() -> None:
    assert not list(check_udp_ports(Settings()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        (none,) = check_udp_ports(Settings(udp_ports=(port, port)))
        assert none.verdict == "problem"
        assert "--udp-ports" in none.fix
    (few,) = check_udp_ports(Settings(udp_ports=(port, port), max_sessions=4))
    assert few.verdict == "warning"
    assert "1 of 4 sessions" in few.detail
    (enough,) = check_udp_ports(Settings(udp_ports=(43_000, 43_199), max_sessions=4))
    assert enough.verdict == "ok"
