"""H.264 for peers without VP8: payloads, encoder settings, and the way through a decoder."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from realtime.rtc.h264 import (
    START_CODE,
    H264Encoder,
    packetize_h264,
    parse_h264,
    split_annex_b,
)
from realtime.rtc.video_codec import VIDEO_PACKET_BYTES, even_parts

pytestmark = pytest.mark.unit


def picture(step: int, size: int = 256) -> NDArray[np.uint8]:
    i420 = np.full((size * 3 // 2, size), 128, np.uint8)
    i420[:size] = np.roll(np.arange(size) % 256, step)[None]
    return i420


def noise(seed: int, size: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (size * 3 // 2, size), np.uint8)


def test_parameter_sets_are_aggregated_and_a_large_slice_is_fragmented() -> None:
    sps, pps, idr = b"\x67\x42\xe0\x1f", b"\x68\xce", b"\x65" + bytes([7]) * 2500
    payloads = packetize_h264(b"".join(START_CODE + unit for unit in (sps, pps, idr)))
    assert payloads[0].hex() == "7800046742e01f000268ce"
    assert [p[:2].hex() for p in payloads[1:]] == ["7c85", "7c05", "7c45"]
    parsed = [parse_h264(p) for p in payloads]
    assert b"".join(part for part, _ in parsed) == START_CODE + START_CODE.join([sps, pps, idr])
    assert [key for _, key in parsed] == [True, True, False, False]


@given(
    st.lists(
        st.tuples(st.sampled_from([1, 5, 6, 7, 8, 9]), st.binary(min_size=1, max_size=4000)),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_any_access_unit_comes_through_in_packets_that_fit(units: list[tuple[int, bytes]]) -> None:
    nals = []
    for kind, body in units:
        # Start codes cannot occur inside a unit: encoders put 3s between the zeros.
        safe = body.replace(b"\x00", b"\x03")
        nals.append(bytes([0x60 | kind]) + safe)
    payloads = packetize_h264(b"".join(START_CODE + nal for nal in nals))
    assert all(len(payload) <= VIDEO_PACKET_BYTES for payload in payloads)
    joined = b"".join(parse_h264(payload)[0] for payload in payloads)
    assert split_annex_b(joined) == nals


@pytest.mark.parametrize("bad", ["1c", "78", "780005aa", "780000", "19aa", "00", "9d0102"])
def test_malformed_payloads_are_value_errors_or_empty(bad: str) -> None:
    data = bytes.fromhex(bad)
    if bad == "78":
        assert parse_h264(data) == (b"", False)
        return
    with pytest.raises(ValueError, match=r"FU-A|STAP-A|payload type"):
        parse_h264(data)


def test_parts_are_even_and_nothing_is_no_part() -> None:
    assert even_parts(b"", 10) == []
    assert [len(p) for p in even_parts(bytes(25), 10)] == [8, 8, 9]


def test_an_encoded_stream_decodes_and_has_key_frames_only_when_asked() -> None:
    encoder = H264Encoder(2_000_000)
    decoder = av.CodecContext.create("h264", "r")
    keys = []
    for k in range(8):
        encoded = encoder.encode(picture(k * 9), k, key=k in (0, 5))
        keys.append(encoded.key)
        assert encoded.timestamp == k * 3600
        data = b"".join(parse_h264(payload)[0] for payload in encoded.payloads)
        frames = decoder.decode(av.Packet(data))
        assert len(frames) == 1, "constrained baseline is decoded without waiting"
        assert isinstance(frames[0], av.VideoFrame)
        error = frames[0].to_ndarray()[:256].astype(int) - picture(k * 9)[:256]
        assert np.abs(error).mean() < 12
    assert keys == [k in (0, 5) for k in range(8)]
    units = split_annex_b(
        b"".join(parse_h264(p)[0] for p in encoder.encode(picture(1), 9, True).payloads)
    )
    sps = next(unit for unit in units if unit[0] & 0x1F == 7)
    assert sps[1] == 66, "baseline"
    assert sps[2] & 0x40, "constrained"
    assert sps[3] <= 31


def test_the_bit_rate_follows_in_place_and_a_frame_is_bounded_by_the_rate_buffer() -> None:
    encoder = H264Encoder(2_000_000)
    sizes, keys = [], []
    for k in range(120):
        if k == 60:
            encoder.bitrate = 700_000
        encoded = encoder.encode(noise(k // 2), k, key=k == 0)
        sizes.append(sum(map(len, encoded.payloads)))
        keys.append(encoded.key)
    assert sum(keys) == 1
    first, then = sum(sizes[10:60]) * 8 * 25 / 50, sum(sizes[80:]) * 8 * 25 / 40
    assert then < 0.6 * first
    encoder.bitrate = 100_000
    assert encoder.encode(noise(1), 120, key=False).key, "far below the rate buffer it is made for"
    encoder.close()
    assert encoder.encode(noise(1), 121, key=False).key
