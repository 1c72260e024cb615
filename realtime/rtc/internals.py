"""What this package relies on inside aiortc and aioice, checked by name.

The adapter is written against `AIORTC_SERIES`. `problems()` compares every private name
and signature it touches with the installed libraries and says in words what moved; a test
and `visavis doctor` call it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import aiortc
from aioice import Connection
from aioice.candidate import candidate_foundation
from aioice.ice import StunProtocol, server_reflexive_candidate
from aiortc import RTCPeerConnection, rtp
from aiortc.rtcdtlstransport import RTCDtlsTransport, RtpRouter
from aiortc.rtcicetransport import RTCIceGatherer, RTCIceTransport
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.rtcrtptransceiver import RTCRtpTransceiver
from aiortc.rtp import HeaderExtensionsMap, RtpPacket

from realtime.rtc.rtp_receiver import RtpReceiver
from realtime.rtc.rtp_sender import RtpSender

AIORTC_SERIES = "1.16"

_METHODS: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (
        RTCPeerConnection,
        "_RTCPeerConnection__createTransceiver",
        ("self", "direction", "kind", "sender_track"),
    ),
    (RTCPeerConnection, "_RTCPeerConnection__createDtlsTransport", ("self",)),
    (RTCPeerConnection, "_RTCPeerConnection__connect", ("self",)),
    (RTCDtlsTransport, "_send_rtp", ("self", "data")),
    (RTCDtlsTransport, "_register_rtp_sender", ("self", "sender", "parameters")),
    (RTCDtlsTransport, "_unregister_rtp_sender", ("self", "sender")),
    (RTCDtlsTransport, "_register_rtp_receiver", ("self", "receiver", "parameters")),
    (RTCDtlsTransport, "_unregister_rtp_receiver", ("self", "receiver")),
    (RTCDtlsTransport, "_get_stats", ("self",)),
    (RTCDtlsTransport, "_handle_rtp_data", ("self", "data", "arrival_time_ms")),
    (RTCDtlsTransport, "_handle_rtcp_data", ("self", "data")),
    (RtpRouter, "route_rtp", ("self", "packet")),
    (RtpRouter, "route_rtcp", ("self", "packet")),
    (HeaderExtensionsMap, "configure", ("self", "parameters")),
    (HeaderExtensionsMap, "get", ("self", "extension_profile", "extension_value")),
    (HeaderExtensionsMap, "set", ("self", "values")),
    (RtpPacket, "parse", ("data", "extensions_map")),
    (RtpPacket, "serialize", ("self", "extensions_map")),
    (RTCPeerConnection, "createOffer", ("self",)),
    (RTCPeerConnection, "setRemoteDescription", ("self", "sessionDescription")),
    (RTCRtpReceiver, "_handle_rtp_packet", ("self", "packet", "arrival_time_ms")),
    (RTCRtpReceiver, "_handle_rtcp_packet", ("self", "packet")),
    (RTCRtpSender, "_handle_rtcp_packet", ("self", "packet")),
    (Connection, "get_component_candidates", ("self", "component", "addresses", "timeout")),
    (Connection, "data_received", ("self", "data", "component")),
    (RTCIceTransport, "addRemoteCandidate", ("self", "candidate")),
    (StunProtocol, "__init__", ("self", "receiver")),
    (RTCRtpSender, "_send_keyframe", ("self",)),
)

#: Functions that must look these names up on the object, where we put our own.
_LOOKUPS: tuple[tuple[Callable[..., object], tuple[str, ...]], ...] = (
    (RTCDtlsTransport._recv_next, ("_handle_rtp_data", "_handle_rtcp_data")),
    (RTCDtlsTransport._register_rtp_sender, ("_rtp_header_extensions_map",)),
    (RTCPeerConnection.setLocalDescription, ("createOffer", "createAnswer")),
    (StunProtocol.datagram_received, ("data_received",)),
)

#: Functions of modules: (function, parameters).
_FUNCTIONS: tuple[tuple[Callable[..., object], tuple[str, ...]], ...] = (
    (rtp.unpack_header_extensions, ("extension_profile", "extension_value")),
    (rtp.pack_header_extensions, ("extensions",)),
    (server_reflexive_candidate, ("protocol", "stun_server")),
    (candidate_foundation, ("candidate_type", "candidate_transport", "base_address")),
)

#: Attributes set in constructors: (class, names that its __init__ must assign).
_ATTRIBUTES: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        RTCRtpTransceiver,
        (
            "_RTCRtpTransceiver__sender",
            "_RTCRtpTransceiver__receiver",
            "_codecs",
            "_headerExtensions",
            "_bundled",
        ),
    ),
    (RTCIceGatherer, ("_connection",)),
    (RTCDtlsTransport, ("_rtp_header_extensions_map", "_rtp_router")),
    (RtpRouter, ("senders",)),
    (Connection, ("_queue", "_protocols", "stun_server")),
    (RTCRtpSender, ("_enabled", "_ssrc", "_rtx_ssrc", "_stream_id")),
    (RTCRtpReceiver, ("_enabled", "_track")),
)


def problems() -> list[str]:
    """Return what no longer fits, one sentence each; empty when all is well."""
    found: list[str] = []
    if not aiortc.__version__.startswith(AIORTC_SERIES + "."):
        found.append(
            f"aiortc {aiortc.__version__} is installed but realtime/rtc is written against "
            f"{AIORTC_SERIES}.*: install 'aiortc=={AIORTC_SERIES}.*', or review the adapter"
        )
    for cls, name, parameters in _METHODS:
        function = getattr(cls, name, None)
        if function is None:
            found.append(f"{cls.__name__}.{name} is gone")
            continue
        actual = tuple(inspect.signature(function).parameters)
        if actual != parameters:
            found.append(f"{cls.__name__}.{name} takes {actual}, expected {parameters}")
    for cls, names in _ATTRIBUTES:
        assigned = vars(cls)["__init__"].__code__.co_names
        found += [
            f"{cls.__name__}.__init__ no longer sets {name}"
            for name in names
            if name not in assigned
        ]
    for function, parameters in _FUNCTIONS:
        actual = tuple(inspect.signature(function).parameters)
        if actual != parameters:
            found.append(f"{function.__name__} takes {actual}, expected {parameters}")
    for function, names in _LOOKUPS:
        looked_up = inspect.unwrap(function).__code__.co_names
        found += [
            f"{function.__qualname__} no longer uses {name}"
            for name in names
            if name not in looked_up
        ]
    found += _surface(RTCRtpSender, RtpSender)
    found += _surface(RTCRtpReceiver, RtpReceiver)
    return found


def _surface(theirs: type, ours: type) -> list[str]:
    """Methods that aiortc may call on a stand-in and that the stand-in lacks."""
    private = f"_{theirs.__name__}__"
    unused = {
        "getCapabilities", "getSynchronizationSources", "_run_rtp", "_run_rtcp",
        "_next_encoded_frame", "_retransmit", "_send_keyframe", "_send_rtcp",
        "_send_rtcp_nack", "_send_rtcp_pli", "kind", "transport",
    }  # fmt: skip
    return [
        f"{theirs.__name__} has a new method {name} that {ours.__name__} lacks"
        for name in vars(theirs)
        if not name.startswith(("__", private)) and name not in unused and not hasattr(ours, name)
    ]
