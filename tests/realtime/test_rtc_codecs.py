"""Opus, VP8 and concealment against real codecs."""

from __future__ import annotations

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from realtime.rtc import libvpx
from realtime.rtc.conceal import FADE_MS, Concealer
from realtime.rtc.opus import OpusDecoder, OpusEncoder
from realtime.rtc.video_codec import VIDEO_PACKET_BYTES
from realtime.rtc.vp8 import Vp8Encoder, packetize_vp8, parse_vp8

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


@pytest.mark.parametrize("direct", [True, False])
def test_a_bad_opus_packet_is_a_value_error(direct: bool) -> None:
    decoder = OpusDecoder(direct=direct)
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


def test_a_new_size_opens_a_new_encoder() -> None:
    encoder = Vp8Encoder(500_000)
    assert encoder.encode(picture(0), 0, key=False).key
    assert encoder.encode(picture(0, 128), 1, key=False).key
    assert not encoder.encode(picture(1, 128), 2, key=False).key
    encoder.close()
    assert encoder.encode(picture(2, 128), 3, key=False).key


def test_libvpx_itself_is_at_hand() -> None:
    assert libvpx.reason() is None
    assert Vp8Encoder(1).in_place


@pytest.mark.parametrize("direct", [True, False])
def test_a_new_bit_rate_is_kept_and_in_place_costs_no_key_frame(direct: bool) -> None:
    rng = np.random.default_rng(1)
    frames = [rng.integers(80, 120, (384, 256), np.uint8) for _ in range(10)]
    encoder = Vp8Encoder(2_000_000, direct=direct)
    sizes, keys = [], []
    for k in range(150):
        encoder.bitrate = 2_000_000 if k < 50 else 600_000 if k < 100 else 1_500_000
        encoded = encoder.encode(frames[k % 10], k, key=k == 0)
        sizes.append(sum(map(len, encoded.payloads)) * 8 * 25)
        keys.append(encoded.key)
    assert [k for k, key in enumerate(keys) if key] == ([0] if direct else [0, 50, 100])
    rates = [np.mean(sizes[at : at + 30]) for at in (15, 65, 115)]
    assert rates[1] < 0.75 * rates[0]
    assert rates[2] > 1.2 * rates[1]


def test_a_moved_layout_or_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    libvpx._load.cache_clear()
    monkeypatch.setitem(libvpx._DEFAULTS, "max_q", 62)
    assert "max_q" in (libvpx.reason() or "")
    libvpx._load.cache_clear()
    monkeypatch.setattr(libvpx, "library_paths", lambda name: [])
    assert "no libvpx" in (libvpx.reason() or "")
    encoder = Vp8Encoder(300_000)
    assert encoder.name == "libvpx by FFmpeg"
    assert encoder.encode(picture(0), 0, key=True).key
    with pytest.raises(libvpx.LibvpxError):
        libvpx.LibvpxEncoder(64, 64, 100_000, 3600)
    monkeypatch.undo()
    libvpx._load.cache_clear()
    assert libvpx.reason() is None


def test_libvpx_refuses_with_words() -> None:
    encoder = libvpx.LibvpxEncoder(64, 64, 100_000, 3600)
    with pytest.raises(libvpx.LibvpxError, match="size"):
        encoder.encode(picture(0), 0, key=False)
    with pytest.raises(libvpx.LibvpxError, match="refused"):
        libvpx.LibvpxEncoder(0, 64, 100_000, 3600)
    encoder.close()
    encoder.close()


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
