"""Redundant audio (RFC 2198): a voice packet that carries the one before it once more.

Our voice is coded with low delay, a mode that has no error correction of its own. Where the
other side understands RED (Chromium offers it for Opus), a packet that is lost is therefore
found in the next one, 10 ms later, for the price of a second voice.
"""

from __future__ import annotations

from aiortc.rtcrtpparameters import RTCRtpCodecParameters

RED_MIME = "audio/red"
#: Number in offers of our own; browsers use the same.
RED_PAYLOAD_TYPE = 63
MAX_BLOCKS = 8
_MAX_OFFSET, _MAX_LENGTH = (1 << 14) - 1, (1 << 10) - 1


def pack_red(payload_type: int, payload: bytes, before: tuple[bytes, int] | None) -> bytes:
    """`payload` behind an earlier one and how many RTP ticks earlier that is, if it fits."""
    head = b""
    if before is not None and len(before[0]) <= _MAX_LENGTH and 0 < before[1] <= _MAX_OFFSET:
        block = 1 << 31 | payload_type << 24 | before[1] << 10 | len(before[0])
        head = block.to_bytes(4)
        payload = before[0] + payload
    return head + bytes([payload_type]) + payload


def parse_red(data: bytes, payload_type: int) -> list[tuple[bytes, int]]:
    """Payloads and how many ticks each is earlier than the packet's timestamp, oldest first.

    Raises ValueError for a packet that is malformed or holds another payload type.
    """
    heads: list[tuple[int, int]] = []
    at = 0
    while at < len(data) and data[at] & 0x80:
        if len(heads) == MAX_BLOCKS or at + 4 > len(data):
            raise ValueError("malformed RED header")
        word = int.from_bytes(data[at : at + 4])
        if word >> 24 & 0x7F != payload_type:
            raise ValueError("RED of another payload type")
        heads.append((word >> 10 & _MAX_OFFSET, word & _MAX_LENGTH))
        at += 4
    if at >= len(data) or data[at] != payload_type:
        raise ValueError("RED of another payload type, or without one")
    at += 1
    blocks = []
    for offset, length in heads:
        if at + length > len(data):
            raise ValueError("truncated RED block")
        blocks.append((data[at : at + length], offset))
        at += length
    return [*blocks, (data[at:], 0)]


def red_for(codec: RTCRtpCodecParameters, payload_type: int) -> RTCRtpCodecParameters:
    """RED around `codec` as it stands in a description."""
    inner = codec.payloadType
    return RTCRtpCodecParameters(
        mimeType=RED_MIME, clockRate=codec.clockRate, channels=codec.channels,
        payloadType=payload_type, parameters={f"{inner}/{inner}": None},
    )  # fmt: skip


def find_red(
    codecs: list[RTCRtpCodecParameters], inner: RTCRtpCodecParameters
) -> RTCRtpCodecParameters | None:
    """The other side's RED around `inner`, if it understands that."""
    for codec in codecs:
        known = codec.mimeType.lower() == RED_MIME and codec.clockRate == inner.clockRate
        if not known or codec.payloadType is None:
            continue
        if f"{inner.payloadType}/{inner.payloadType}" in codec.parameters:
            return red_for(inner, codec.payloadType)
    return None
