"""Forward error correction of the microphone: a lost packet comes from the next one."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from realtime.rtc import libopus
from realtime.rtc.audio_receive import AudioReceiveBuffer, opus_samples
from realtime.rtc.opus import OpusDecoder

pytestmark = pytest.mark.unit

PACKET = 960


def speech(path: Path, seconds: float) -> NDArray[np.int16]:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(int(48_000 * seconds)), np.int16)


def browser_packets(pcm: NDArray[np.int16], *, copies: bool) -> list[bytes]:
    """Opus as a browser makes it for speech on a lossy path: 20 ms, in-band FEC."""
    codec = av.CodecContext.create("libopus", "w")
    codec.bit_rate = 24_000
    codec.format, codec.layout, codec.sample_rate = av.AudioFormat("s16"), "mono", 48_000
    codec.options = {
        "application": "voip", "frame_duration": "20", "fec": "1" if copies else "0",
        "packet_loss": "20" if copies else "0",
    }  # fmt: skip
    packets = []
    for at in range(0, len(pcm) - PACKET + 1, PACKET):
        frame = av.AudioFrame.from_ndarray(pcm[None, at : at + PACKET], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), at
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return packets


def heard(packets: list[bytes], lost: set[int]) -> tuple[NDArray[np.int16], AudioReceiveBuffer]:
    decoder = OpusDecoder()
    buffer = AudioReceiveBuffer(decoder.decode, recover=decoder.recover)
    out = []
    for k, payload in enumerate(packets):
        if k not in lost:
            buffer.push(k, k * PACKET, payload, k * 0.020)
        out += buffer.poll(k * 0.020 + 0.015)
    return np.concatenate([block.pcm for block in out]), buffer


def test_libopus_is_at_hand() -> None:
    assert libopus.reason() is None


def test_lost_speech_is_recovered_from_the_packet_after(speech_48k: Path) -> None:
    said = speech(speech_48k, 3.5)
    lost = set(range(10, 170, 7))
    whole, _ = heard(browser_packets(said, copies=True), set())
    recovered, buffer = heard(browser_packets(said, copies=True), lost)
    plain, _ = heard(browser_packets(said, copies=False), set())
    concealed, without = heard(browser_packets(said, copies=False), lost)
    assert len(whole) == len(recovered) == len(concealed)
    assert buffer.stats.lost_packets == len(lost)
    # In pauses there is nothing to copy.
    assert buffer.stats.recovered_samples >= 0.7 * len(lost) * PACKET
    assert buffer.stats.recovered_samples + buffer.stats.concealed_samples == len(lost) * PACKET
    assert without.stats.recovered_samples == 0

    def error(got: NDArray[np.int16], true: NDArray[np.int16]) -> float:
        at = np.concatenate([np.arange(k * PACKET, (k + 1) * PACKET) for k in lost])
        difference = got[at].astype(float) - true[at]
        return float(np.sqrt((difference**2).mean() / (true[at].astype(float) ** 2).mean()))

    assert error(recovered, whole) < 0.7 * error(concealed, plain)


def test_of_two_lost_packets_the_second_is_recovered(speech_48k: Path) -> None:
    packets = browser_packets(speech(speech_48k, 1.0), copies=True)
    _, buffer = heard(packets, {20, 21})
    assert buffer.stats.recovered_samples == PACKET
    assert buffer.stats.concealed_samples == PACKET


@given(st.binary(max_size=400), st.sampled_from([120, 480, 960, 2880]))
def test_random_bytes_are_sound_nothing_or_a_value_error(data: bytes, samples: int) -> None:
    decoder = OpusDecoder()
    copy = decoder.recover(data, samples)
    assert copy is None or len(copy) == samples
    try:
        pcm = decoder.decode(data)
    except ValueError:
        return
    assert 0 < len(pcm) <= libopus.MAX_SAMPLES
    assert opus_samples(data) in (0, len(pcm))


def test_without_libopus_the_other_decoder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    libopus._load.cache_clear()
    monkeypatch.setattr(libopus, "library_paths", lambda name: [])
    assert "no libopus" in (libopus.reason() or "")
    with pytest.raises(RuntimeError, match="libopus"):
        libopus.LibopusDecoder()
    decoder = OpusDecoder()
    assert decoder.recover(b"x", 480) is None
    payload = browser_packets(np.zeros(PACKET * 2, np.int16), copies=False)[0]
    assert len(decoder.decode(payload)) == PACKET
    monkeypatch.undo()
    libopus._load.cache_clear()
    assert libopus.reason() is None
