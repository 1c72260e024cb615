"""Session descriptions from outside: what is accepted, what is cut out, what is answered.

Pure text and aiortc's SDP parser. Everything that could crash or stall the connection is
refused here with a sentence (`BadDescriptionError`).
"""

from __future__ import annotations

import ipaddress

from aiortc import sdp
from aiortc.rtcicetransport import RTCIceCandidate
from aiortc.rtcrtpparameters import RTCRtpCodecParameters

MAX_SECTIONS = 4
MAX_CANDIDATES = 32


class BadDescriptionError(ValueError):
    """The session description or candidate cannot be used; the message says why."""


class NoResourcesError(RuntimeError):
    """The offer is fine, but this machine has no socket left for it; the message says which."""


def check_offer(text: str) -> str:
    """Validate an offer and return it without candidates that could only delay us.

    Cut out: mDNS names (resolving them takes up to a second; the browser reaches us and
    is learnt from its own checks), TCP, more than `MAX_CANDIDATES`, and the
    end-of-candidates mark, without which peer-reflexive candidates stay possible.
    """
    lines: list[str] = []
    candidates = 0
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.startswith("a=end-of-candidates"):
            continue
        if line.startswith("a=candidate:"):
            candidates += 1
            if candidates > MAX_CANDIDATES or not _usable(line[len("a=candidate:") :]):
                continue
        lines.append(line)
    cleaned = "\r\n".join(lines)
    try:
        description = sdp.SessionDescription.parse(cleaned)
    except Exception as exc:
        # The parser raises whatever its asserts, indexing and conversions raise.
        raise BadDescriptionError("The session description could not be parsed.") from exc
    _check_sections(description)
    return cleaned


def _check_sections(description: sdp.SessionDescription) -> None:
    media = description.media
    if not 1 <= len(media) <= MAX_SECTIONS:
        raise BadDescriptionError(f"The offer needs 1 to {MAX_SECTIONS} media sections.")
    kinds = [section.kind for section in media]
    if any(kind not in ("audio", "video", "application") for kind in kinds):
        raise BadDescriptionError("The offer has a media section that is not audio, video or data.")
    if len(set(kinds)) != len(kinds):
        raise BadDescriptionError("The offer has more than one section of a kind.")
    for section in media:
        if section.ice is None or not section.ice.usernameFragment or not section.ice.password:
            raise BadDescriptionError("The offer lacks ICE credentials.")
        if section.dtls is None or not section.dtls.fingerprints:
            raise BadDescriptionError("The offer lacks a DTLS fingerprint.")
    usable = {"video": (_usable_video, "VP8 or H.264 baseline"), "audio": (_usable_audio, "Opus")}
    for kind, (check, names) in usable.items():
        sections = [section for section in media if section.kind == kind]
        if not sections:
            raise BadDescriptionError(f"The offer has no {kind} section.")
        if not any(check(codec) for codec in sections[0].rtp.codecs):
            raise BadDescriptionError(f"The offer does not support {names}.")
        if sections[0].direction not in ("sendrecv", "recvonly"):
            raise BadDescriptionError(f"The offer does not want to receive {kind}.")
    _check_bundle(description)


def _check_bundle(description: sdp.SessionDescription) -> None:
    """aiortc looks sections up by these names and fails in the middle when they are not there."""
    mids = [section.rtp.muxId for section in description.media]
    bundled = [
        mid for group in description.group if group.semantic == "BUNDLE" for mid in group.items
    ]
    if len(set(mids)) != len(mids) or "" in mids:
        raise BadDescriptionError("Every media section needs a mid of its own.")
    if len(set(bundled)) != len(bundled) or not set(bundled) <= set(mids):
        raise BadDescriptionError("The offer bundles media sections that are not there.")


def _usable_audio(codec: RTCRtpCodecParameters) -> bool:
    return codec.mimeType.lower() == "audio/opus"


def _usable_video(codec: RTCRtpCodecParameters) -> bool:
    """VP8, or H.264 (constrained) baseline with fragmentation units (RFC 6184 8.1)."""
    if codec.mimeType.lower() != "video/h264":
        return codec.mimeType.lower() == "video/vp8"
    profile = str(codec.parameters.get("profile-level-id", "42e01f")).lower()
    mode = str(codec.parameters.get("packetization-mode", "0"))
    return mode == "1" and profile.startswith("42")


def parse_candidate(text: str) -> RTCIceCandidate | None:
    """Parse a trickled candidate line; None for one that is of no use (empty, mDNS, TCP).

    Raises BadDescriptionError for a malformed one.
    """
    text = text.removeprefix("a=").removeprefix("candidate:").strip()
    if not text:
        return None
    try:
        candidate = sdp.candidate_from_sdp(text)
    except Exception as exc:
        raise BadDescriptionError("The ICE candidate could not be parsed.") from exc
    return candidate if _usable(text) else None


def _usable(text: str) -> bool:
    parts = text.split()
    if len(parts) < 8 or parts[2].lower() != "udp":
        return False
    try:
        ipaddress.ip_address(parts[4])
    except ValueError:
        return False
    return True


def short_packets(text: str) -> str:
    """Ask the other side for 10 ms audio packets (RFC 8866 6.4)."""
    lines: list[str] = []
    kind = ""
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.startswith("m="):
            kind = line[2:].split(" ", 1)[0]
        lines.append(line)
        if kind == "audio" and line.startswith("a=rtcp-mux"):
            lines.append("a=ptime:10")
    return "\r\n".join(lines)


def announce(text: str, public_ip: str | None) -> str:
    """Put `public_ip` in place of this machine's addresses (NAT 1:1), each port once."""
    if public_ip is None:
        return text
    lines: list[str] = []
    announced: set[str] = set()
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.startswith("m="):
            announced.clear()
        if line.startswith("a=candidate:"):
            line = _with_address(line, public_ip)
            address = " ".join(line.split(" ")[4:6])
            if address in announced:
                continue
            announced.add(address)
        lines.append(line)
    return "\r\n".join(lines)


def _with_address(line: str, address: str) -> str:
    parts = line.split(" ")
    same_family = ipaddress.ip_address(parts[4]).version == ipaddress.ip_address(address).version
    if "host" in parts and same_family:
        parts[4] = address
    return " ".join(parts)
