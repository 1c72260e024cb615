"""What happens to a voice on its way to us: throat, room, noise, microphone, line.

Every function takes and gives float32 (n,) at 16 kHz, keeps the length and moves nothing in
time, so the mouth targets stay exact. `worn` draws a random chain of them; `trainer.voices.throat`
changes the speaker.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from models.rates import MODEL_RATE_HZ
from trainer.voices.throat import resample, throat

F32 = NDArray[np.float32]
#: Bits per second of the lines that `worn` speaks through.
OPUS_RATES = (6_000, 8_000, 12_000, 16_000, 24_000)


def equalise(rng: np.random.Generator, samples: F32, spread_db: float = 5.0) -> F32:
    """A smooth random curve over the logarithm of frequency, and sometimes a narrow band."""
    spectrum = np.fft.rfft(samples)
    hz = np.linspace(0, MODEL_RATE_HZ / 2, len(spectrum))
    knots = np.array([60, 200, 500, 1200, 2500, 5000, 8000.0])
    level_db = np.interp(np.log(hz + 30), np.log(knots), rng.normal(0, spread_db, len(knots)))
    if rng.random() < 0.15:
        low, high = rng.uniform(150, 400), rng.uniform(3000, 4500)
        level_db -= 40 * np.clip((low - hz) / low, 0, 1) + 40 * np.clip((hz - high) / high, 0, 1)
    return np.fft.irfft(spectrum * 10 ** (level_db / 20), len(samples)).astype(np.float32)


def reverberate(rng: np.random.Generator, samples: F32) -> F32:
    """Direct sound, a few early reflections and a diffuse tail of .1 to .7 s."""
    decay_s = rng.uniform(0.1, 0.7)
    length = int(decay_s * MODEL_RATE_HZ)
    time = np.arange(length) / MODEL_RATE_HZ
    tail = rng.standard_normal(length) * 10 ** (-3 * time / decay_s)
    tail[: int(0.01 * MODEL_RATE_HZ)] = 0
    tail *= rng.uniform(0.1, 0.6) / np.sqrt((tail**2).sum() + 1e-9)
    early = rng.integers(20, int(0.03 * MODEL_RATE_HZ), 4)
    tail[early] += rng.uniform(-0.3, 0.3, 4)
    tail[0] = 1.0
    size = len(samples) + length
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[
        : len(samples)
    ].astype(np.float32)


def noise(rng: np.random.Generator, samples: F32) -> F32:
    """Coloured noise with a slow swell, or hum, 5 to 40 dB below the voice."""
    if rng.random() < 0.2:
        time = np.arange(len(samples)) / MODEL_RATE_HZ
        base = rng.choice([50.0, 60.0])
        sound = sum(
            rng.uniform(0, 1) * np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6))
            for k in range(1, 9)
        )
    else:
        hz = np.fft.rfftfreq(len(samples), 1 / MODEL_RATE_HZ)
        tilt = (hz + 50) ** -rng.uniform(0, 1.2)
        shape = rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz))
        sound = np.fft.irfft(tilt * shape, len(samples))
    knots = max(2, len(samples) // MODEL_RATE_HZ)
    swell = np.interp(
        np.arange(len(samples)), np.linspace(0, len(samples), knots), rng.uniform(0.3, 1, knots)
    )
    sound = np.asarray(sound) * swell
    level = np.sqrt((samples**2).mean() / ((sound**2).mean() + 1e-12))
    ratio = 10 ** (-rng.uniform(5, 40) / 20)
    return np.asarray(samples + level * ratio * sound, np.float32)


def through_opus(samples: F32, bit_rate: int, *, lost: NDArray[np.bool_] | None = None) -> F32:
    """Encode and decode as the line does (libopus, voip, 20 ms), its delay removed.

    `lost` marks 20-ms packets that never arrive; they sound as the silence before them.
    """
    encoder = av.CodecContext.create("libopus", "w")
    assert isinstance(encoder, av.AudioCodecContext)
    encoder.sample_rate, encoder.layout, encoder.format = MODEL_RATE_HZ, "mono", "flt"
    encoder.bit_rate = bit_rate
    encoder.time_base = Fraction(1, MODEL_RATE_HZ)
    encoder.options = {"application": "voip", "frame_duration": "20"}
    encoder.open()
    decoder = av.CodecContext.create("libopus", "r")
    assert isinstance(decoder, av.AudioCodecContext)
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    padded = np.pad(samples, (0, 320 * 8 - len(samples) % 320))
    packets: list[Any] = []
    for at in range(0, len(padded), 320):
        frame = av.AudioFrame.from_ndarray(padded[None, at : at + 320], "flt", "mono")
        frame.sample_rate, frame.pts = MODEL_RATE_HZ, at
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    parts = []
    for i, packet in enumerate(packets):
        for frame in decoder.decode(packet):
            data = frame.to_ndarray()
            sound = data.reshape(-1, data.shape[-1])[0].astype(np.float32)
            if np.issubdtype(data.dtype, np.integer):
                sound /= 32768
            parts.append(0 * sound if lost is not None and i < len(lost) and lost[i] else sound)
    out = resample(np.concatenate(parts).astype(np.float32), 48_000)
    return _in_step(out, samples)


def _in_step(late: F32, original: F32, most: int = 800) -> F32:
    """Take off the constant delay of `late`, found by cross-correlation, and keep the length."""
    delay = _delay(late, original, most) if np.abs(original).max() > 0 else 0
    return _advance(late, max(delay, 0), len(original))


def _delay(late: NDArray[np.floating], original: NDArray[np.floating], most: int) -> int:
    """How many samples `late` is behind `original`, within plus or minus `most`."""
    size = 1 << (len(original) + 2 * most).bit_length()
    cross = np.fft.irfft(
        np.fft.rfft(late[: len(original) + most], size) * np.conj(np.fft.rfft(original, size)),
        size,
    )
    near = np.concatenate([cross[-most:], cross[: most + 1]])
    return int(np.argmax(near)) - most


def _advance(samples: F32, count: int, length: int) -> F32:
    """Drop `count` samples at the beginning (add silence where negative) and keep `length`."""
    moved = np.pad(samples, (max(-count, 0), 0))[max(count, 0) :][:length]
    return np.pad(moved, (0, length - len(moved))).astype(np.float32)


def other_speaker(rng: np.random.Generator) -> tuple[float, float]:
    """Factors of pitch and vocal tract from a child's to a giant's.

    The pitch differs more between people than the tract, and both mostly together: women against
    men 1.7 and 1.17.
    """
    pitch = float(np.exp(rng.uniform(np.log(0.72), np.log(1.9))))
    tract = pitch**0.3 * float(np.exp(rng.uniform(-0.07, 0.07)))
    return pitch, tract


def worn(rng: np.random.Generator, samples: F32) -> F32:
    """A random voice, room, microphone, noise, level and line; never clips beyond [-1, 1]."""
    out = samples
    if rng.random() < 0.6:
        out = throat(out, *other_speaker(rng))
    if rng.random() < 0.8:
        out = equalise(rng, out)
    if rng.random() < 0.4:
        out = reverberate(rng, out)
    if rng.random() < 0.6:
        out = noise(rng, out)
    peak = float(np.abs(out).max()) + 1e-6
    out = np.clip(out / peak * rng.uniform(0.1, 1.0), -1, 1).astype(np.float32)
    if rng.random() < 0.35:
        lost = rng.random(len(out) // 320 + 8) < rng.choice([0.0, 0.02])
        out = through_opus(out, int(rng.choice(OPUS_RATES)), lost=lost)
    return out
