"""Every parser of ours that reads bytes from outside, as a function that may be fed anything.

A target returns or raises one of its `expected` errors; whatever else it raises is a find. The
hypothesis tests run every target for a moment, `run.py` runs them under atheris for as long as
one likes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from aiortc import rtp
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters

from models.portrait import PortraitError, decode_image
from realtime.children import child_of
from realtime.errors import BadRequestError
from realtime.limits import address_key, client_address
from realtime.protocol import Candidate, ResumeRequest, SessionRequest, decode_client
from realtime.reading import decode_json
from realtime.rtc.description import BadDescriptionError, check_offer, parse_candidate
from realtime.rtc.extensions import ExtensionMap, offered_extensions
from realtime.rtc.h264 import parse_h264
from realtime.rtc.opus import OpusDecoder
from realtime.rtc.red import parse_red
from realtime.rtc.transport_cc import parse_feedback
from realtime.rtc.vp8 import parse_vp8
from tests.fuzz.corpus import bombs, candidate_seeds, image_seeds, message_seeds

OFFER = Path(__file__).with_name("offer.sdp")


@dataclass(frozen=True)
class Target:
    """One parser under test."""

    name: str
    run: Callable[[bytes], Any]
    seeds: Sequence[bytes]
    expected: tuple[type[Exception], ...]

    def feed(self, data: bytes) -> bool:
        """Run once; True if it was accepted. Raises whatever is not expected."""
        try:
            self.run(data)
        except self.expected:
            return False
        return True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _image(data: bytes) -> None:
    image = decode_image(data)
    assert image.ndim == 3
    assert image.shape[2] == 3


def _ids(data: bytes) -> None:
    text = _text(data)
    index = child_of(text, 8)
    assert index is None or 0 <= index < 8
    assert len(address_key(text)) <= 64
    client_address("192.0.2.1", text, {"192.0.2.1"})


def _extension_map() -> ExtensionMap:
    extensions = ExtensionMap()
    offered = [
        RTCRtpHeaderExtensionParameters(id=number, uri=extension.uri)
        for number, extension in enumerate(offered_extensions("video", playout=True), 1)
    ]
    extensions.configure(RTCRtpParameters(headerExtensions=offered))
    return extensions


_EXTENSIONS = _extension_map()
_OPUS = OpusDecoder()


def _extension(data: bytes) -> None:
    profile = (0xBEDE, 0x1000, 0x1234)[data[0] % 3] if data else 0xBEDE
    _EXTENSIONS.get(profile, data[1:])


def _request(kind: type[Any]) -> Callable[[bytes], Any]:
    return lambda data: decode_json(data, kind)


_RTP = rtp.RtpPacket(
    payload_type=97, sequence_number=5, timestamp=99, ssrc=7, payload=b"\x90\x80\x01ab"
)
_SENDER_REPORT = rtp.RtcpSrPacket(ssrc=1, sender_info=rtp.RtcpSenderInfo(1, 2, 3, 4))
_NACK = rtp.RtcpRtpfbPacket(fmt=1, ssrc=1, media_ssrc=2, lost=[3, 4, 40])

TARGETS: tuple[Target, ...] = (
    Target(
        "description", lambda data: check_offer(_text(data)), [OFFER.read_bytes()],
        (BadDescriptionError,),
    ),
    Target(
        "candidate", lambda data: parse_candidate(_text(data)),
        [line.encode() for line in candidate_seeds()], (BadDescriptionError,),
    ),
    Target(
        "control", decode_client, message_seeds(),
        (msgspec.DecodeError, UnicodeDecodeError, RecursionError),
    ),
    Target(
        "session_request", _request(SessionRequest),
        [b'{"sdp":"v=0","type":"offer","portrait":"grey","sources":{"pose":{"source":"idle"}}}'],
        (BadRequestError,),
    ),
    Target(
        "resume_request", _request(ResumeRequest), [b'{"sdp":"v=0","type":"offer"}'],
        (BadRequestError,),
    ),
    Target(
        "candidate_request", _request(Candidate),
        [b'{"candidate":"candidate:1","sdpMid":"0","sdpMLineIndex":0,"usernameFragment":"a"}'],
        (BadRequestError,),
    ),
    Target("image", _image, [*image_seeds(), *bombs()], (PortraitError,)),
    Target("ids", _ids, [b"p1-abc", b"u-p0-12", b"2001:db8::1", b"1.2.3.4, ::1"], ()),
    Target("vp8", parse_vp8, [b"\x90\x80\x01ab", b"\x90\xe0\x81\x02\x03\x04xyz"], (ValueError,)),
    Target(
        "h264", parse_h264,
        [b"\x65abc", b"\x78\x00\x02\x67a\x00\x02\x68b", b"\x7c\x85ab"], (ValueError,),
    ),
    Target(
        "feedback", parse_feedback,
        [b"\x00\x05\x00\x03\x00\x00\x01\x02\x20\x03\x04\x05\x06"], (ValueError,),
    ),
    Target(
        "extensions", _extension,
        [b"\x00\x10\xaa\x22\x01\x02\x03", b"\x01\x01\x02ab"], (ValueError,),
    ),
    Target(
        "rtp", lambda data: rtp.RtpPacket.parse(data, _EXTENSIONS),
        [_RTP.serialize(_EXTENSIONS)], (ValueError,),
    ),
    Target(
        "rtcp", rtp.RtcpPacket.parse, [bytes(_SENDER_REPORT), bytes(_NACK)], (ValueError,),
    ),
    Target(
        "red", lambda data: parse_red(data, 111),
        [b"\xef\x07\x80\x03\x6foldnewest", b"\x6falone"], (ValueError,),
    ),
    Target("opus", _OPUS.decode, [b"\xf8\xff\xfe", b"\x78abc"], (ValueError,)),
)  # fmt: skip
BY_NAME = {target.name: target for target in TARGETS}
