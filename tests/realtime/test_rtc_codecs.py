"""Opus, VP8 and concealment against real codecs."""

from __future__ import annotations

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from realtime.rtc.codecs import (
    VIDEO_PACKET_BYTES,
    OpusDecoder,
    OpusEncoder,
    Vp8Encoder,
    packetize_vp8,
    parse_vp8,
)
from realtime.rtc.conceal import FADE_MS, Concealer

pytestmark = pytest.mark.unit


def sine(samples: int, hz: float = 200.0, start: int = 0) -> NDArray[np.int16]:
    at = np.arange(start, start + samples)
    return (8000 * np.sin(2 * np.pi * hz * at / 48000)).astype(np.int16)


def picture(step: int, size: int = 256) -> NDArray[np.uint8]:
    i420 = np.full((size * 3 // 2, size), 128, np.uint8)
    i420[:size] = np.roll(np.arange(size) % 256, step)[None]
    return i420


def test_opus_timestamps_name_the_capture_time_of_what_is_heard(rng: np.random.Generator) -> None:
    noise = rng.integers(-8000, 8000, 48000).astype(np.float64)
    smooth = np.convolve(noise, np.ones(24) / 24, "same").astype(np.int16)
    encoder, decoder = OpusEncoder(), OpusDecoder()
    line = np.zeros(48000 + 2000, np.int16)
    start = 7 * 1920
    for at in range(0, 48000, 960):
        for payload, stamp in encoder.encode(smooth[at : at + 960], start + at):
            pcm = decoder.decode(payload)
            assert len(pcm) == 480
            line[stamp - start + 480 : stamp - start + 960] = pcm
    heard, said = line[480 + 4800 : 480 + 40000].astype(float), smooth.astype(float)
    scores = [float(heard @ said[4800 + lag : 40000 + lag]) for lag in range(-200, 201)]
    assert abs(int(np.argmax(scores)) - 200) <= 2


def test_opus_takes_any_chunks_and_restarts_after_a_jump() -> None:
    encoder = OpusEncoder()
    assert encoder.encode(sine(300), 0) == []
    assert len(encoder.encode(sine(700), 300)) == 2
    (_, stamp), *_ = encoder.encode(sine(480), 96_000)
    assert abs(stamp - 96_000) < 1000


def test_a_bad_opus_packet_is_a_value_error() -> None:
    decoder = OpusDecoder()
    for bad in (b"", b"\xff\xff\xff", b"\x03"):
        with pytest.raises(ValueError, match="Opus"):
            decoder.decode(bad)
    payload, _ = OpusEncoder().encode(sine(480), 0)[0]
    assert len(decoder.decode(payload)) == 480


def test_vp8_makes_key_frames_only_when_asked_and_survives_a_reused_picture() -> None:
    encoder = Vp8Encoder(500_000)
    same = picture(0)
    keys = [encoder.encode(same, k, key=k in (0, 5)).key for k in range(10)]
    assert keys == [k in (0, 5) for k in range(10)]
    assert encoder.encode(picture(3), 20, key=False).timestamp == 20 * 3600


def test_vp8_payloads_fit_packets_and_join_to_what_was_encoded() -> None:
    encoder = Vp8Encoder(2_000_000)
    decoder = av.CodecContext.create("libvpx", "r")
    for k in range(4):
        encoded = encoder.encode(picture(k * 9), k, key=k == 0)
        assert all(len(payload) <= VIDEO_PACKET_BYTES for payload in encoded.payloads)
        parsed = [parse_vp8(payload) for payload in encoded.payloads]
        assert [key for _, key in parsed] == [k == 0] + [False] * (len(parsed) - 1)
        frames = decoder.decode(av.Packet(b"".join(data for data, _ in parsed)))
        assert isinstance(frames[0], av.VideoFrame)
        luma = frames[0].to_ndarray()[:256].astype(int)
        assert np.abs(luma - picture(k * 9)[:256]).mean() < 12


def test_vp8_size_and_rate_changes_open_a_new_encoder() -> None:
    encoder = Vp8Encoder(500_000)
    assert encoder.encode(picture(0), 0, key=False).key
    assert encoder.encode(picture(0, 128), 1, key=False).key
    encoder.bitrate = 300_000
    assert encoder.encode(picture(1, 128), 2, key=False).key
    assert not encoder.encode(picture(2, 128), 3, key=False).key


def test_vp8_descriptor_edges() -> None:
    assert packetize_vp8(b"", 1) == []
    assert parse_vp8(b"") == (b"", False)
    with pytest.raises(ValueError, match="truncated"):
        parse_vp8(b"\x90")


def test_concealment_continues_the_pitch_then_fades_to_silence() -> None:
    concealer = Concealer()
    concealer.push(sine(4800))
    made = concealer.conceal(480)
    true = sine(480, start=4800)
    assert np.corrcoef(made, true)[0, 1] > 0.95
    rest = concealer.conceal(48 * FADE_MS)
    assert np.abs(rest[-480:].astype(int)).max() == 0
    resumed = concealer.push(sine(960, start=4800 + 480 + 48 * FADE_MS))
    assert abs(int(resumed[0])) < 500
    assert np.array_equal(resumed[200:], sine(960, start=4800 + 480 + 48 * FADE_MS)[200:])


def test_concealment_of_nothing_is_silence() -> None:
    assert not Concealer().conceal(960).any()
