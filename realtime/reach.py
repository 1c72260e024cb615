"""Why a peer elsewhere would not connect: the media ports, and the STUN and TURN servers.

"It does not connect" has three usual reasons: the firewall opens fewer UDP ports than sessions
need, the STUN server is not reachable over UDP, the TURN server does not take the credentials.
Each is tried here as a session would use it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import av

from realtime.finding import Check
from realtime.rtc import AudioBlock, IceOptions, IceServer, PeerOptions, RtcPeer, local_addresses
from realtime.settings import Settings

GATHER_S = 3.0


def check_udp_ports(settings: Settings) -> Iterator[Check]:
    """How many sessions the range of media ports has room for now."""
    if settings.udp_ports is None:
        return
    first, last = settings.udp_ports
    addresses = local_addresses(IceOptions(loopback=settings.loopback))
    free = sum(_is_free(port) for port in range(first, last + 1))
    # A session takes one port of each address, and two addresses may share a number.
    needed = settings.max_sessions
    detail = f"{free} of {last - first + 1} UDP ports from {first} to {last} are free"
    wider = f"--udp-ports {first}-{min(65535, first + 4 * needed)}, and open them in the firewall"
    if free == 0:
        yield Check("problem", "Media ports", f"{detail}: no session can be opened", wider)
    elif free < needed:
        many = f"{detail}, on {len(addresses)} addresses: room for {free} of {needed} sessions"
        yield Check("warning", "Media ports", many, wider)
    else:
        yield Check("ok", "Media ports", f"{detail}; the firewall has to let UDP in there")


def check_ice_servers(settings: Settings) -> Iterator[Check]:
    """Ask every STUN and TURN server for an address, as a session does."""
    for server in settings.ice_servers:
        relays = server.url.startswith("turn")
        name = server.url.partition("?")[0]
        if relays and server.credential is None:
            fix = f"--ice-server '{name}|USER|PASSWORD'"
            yield Check("problem", "TURN", f"{name} has no user and password", fix)
            continue
        found = asyncio.run(gather_kinds(server))
        if ("relay" if relays else "srflx") in found:
            what = "relays for us" if relays else "tells us our public address"
            yield Check("ok", "TURN" if relays else "STUN", f"{name} {what}")
        elif relays:
            yield Check(
                "problem", "TURN", f"{name} gave no relay in {GATHER_S:.0f} s",
                "Check user, password and port; a firewall may drop UDP: try ?transport=tcp.",
            )  # fmt: skip
        else:
            yield Check(
                "warning", "STUN", f"{name} did not answer in {GATHER_S:.0f} s",
                "Check name and port; a firewall may drop UDP. --public-ip needs no STUN.",
            )  # fmt: skip


async def gather_kinds(server: IceServer) -> set[str]:
    """Kinds of candidates (`host`, `srflx`, `relay`) that a peer with this server finds."""
    options = PeerOptions(ice=IceOptions((server,), gather_s=GATHER_S, loopback=True))
    with ThreadPoolExecutor(1) as pool:
        peer = RtcPeer(_Nobody(), pool, options)
        try:
            lines = (await peer.offer()).splitlines()
        except (OSError, ValueError):
            # A name that does not exist, a URL that cannot be.
            return set()
        finally:
            await peer.close()
    words = [line.split() for line in lines if line.startswith("a=candidate:")]
    return {line[line.index("typ") + 1] for line in words if "typ" in line[:-1]}


def _is_free(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


class _Nobody:
    """A peer's handler for a peer that only looks for candidates."""

    def on_connected(self) -> None:
        """It is not connected."""

    def on_audio(self, block: AudioBlock) -> None:
        """Nothing is said."""

    def on_video(self, frame: av.VideoFrame) -> None:
        """Nothing is shown."""

    def on_channel_open(self) -> None:
        """There is none."""

    def on_message(self, data: bytes) -> None:
        """Nothing is received."""

    def on_closed(self, reason: str) -> None:
        """Whoever made it closes it."""
