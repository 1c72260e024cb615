"""RTP header extensions (RFC 8285): aiortc's, with capture time and playout delay added.

The map also replaces aiortc's parser, which fails with a `struct.error` (and so ends the
whole connection) when a value has an unexpected length: here it is skipped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from aiortc import rtp
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters

MID = "urn:ietf:params:rtp-hdrext:sdes:mid"
ABS_SEND_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
TRANSPORT_CC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
ABS_CAPTURE_TIME = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"
PLAYOUT_DELAY = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"

#: What an offer of ours proposes, by kind; one number per name for both kinds (BUNDLE).
_NUMBERS = {MID: 1, ABS_SEND_TIME: 3, TRANSPORT_CC: 4, ABS_CAPTURE_TIME: 5, PLAYOUT_DELAY: 6}
_BY_KIND = {
    "audio": (MID, TRANSPORT_CC, ABS_CAPTURE_TIME),
    "video": (MID, ABS_SEND_TIME, TRANSPORT_CC, ABS_CAPTURE_TIME, PLAYOUT_DELAY),
}
_PLAYOUT_UNIT_MS = 10
MAX_PLAYOUT_MS = 4095 * _PLAYOUT_UNIT_MS


def offered_extensions(kind: str, *, playout: bool) -> list[RTCRtpHeaderExtensionParameters]:
    """The extensions of an offer; playout delay only where it is set."""
    return [
        RTCRtpHeaderExtensionParameters(id=_NUMBERS[uri], uri=uri)
        for uri in _BY_KIND[kind]
        if playout or uri != PLAYOUT_DELAY
    ]


def common_extensions(
    kind: str, remote: list[RTCRtpHeaderExtensionParameters], *, playout: bool
) -> list[RTCRtpHeaderExtensionParameters]:
    """Those of the other side that we know too, under its numbers."""
    known = {extension.uri for extension in offered_extensions(kind, playout=playout)}
    return [ext for ext in remote if ext.uri in known and 1 <= ext.id <= 255]


@dataclass
class Extensions(rtp.HeaderExtensions):
    """Values of one packet; None: not there."""

    abs_capture_time: int | None = None
    """64-bit NTP timestamp of the capture, on the sender's clock."""
    playout_delay_ms: tuple[int, int] | None = None
    """Smallest and largest delay that a receiver shall add, in milliseconds."""


class ExtensionMap(rtp.HeaderExtensionsMap):
    """Numbers of the negotiated extensions of one transport."""

    def __init__(self) -> None:
        self._by_id: dict[int, str] = {}
        self._by_uri: dict[str, int] = {}

    def configure(self, parameters: RTCRtpParameters) -> None:
        """Add what one stream negotiated."""
        for extension in parameters.headerExtensions:
            self._by_id[extension.id] = extension.uri
            self._by_uri[extension.uri] = extension.id

    def has(self, uri: str) -> bool:
        """Whether an extension was negotiated."""
        return uri in self._by_uri

    def get(self, extension_profile: int, extension_value: bytes) -> Extensions:
        """Parse one packet's extensions. Raises ValueError if they are cut off."""
        values = Extensions()
        found = rtp.unpack_header_extensions(extension_profile, extension_value)
        for number, value in found:
            uri = self._by_id.get(number)
            if uri == MID:
                values.mid = value.decode("utf8", "replace")
            elif uri == ABS_SEND_TIME and len(value) == 3:
                values.abs_send_time = int.from_bytes(value)
            elif uri == TRANSPORT_CC and len(value) == 2:
                values.transport_sequence_number = int.from_bytes(value)
            elif uri == ABS_CAPTURE_TIME and len(value) in (8, 16):
                values.abs_capture_time = int.from_bytes(value[:8])
            elif uri == PLAYOUT_DELAY and len(value) == 3:
                packed = int.from_bytes(value)
                both = (packed >> 12) * _PLAYOUT_UNIT_MS, (packed & 0xFFF) * _PLAYOUT_UNIT_MS
                values.playout_delay_ms = both
        return values

    def set(self, values: rtp.HeaderExtensions) -> tuple[int, bytes]:
        """Serialize those values whose extension was negotiated: (profile, bytes)."""
        found: list[tuple[str, bytes]] = []
        if values.mid is not None:
            found.append((MID, values.mid.encode()))
        if values.abs_send_time is not None:
            found.append((ABS_SEND_TIME, values.abs_send_time.to_bytes(3)))
        if values.transport_sequence_number is not None:
            found.append((TRANSPORT_CC, struct.pack("!H", values.transport_sequence_number)))
        if isinstance(values, Extensions):
            if values.abs_capture_time is not None:
                found.append((ABS_CAPTURE_TIME, struct.pack("!Q", values.abs_capture_time)))
            if values.playout_delay_ms is not None:
                low, high = (ms // _PLAYOUT_UNIT_MS for ms in values.playout_delay_ms)
                found.append((PLAYOUT_DELAY, (low << 12 | high).to_bytes(3)))
        known = [(self._by_uri[uri], value) for uri, value in found if uri in self._by_uri]
        return rtp.pack_header_extensions(known)
