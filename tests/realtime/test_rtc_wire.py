"""Everything of ours that reads bytes from outside: exact on good bytes, calm on bad ones."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator

import pytest
from aiortc import rtp
from aiortc.rtcdtlstransport import RtpRouter
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from aiortc.rtp import RtpPacket
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.rtc.extensions import (
    ABS_CAPTURE_TIME,
    ABS_SEND_TIME,
    MID,
    PLAYOUT_DELAY,
    TRANSPORT_CC,
    ExtensionMap,
    Extensions,
    common_extensions,
    offered_extensions,
)
from realtime.rtc.h264 import parse_h264
from realtime.rtc.media_path import MediaPath, feedback_packet, split_rtcp
from realtime.rtc.transport_cc import Feedback, parse_feedback
from realtime.rtc.vp8 import parse_vp8

pytestmark = pytest.mark.unit


def negotiated() -> ExtensionMap:
    extensions = ExtensionMap()
    offered = offered_extensions("video", playout=True)
    extensions.configure(RTCRtpParameters(headerExtensions=offered))
    return extensions


def test_all_extensions_are_these_bytes() -> None:
    values = Extensions(
        mid="1", abs_send_time=0x123456, transport_sequence_number=0xABCD,
        abs_capture_time=0x0102030405060708, playout_delay_ms=(0, 200),
    )  # fmt: skip
    profile, data = negotiated().set(values)
    expected = "1031 32123456 41abcd 570102030405060708 62000014 0000"
    assert profile == 0xBEDE
    assert data == bytes.fromhex(expected.replace(" ", ""))
    assert negotiated().get(profile, data) == values


def test_what_was_not_negotiated_is_not_sent_and_not_read() -> None:
    extensions = ExtensionMap()
    extensions.configure(
        RTCRtpParameters(headerExtensions=[RTCRtpHeaderExtensionParameters(id=9, uri=MID)])
    )
    assert extensions.set(Extensions(mid="a", abs_send_time=1)) == (0xBEDE, b"\x90a\x00\x00")
    assert extensions.get(0xBEDE, bytes.fromhex("32123456")) == Extensions()
    assert extensions.has(MID)
    assert not extensions.has(TRANSPORT_CC)


def test_the_other_sides_numbers_are_taken_and_playout_delay_only_where_wanted() -> None:
    remote = [
        RTCRtpHeaderExtensionParameters(id=14, uri=TRANSPORT_CC),
        RTCRtpHeaderExtensionParameters(id=7, uri=PLAYOUT_DELAY),
        RTCRtpHeaderExtensionParameters(id=3, uri="urn:example:unknown"),
        RTCRtpHeaderExtensionParameters(id=0, uri=ABS_CAPTURE_TIME),
    ]
    assert [e.id for e in common_extensions("video", remote, playout=False)] == [14]
    assert [e.id for e in common_extensions("video", remote, playout=True)] == [14, 7]
    assert ABS_SEND_TIME not in {e.uri for e in offered_extensions("audio", playout=True)}


@pytest.mark.parametrize("hostile", ["30", "3155", "421234", "4011", "53000102", "6100"])
def test_a_value_of_unexpected_length_is_skipped_or_a_value_error(hostile: str) -> None:
    # aiortc's own map raises struct.error for some of these, which ends its connection.
    data = bytes.fromhex(hostile)
    try:
        values = negotiated().get(0xBEDE, data + bytes(-len(data) % 4))
    except ValueError:
        return
    assert values.abs_send_time is None
    assert values.transport_sequence_number is None


@given(st.integers(0, 0xFFFF), st.binary(max_size=64))
def test_random_extension_bytes_are_values_or_a_value_error(profile: int, data: bytes) -> None:
    try:
        negotiated().get(profile, data)
    except ValueError:
        return


@given(st.binary(max_size=1500))
def test_random_payloads_are_parts_or_a_value_error(data: bytes) -> None:
    for parse in (parse_vp8, parse_h264):
        try:
            part, key = parse(data)
        except ValueError:
            continue
        # A start code for every unit of at least one byte and its two bytes of length.
        assert len(part) <= 2 * len(data) + 5
        assert isinstance(key, bool)


@given(st.binary(max_size=400))
def test_a_compound_packet_is_cut_without_loss_or_overlap(data: bytes) -> None:
    chunks = split_rtcp(data)
    assert data.startswith(b"".join(chunks))
    assert all(len(c) >= 4 and len(c) % 4 == 0 for c in chunks)


def test_a_feedback_packet_is_padded_rtcp() -> None:
    feedback = Feedback(5, 1, 2, 3, (250,))
    packet = feedback_packet(0x11111111, 0x22222222, feedback)
    assert packet.hex() == "afcd00051111111122222222000500010000020320010101"
    (chunk,) = split_rtcp(packet)
    assert parse_feedback(chunk[12:]) == feedback


class FakeTransport:
    """What `MediaPath` touches of a DTLS transport."""

    def __init__(self) -> None:
        self._rtp_router = RtpRouter()
        self.sent: list[bytes] = []

    async def _send_rtp(self, data: bytes) -> None:
        self.sent.append(data)


class FakeStream:
    """A sender and receiver that remembers what was routed to it."""

    _ssrc = 77

    def __init__(self) -> None:
        self.rtcp: list[object] = []
        self.rtp: list[RtpPacket] = []

    async def _handle_rtcp_packet(self, packet: object) -> None:
        self.rtcp.append(packet)

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        self.rtp.append(packet)


def make_path() -> tuple[MediaPath, FakeTransport, FakeStream]:
    transport, stream = FakeTransport(), FakeStream()
    path = MediaPath(transport, 1_000_000)  # type: ignore[arg-type]
    path.extensions.configure(
        RTCRtpParameters(headerExtensions=offered_extensions("video", playout=False))
    )
    transport._rtp_router.register_sender(stream, ssrc=77)  # type: ignore[arg-type]
    transport._rtp_router.register_receiver(stream, ssrcs=[5], payload_types=[96])  # type: ignore[arg-type]
    return path, transport, stream


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.tuples(st.sampled_from([200, 201, 202, 203, 205, 206]), st.integers(0, 31),
                      st.binary(max_size=120)).map(
                lambda t: bytes([0x80 | t[1], t[0]])
                + struct.pack("!H", len(t[2]) // 4) + t[2][: len(t[2]) // 4 * 4]
            ),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_no_bytes_break_the_path(datagrams: list[bytes]) -> None:
    async def feed() -> None:
        path, _, _ = make_path()
        for data in datagrams:
            await path._on_rtcp(data)
            await path._on_rtp(data, 0)
        await path.close()

    asyncio.run(feed())


def test_a_remb_that_promises_more_streams_than_it_has_is_counted() -> None:
    async def feed() -> int:
        path, _, _ = make_path()
        fci = b"REMB" + bytes([200, 0, 0, 1])
        await path._on_rtcp(bytes(rtp.RtcpPsfbPacket(fmt=15, ssrc=1, media_ssrc=0, fci=fci)))
        await path._on_rtcp(bytes.fromhex("81c9000100000001"))
        await path.close()
        return path.stats.malformed

    assert asyncio.run(feed()) == 2


def requests() -> Iterator[tuple[str, bytes]]:
    """Every way in which RTCP asks for a key frame."""
    pli = rtp.RtcpPsfbPacket(fmt=rtp.RTCP_PSFB_PLI, ssrc=1, media_ssrc=77)
    fir = rtp.RtcpPsfbPacket(
        fmt=rtp.RTCP_PSFB_FIR, ssrc=1, media_ssrc=0, fci=struct.pack("!LL", 77, 1 << 24)
    )
    yield "PLI", bytes(pli)
    yield "FIR", bytes(fir)
    report = bytes(rtp.RtcpRrPacket(ssrc=1))
    yield "PLI in a compound packet", report + bytes(pli)


@pytest.mark.parametrize(
    ("name", "data"), list(requests()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_key_frame_requests_reach_their_stream(name: str, data: bytes) -> None:
    async def feed() -> list[object]:
        path, _, stream = make_path()
        await path._on_rtcp(data)
        await path.close()
        return stream.rtcp

    (request,) = asyncio.run(feed())
    assert isinstance(request, rtp.RtcpPsfbPacket), name
    assert request.fmt in (rtp.RTCP_PSFB_PLI, rtp.RTCP_PSFB_FIR)


async def test_arrivals_are_reported_and_sent_packets_are_numbered() -> None:
    path, transport, stream = make_path()
    far, far_transport, _ = make_path()
    path.rtcp_ssrc, far.rtcp_ssrc = 77, 78
    packets = []
    for k in range(40):
        packet = RtpPacket(payload_type=96, sequence_number=k, ssrc=5, payload=bytes(1000))
        packet.extensions = Extensions(abs_send_time=0)
        packets.append(packet)
    await far.send(packets, "video")
    # A burst that is no average frame: the rest leaves by the pacer's timer.
    assert 0 < len(far_transport.sent) < 40
    assert far.queued == 40 - len(far_transport.sent)
    await asyncio.sleep(0.3)
    assert far.queued == 0
    for k, data in enumerate(far_transport.sent):
        if k != 3:
            await path._on_rtp(data, 0)
    assert [p.sequence_number for p in stream.rtp] == [k for k in range(40) if k != 3]
    assert all((p.extensions.abs_send_time or 0) > 0 for p in stream.rtp)
    await asyncio.sleep(0.12)
    (report,) = transport.sent
    feedback = parse_feedback(split_rtcp(report)[0][12:])
    assert feedback.deltas_us.count(None) == 1
    assert feedback.deltas_us[3] is None
    estimates: list[int] = []
    far.on_estimate = estimates.append
    await far._on_rtcp(report)
    assert len(estimates) == 1
    assert far.transport_wide
    await path.close()
    await far.close()
