"""Voice packets that carry the one before them: bytes, and what hostile ones do."""

from __future__ import annotations

import pytest
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from hypothesis import given
from hypothesis import strategies as st

from realtime.rtc.audio_receive import AudioReceiveBuffer
from realtime.rtc.opus import OpusDecoder
from realtime.rtc.red import MAX_BLOCKS, find_red, pack_red, parse_red

pytestmark = pytest.mark.unit

#: RFC 2198 section 3: F, block payload type, 14 bits of offset, 10 of length; then F = 0 and type.
EXAMPLE = bytes([0x80 | 111, 0x07, 0x80, 0x03, 111]) + b"oldnewest"


def test_the_bytes_are_those_of_the_specification() -> None:
    assert pack_red(111, b"newest", (b"old", 480)) == EXAMPLE
    assert parse_red(EXAMPLE, 111) == [(b"old", 480), (b"newest", 0)]
    assert pack_red(111, b"alone", None) == b"\x6falone"
    assert parse_red(b"\x6falone", 111) == [(b"alone", 0)]


@pytest.mark.parametrize("before", [(b"x" * 1024, 480), (b"old", 1 << 14), (b"old", 0), (b"o", -5)])
def test_what_does_not_fit_is_left_out(before: tuple[bytes, int]) -> None:
    assert pack_red(111, b"newest", before) == b"\x6fnewest"


@given(
    st.binary(max_size=1023), st.binary(max_size=1275), st.integers(1, 16_383), st.integers(0, 127)
)
def test_what_is_packed_is_parsed(old: bytes, new: bytes, ticks: int, kind: int) -> None:
    assert parse_red(pack_red(kind, new, (old, ticks)), kind) == [(old, ticks), (new, 0)]


@given(st.binary(max_size=200))
def test_any_bytes_are_blocks_or_a_value_error(data: bytes) -> None:
    try:
        blocks = parse_red(data, 111)
    except ValueError:
        return
    assert 1 <= len(blocks) <= MAX_BLOCKS + 1
    assert sum(len(block) for block, _ in blocks) < len(data)
    assert blocks[-1][1] == 0


@pytest.mark.parametrize(
    "wrong", [b"", b"\x60new", EXAMPLE[:6], EXAMPLE[:4], b"\xe0" + EXAMPLE[1:],
              bytes([0x80 | 111, 0, 0, 0]) * 20 + b"\x6f"],
)  # fmt: skip
def test_malformed_packets_are_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="RED"):
        parse_red(wrong, 111)


def test_it_is_used_only_around_the_codec_that_was_negotiated() -> None:
    opus = RTCRtpCodecParameters("audio/opus", 48_000, 2, 111)
    around = RTCRtpCodecParameters("audio/red", 48_000, 2, 63, [], {"111/111": None})
    other = RTCRtpCodecParameters("audio/red", 48_000, 2, 64, [], {"9/9": None})
    found = find_red([other, around], opus)
    assert found is not None
    assert found.payloadType == 63
    assert find_red([other], opus) is None


def test_a_copy_is_taken_once_and_only_where_something_is_missing() -> None:
    buffer = AudioReceiveBuffer(OpusDecoder().decode)
    silence = b"\xf0\xff\xfe"
    buffer.recover_packet(4, 4 * 480, silence, 0.99)
    assert buffer.poll(0.99) == [], "nothing has begun yet"
    for k in (5, 6, 8):
        now = 1.0 + k / 100
        buffer.recover_packet(k - 1, (k - 1) * 480, silence, now)
        buffer.push(k, k * 480, silence, now)
    assert sum(len(block.pcm) for block in buffer.poll(1.08)) == 4 * 480
    assert buffer.stats.recovered_samples == 480
    assert buffer.stats.concealed_samples == buffer.stats.lost_packets == 0
    assert buffer.stats.duplicate_packets == buffer.stats.late_packets == 0
