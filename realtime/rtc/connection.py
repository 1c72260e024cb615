"""aiortc's peer connection with this project's senders, receivers and ICE settings.

Three name-mangled methods are overridden, two instance methods of aioice are wrapped, and
what is negotiated beyond aiortc's own lists (header extensions, feedback kinds, one video
codec) is set after each description; `realtime.rtc.internals` checks that all of it is still
there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from aioice import Candidate
from aioice import Connection as IceConnection
from aioice.ice import get_host_addresses
from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
    sdp,
)
from aiortc.codecs import is_rtx
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import (
    RTCRtcpFeedback,
    RTCRtpCodecCapability,
    RTCRtpCodecParameters,
)
from aiortc.rtcrtpreceiver import RTCRtpReceiver

from realtime.rtc.description import NoResourcesError
from realtime.rtc.extensions import common_extensions, offered_extensions
from realtime.rtc.media_path import MediaPath
from realtime.rtc.ports import gather_in_range
from realtime.rtc.red import RED_PAYLOAD_TYPE, find_red, red_for
from realtime.rtc.rtp_receiver import RtpReceiver
from realtime.rtc.rtp_sender import RtpSender

MAX_DATAGRAMS = 2048
LOOPBACK = "127.0.0.1"

#: Feedback that we understand beyond what aiortc negotiates.
FEEDBACK = (RTCRtcpFeedback("transport-cc"), RTCRtcpFeedback("ccm", "fir"))
VIDEO_CODECS = ("VP8", "H264")

MakeStreams = Callable[[str, RTCDtlsTransport], tuple[RtpSender, RtpReceiver] | None]
"""Kind and transport -> the streams that stand in for aiortc's."""


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
    udp_ports: tuple[int, int] | None = None
    """First and last UDP port to use; None: any that the system gives."""

    @property
    def port_range(self) -> range | None:
        """`udp_ports` as a range."""
        return None if self.udp_ports is None else range(self.udp_ports[0], self.udp_ports[1] + 1)


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """What is negotiated about media."""

    video_codecs: tuple[str, ...] = VIDEO_CODECS
    """Names in order of preference; an answer has the first one that the offer has too."""
    playout_delay: bool = False
    """Whether the playout-delay extension is offered and accepted."""
    start_bps: int = 1_500_000
    redundant_voice: bool = True
    """Whether RED is offered and accepted."""


class PeerConnection(RTCPeerConnection):
    """See the module's docstring. `make_streams` returns None for a kind it does not serve."""

    def __init__(
        self, ice: IceOptions, make_streams: MakeStreams, media: MediaOptions | None = None
    ) -> None:
        self._ice_options = ice
        self._media_options = media or MediaOptions()
        self._make_streams = make_streams
        self._paths: dict[RTCDtlsTransport, MediaPath] = {}
        servers = [
            RTCIceServer(urls=s.url, username=s.username, credential=s.credential)
            for s in ice.servers
        ]
        self._connecting: set[asyncio.Task[None]] = set()
        super().__init__(RTCConfiguration(iceServers=servers))

    async def close(self) -> None:
        """Close, and wait for connection attempts that aiortc leaves behind."""
        try:
            await super().close()
        except AttributeError:
            # An offer that made no sense leaves parts without a transport, and aiortc's own
            # close stumbles over them: stop what there is.
            for transceiver in self.getTransceivers():
                if (dtls := transceiver.receiver.transport) is not None:
                    await dtls.stop()
                    await dtls.transport.stop()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        await asyncio.gather(*(path.close() for path in self._paths.values()))

    def path(self, transport: RTCDtlsTransport) -> MediaPath:
        """What streams of this transport send through."""
        return self._paths[transport]

    @property
    def paths(self) -> list[MediaPath]:
        """All of them; one once everything is bundled."""
        return list(self._paths.values())

    async def createOffer(self) -> RTCSessionDescription:  # noqa: N802
        """aiortc's offer, with our extensions and feedback kinds."""
        offer = await super().createOffer()
        description = sdp.SessionDescription.parse(offer.sdp)
        for media in description.media:
            if media.kind == "application":
                continue
            playout = self._media_options.playout_delay
            media.rtp.headerExtensions = offered_extensions(media.kind, playout=playout)
            for codec in media.rtp.codecs:
                if not is_rtx(codec):
                    codec.rtcpFeedback += FEEDBACK if media.kind == "video" else FEEDBACK[:1]
            if media.kind == "audio" and self._media_options.redundant_voice:
                media.rtp.codecs.append(red_for(media.rtp.codecs[0], RED_PAYLOAD_TYPE))
                media.fmt.append(RED_PAYLOAD_TYPE)
        return RTCSessionDescription(str(description), "offer")

    async def setRemoteDescription(  # noqa: N802
        self,
        sessionDescription: RTCSessionDescription,  # noqa: N803
    ) -> None:
        """aiortc's negotiation, then ours; nothing has been started in between."""
        await super().setRemoteDescription(sessionDescription)
        description = sdp.SessionDescription.parse(sessionDescription.sdp)
        by_mid = {transceiver.mid: transceiver for transceiver in self.getTransceivers()}
        for media in description.media:
            transceiver = by_mid.get(media.rtp.muxId)
            if transceiver is None or media.kind == "application":
                continue
            playout = self._media_options.playout_delay
            transceiver._headerExtensions = common_extensions(
                media.kind, media.rtp.headerExtensions, playout=playout
            )
            transceiver._codecs = _only_first(transceiver._codecs)
            theirs = {codec.payloadType: codec.rtcpFeedback for codec in media.rtp.codecs}
            for codec in transceiver._codecs:
                both = [f for f in FEEDBACK if f in theirs.get(codec.payloadType, ())]
                codec.rtcpFeedback = [*codec.rtcpFeedback, *both]
            if media.kind == "audio" and self._media_options.redundant_voice:
                red = find_red(media.rtp.codecs, transceiver._codecs[0])
                transceiver._codecs += [] if red is None else [red]

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
        codecs = self._media_options.video_codecs
        transceiver.setCodecPreferences(preferred_codecs(kind, codecs))
        return transceiver

    def _RTCPeerConnection__createDtlsTransport(self) -> RTCDtlsTransport:
        create = super()._RTCPeerConnection__createDtlsTransport  # type: ignore[misc]
        transport: RTCDtlsTransport = create()
        tune_ice(transport.transport.iceGatherer._connection, self._ice_options)
        self._paths[transport] = MediaPath(transport, self._media_options.start_bps)
        return transport


def local_addresses(ice: IceOptions) -> list[str]:
    """Addresses of this machine that would be offered as candidates."""
    addresses = get_host_addresses(use_ipv4=True, use_ipv6=True)
    return [*addresses, LOOPBACK] if ice.loopback else addresses


def preferred_codecs(
    kind: str, video: tuple[str, ...] = VIDEO_CODECS
) -> list[RTCRtpCodecCapability]:
    """Opus; VP8 and constrained-baseline H.264 in the wanted order, with retransmission."""
    capabilities = RTCRtpReceiver.getCapabilities(kind)
    assert capabilities is not None
    names = [f"video/{name}" for name in video] + ["video/rtx"]
    wanted = names if kind == "video" else ["audio/opus"]
    found = [codec for codec in capabilities.codecs if codec.mimeType in wanted]
    # Constrained baseline before baseline, which nobody's encoder makes any more.
    return sorted(
        found,
        key=lambda codec: (
            wanted.index(codec.mimeType),
            codec.parameters.get("profile-level-id") != "42e01f",
        ),
    )


def _only_first(codecs: list[RTCRtpCodecParameters]) -> list[RTCRtpCodecParameters]:
    """The best common codec and its retransmission format: a sender must not switch."""
    first = codecs[0]
    return [c for c in codecs if c is first or c.parameters.get("apt") == first.payloadType]


def tune_ice(connection: IceConnection, options: IceOptions) -> None:
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
        ports = options.port_range
        if ports is not None:
            return await gather_in_range(connection, gather, component, addresses, ports, limit)
        found: list[Candidate] = await gather(component, addresses, timeout=limit)  # type: ignore[arg-type]
        if addresses and not found:
            # aioice only notes an address that it could not bind to.
            raise NoResourcesError("No UDP socket could be opened.")
        return found

    def data_received(data: bytes, component: int) -> None:
        if datagrams.qsize() < MAX_DATAGRAMS:
            receive(data, component)

    connection.get_component_candidates = get_component_candidates  # type: ignore[method-assign]
    connection.data_received = data_received  # type: ignore[method-assign]
