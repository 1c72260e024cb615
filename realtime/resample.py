"""48 kHz from the wire -> 16 kHz float for the networks, streaming, in C (libswresample).

libswresample aligns its output with its input exactly but holds the newest
`DELAY_SAMPLES` back until its filter has seen what follows. Audio comes in packets, so
waiting for those would cost a whole packet (10-20 ms) at every frame. Instead the output
starts with `DELAY_SAMPLES` zeros: output sample n shows capture time n / 16000 s minus
`DELAY_MS`, and is there as soon as input sample 3 n + 2 is. A shift of 0.75 ms is a
fiftieth of a video frame; nothing that looks at 80 ms windows can tell.
"""

from __future__ import annotations

import av
import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.rates import MODEL_RATE_HZ, WIRE_RATE_HZ

Pcm = NDArray[np.int16]

#: Taps of the filter at 16 kHz: 24 are flat to 6 kHz and 13 dB down at the first alias.
_FILTER_SIZE = 24
#: What libswresample holds back: half the filter, in samples at 16 kHz.
DELAY_SAMPLES = _FILTER_SIZE // 2
DELAY_MS = 1000 * DELAY_SAMPLES / MODEL_RATE_HZ
_RATIO = WIRE_RATE_HZ // MODEL_RATE_HZ


def to_mono(audio: Pcm | av.AudioFrame) -> Pcm:
    """(n,) or (n, 2) int16, or a 16-bit AudioFrame at 48 kHz -> (n,) int16 mono.

    Raises ValueError for another dtype, shape or sample rate.
    """
    pcm = _samples(audio) if isinstance(audio, av.AudioFrame) else audio
    if pcm.dtype != np.int16 or pcm.ndim > 2 or (pcm.ndim == 2 and pcm.shape[1] not in (1, 2)):
        raise ValueError(f"audio must be int16 (n,) or (n, 2), got {pcm.dtype} {pcm.shape}")
    if pcm.ndim == 1:
        return pcm
    if pcm.shape[1] == 1:
        return np.ascontiguousarray(pcm[:, 0])
    return ((pcm[:, 0].astype(np.int32) + pcm[:, 1]) >> 1).astype(np.int16)


def _samples(frame: av.AudioFrame) -> Pcm:
    """(n, channels) of a frame; packed ones come as (1, n * channels), planar as (channels, n)."""
    if frame.sample_rate != WIRE_RATE_HZ or frame.format.name not in ("s16", "s16p"):
        raise ValueError(
            f"audio must be 16-bit at {WIRE_RATE_HZ} Hz, "
            f"got {frame.format.name} at {frame.sample_rate}"
        )
    data = np.asarray(frame.to_ndarray(), np.int16)
    return data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels)


class Resampler48To16:
    """Streaming; the result does not depend on how the input is cut into chunks.

    Belongs to one thread. Roughly 60 us per packet.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything; the past is silence and the next sample is number 0."""
        self._swr = av.AudioResampler(
            format="flt",
            layout="mono",
            rate=MODEL_RATE_HZ,
            options={"filter_size": str(_FILTER_SIZE)},
        )
        # Past silence fills the filter, so that from here on 3 samples in give 1 out.
        primed = self._run(np.zeros(_RATIO * 4 * _FILTER_SIZE, np.int16))
        if len(primed) != 4 * _FILTER_SIZE - DELAY_SAMPLES:
            raise RuntimeError(f"libswresample's delay is not {DELAY_SAMPLES} samples any more")

    def push(self, pcm: Pcm | av.AudioFrame) -> Array:
        """(n,) or (n, 2) int16 at 48 kHz -> (k,) float32 in [-1, 1] at 16 kHz.

        After N input samples in total, exactly N // 3 output samples have come out.
        Raises ValueError for another dtype, shape or sample rate.
        """
        mono = to_mono(pcm)
        return self._run(mono) if len(mono) else np.empty(0, np.float32)

    def _run(self, mono: Pcm) -> Array:
        parts = [out.to_ndarray()[0] for out in self._swr.resample(_frame(mono))]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _frame(mono: Pcm) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono)[None], "s16", "mono")
    frame.sample_rate = WIRE_RATE_HZ
    return frame
