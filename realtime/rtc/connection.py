"""aiortc's peer connection with this project's senders, receivers and ICE settings.

Three name-mangled methods are overridden, two instance methods of aioice are
wrapped; `realtime.rtc.internals` checks that they are still there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aioice import Candidate
from aioice import Connection as IceConnection
from aioice.ice import get_host_addresses
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpTransceiver
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCodecCapability
from aiortc.rtcrtpreceiver import RTCRtpReceiver

from realtime.rtc.receivers import RtpReceiver
from realtime.rtc.senders import RtpSender

MAX_DATAGRAMS = 2048
LOOPBACK = "127.0.0.1"

MakeStreams = Callable[[str, RTCDtlsTransport], tuple[RtpSender, RtpReceiver] | None]


@dataclass(frozen=True, slots=True)
class IceServer:
    """A STUN or TURN server; both credentials are needed for TURN."""

    url: str
    username: str | None = None
    credential: str | None = None


@dataclass(frozen=True, slots=True)
class IceOptions:
    """How candidates are found. No server is asked by default."""

    servers: tuple[IceServer, ...] = ()
    gather_s: float = 0.5
    loopback: bool = True
    """Offer 127.0.0.1 too, so that a machine without any network can talk to itself."""


class PeerConnection(RTCPeerConnection):
    """See the module's docstring. `make_streams` returns None for a kind it does not serve."""

    def __init__(self, ice: IceOptions, make_streams: MakeStreams) -> None:
        self._ice_options = ice
        self._make_streams = make_streams
        servers = [
            RTCIceServer(urls=s.url, username=s.username, credential=s.credential)
            for s in ice.servers
        ]
        self._connecting: set[asyncio.Task[None]] = set()
        super().__init__(RTCConfiguration(iceServers=servers))

    async def close(self) -> None:
        """Close, and wait for connection attempts that aiortc leaves behind."""
        await super().close()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    async def _RTCPeerConnection__connect(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        await super()._RTCPeerConnection__connect()  # type: ignore[misc]

    def _RTCPeerConnection__createTransceiver(
        self, direction: str, kind: str, sender_track: MediaStreamTrack | None = None
    ) -> RTCRtpTransceiver:
        create = super()._RTCPeerConnection__createTransceiver  # type: ignore[misc]
        transceiver: RTCRtpTransceiver = create(direction=direction, kind=kind)
        streams = self._make_streams(kind, transceiver.receiver.transport)
        if streams is None:
            transceiver.direction = "inactive"
            return transceiver
        sender, receiver = streams
        sender._stream_id = transceiver.sender._stream_id
        receiver._set_rtcp_ssrc(sender._ssrc)
        transceiver._RTCRtpTransceiver__sender = sender  # type: ignore[attr-defined]
        transceiver._RTCRtpTransceiver__receiver = receiver  # type: ignore[attr-defined]
        transceiver.direction = "sendrecv"
        transceiver.setCodecPreferences(preferred_codecs(kind))
        return transceiver

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:
        create = super()._RTCPeerConnection__createDtlsTransport  # type: ignore[misc]
        transport: RTCDtlsTransport = create()
        _tune_ice(transport.transport.iceGatherer._connection, self._ice_options)
        return transport


def local_addresses(ice: IceOptions) -> list[str]:
    """Addresses of this machine that would be offered as candidates."""
    addresses = get_host_addresses(use_ipv4=True, use_ipv6=True)
    return [*addresses, LOOPBACK] if ice.loopback else addresses


def preferred_codecs(kind: str) -> list[RTCRtpCodecCapability]:
    """VP8 with retransmission, Opus: what every WebRTC peer must support (RFC 7742, 7874)."""
    names = {"video": ("video/VP8", "video/rtx"), "audio": ("audio/opus",)}[kind]
    capabilities = RTCRtpReceiver.getCapabilities(kind)
    assert capabilities is not None
    return [codec for codec in capabilities.codecs if codec.mimeType in names]


def _tune_ice(connection: IceConnection, options: IceOptions) -> None:
    """Cap gathering, add loopback, bound the datagram queue of one ICE connection."""
    gather = connection.get_component_candidates
    receive = connection.data_received
    datagrams = connection._queue

    async def get_component_candidates(
        component: int,
        addresses: list[str],
        timeout: float = 5,  # noqa: ASYNC109 -- aioice's own signature
    ) -> list[Candidate]:
        if options.loopback and LOOPBACK not in addresses:
            addresses = [*addresses, LOOPBACK]
        limit = min(timeout, options.gather_s)
        return await gather(component, addresses, timeout=limit)  # type: ignore[arg-type]

    def data_received(data: bytes, component: int) -> None:
        if datagrams.qsize() < MAX_DATAGRAMS:
            receive(data, component)

    connection.get_component_candidates = get_component_candidates  # type: ignore[method-assign]
    connection.data_received = data_received  # type: ignore[method-assign]
