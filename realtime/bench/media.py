"""What the client says and shows: a recording, or something speech-like; a video or none."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TypeVar

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from models.rates import FPS, FRAME_SAMPLES_48K, WIRE_RATE_HZ
from realtime.bench.errors import BenchError

Pcm = NDArray[np.int16]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
S = TypeVar("S", bound=np.generic)

#: Arithmetic on sound is done at a sixth of the rate: 0.125 ms is fine enough, memory small.
THIN = 6
THIN_HZ = WIRE_RATE_HZ // THIN
MAX_PICTURES_S = 60
MAX_WIDTH = 640


class Voice:
    """A recording that is said again and again. Sample 0 is when the client begins; before
    it there is silence."""

    def __init__(self, pcm: Pcm) -> None:
        self.pcm = pcm

    def slice(self, start: int, count: int) -> Pcm:
        """(count,) int16 from 48 kHz sample `start` on."""
        return _looped(self.pcm, start, count)

    def thin(self, start: int, count: int) -> Floats:
        """(count,) at 8 kHz from 8 kHz sample `start` on."""
        return _looped(self._thin, start, count)

    def energy(self, upto: NDArray[np.int64]) -> Floats:
        """Energy of everything said before each sample."""
        upto = np.maximum(upto, 0)
        turns, rest = np.divmod(upto, len(self.pcm))
        return np.asarray(turns * self._cumulative[-1] + self._cumulative[rest])

    @cached_property
    def _cumulative(self) -> Floats:
        squares = self.pcm.astype(np.float64) ** 2
        return np.concatenate([[0.0], np.cumsum(squares)])

    @cached_property
    def _thin(self) -> Floats:
        whole = len(self.pcm) // THIN * THIN
        return np.asarray(self.pcm[:whole].reshape(-1, THIN).astype(np.float64).mean(1))


def _looped(line: NDArray[S], start: int, count: int) -> NDArray[S]:
    at = np.arange(start, start + count)
    taken = line[at % len(line)]
    taken[at < 0] = 0
    return taken


def load_voice(path: Path | None) -> Voice:
    """Read a recording, mono at 48 kHz; 12 s of something speech-like without. BenchError."""
    if path is None:
        return Voice(speech_like(12 * WIRE_RATE_HZ))
    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler("s16", "mono", WIRE_RATE_HZ)
            frames = [
                out for frame in container.decode(audio=0) for out in resampler.resample(frame)
            ]
            frames += resampler.resample(None)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise BenchError(f"{path} holds no sound that can be read.") from error
    pcm = np.concatenate([np.asarray(frame.to_ndarray(), np.int16)[0] for frame in frames])
    # Whole video frames, so that a loop's seam falls where a frame begins.
    whole = max(1, len(pcm) // FRAME_SAMPLES_48K) * FRAME_SAMPLES_48K
    return Voice(np.resize(pcm, whole))


def speech_like(samples: int) -> Pcm:
    """Voiced bursts with a gliding pitch and pauses: enough for a mouth to follow.

    (samples,) int16. Every third burst ends with 0.6 s of silence.
    """
    rng = np.random.default_rng(7)
    at = np.arange(samples) / WIRE_RATE_HZ
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.4 * at)
    phase = 2 * np.pi * np.cumsum(pitch) / WIRE_RATE_HZ
    buzz = sum(np.sin(k * phase) / k for k in range(1, 16))
    gate = np.zeros(samples)
    place = burst = 0
    while place < samples:
        on, off = (rng.uniform(0.12, 0.4, 2) * WIRE_RATE_HZ).astype(int)
        gate[place : place + on] = rng.uniform(0.5, 1.0)
        burst += 1
        place += on + (off if burst % 3 else int(0.6 * WIRE_RATE_HZ))
    gate = np.convolve(gate, np.hanning(960) / 480, "same")
    noise = rng.normal(0, 0.05, samples)
    return np.asarray(6000 * (buzz + noise) * gate, np.int16)


def load_pictures(path: Path | None, seconds: float) -> list[Pixels]:
    """I420 pictures of a video at 25 fps, at most 640 wide and a minute. Raises BenchError."""
    if path is None:
        return []
    pictures: list[Pixels] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                due = len(pictures) / FPS
                if frame.time + 1e-6 >= due:
                    pictures.append(_i420(frame))
                if len(pictures) >= min(seconds, MAX_PICTURES_S) * FPS:
                    break
    except (av.FFmpegError, IndexError, OSError) as error:
        raise BenchError(f"{path} holds no pictures that can be read.") from error
    return pictures


def _i420(frame: av.VideoFrame) -> Pixels:
    scale = min(1.0, MAX_WIDTH / frame.width)
    width, height = (int(n * scale) // 2 * 2 for n in (frame.width, frame.height))
    rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2YUV_I420), np.uint8)


class ThinLine:
    """The heard sound at 8 kHz, as one line that grows; blocks may have any length."""

    def __init__(self) -> None:
        self._chunks: list[NDArray[np.float32]] = []
        self._rest: Pcm = np.zeros(0, np.int16)
        self.first: int | None = None
        """48 kHz index of the first sample."""

    def append(self, pcm: Pcm, index: int) -> None:
        """Add samples that follow the last ones; `index` counts for the first time only."""
        if self.first is None:
            self.first = index
        line = np.concatenate([self._rest, pcm])
        whole = len(line) // THIN * THIN
        self._chunks.append(line[:whole].reshape(-1, THIN).mean(1, dtype=np.float32))
        self._rest = line[whole:]

    def samples(self) -> Floats:
        """(n,) the whole line."""
        if not self._chunks:
            return np.zeros(0)
        return np.concatenate(self._chunks).astype(np.float64)
