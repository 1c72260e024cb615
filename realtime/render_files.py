"""Files of `visavis render`: sound of any format in, an MP4 out."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from numpy.typing import NDArray

from models.rates import FPS, FRAME_TICKS_90K, VIDEO_CLOCK_HZ, WIRE_RATE_HZ

Pcm = NDArray[np.int16]
Pixels = NDArray[np.uint8]
_TICK, _SAMPLE = Fraction(1, VIDEO_CLOCK_HZ), Fraction(1, WIRE_RATE_HZ)
SYNTHETIC_NOTE = (
    "Synthetic video: made by Visavis from a still portrait; the person shown did not say this."
)


class RenderError(RuntimeError):
    """The video cannot be made; the message is a sentence for a person."""


class AudioFile:
    """Sound of any file, as 48 kHz int16. Raises RenderError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._container = av.open(str(path))
        except FileNotFoundError as error:
            raise RenderError(f"There is no file {path}.") from error
        except (OSError, av.FFmpegError) as error:
            raise RenderError(f"{path.name} cannot be read as sound.") from error
        if not self._container.streams.audio:
            self._container.close()
            raise RenderError(f"{path.name} has no sound.")
        self._stream = self._container.streams.audio[0]
        self.channels = min(2, self._stream.channels or 1)

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._container.close()

    @property
    def frames(self) -> int | None:
        """Video frames that the sound lasts, as far as the file says."""
        if self._stream.duration and self._stream.time_base:
            return round(float(self._stream.duration * self._stream.time_base) * FPS)
        duration = self._container.duration
        return round(duration / av.time_base * FPS) if duration else None

    def chunks(self) -> Iterator[Pcm]:
        """(n, channels) int16, in order. A damaged end is the end."""
        layout = "stereo" if self.channels == 2 else "mono"
        resampler = av.AudioResampler(format="s16", layout=layout, rate=WIRE_RATE_HZ)
        count = 0
        try:
            for frame in self._container.decode(self._stream):
                frame.pts = None
                for out in resampler.resample(frame):
                    count += out.samples
                    yield _interleaved(out)
            for out in resampler.resample(None):
                yield _interleaved(out)
        except (av.FFmpegError, ValueError) as error:
            if count == 0:
                raise RenderError(f"{self._path.name} cannot be decoded.") from error
        if count == 0:
            raise RenderError(f"{self._path.name} has no sound.")


def _interleaved(frame: av.AudioFrame) -> Pcm:
    return np.asarray(frame.to_ndarray(), np.int16).reshape(-1, frame.layout.nb_channels)


class Mp4Writer:
    """H.264 and AAC; frame f at f / 25 s, sound from 0. Closes the file on leaving."""

    def __init__(self, path: Path, size: int, channels: int) -> None:
        options = {"movflags": "+faststart+use_metadata_tags"}
        self._container = av.open(str(path), "w", format="mp4", options=options)
        self._container.metadata.update(
            {"comment": SYNTHETIC_NOTE, "synthetic": "true", "encoder_application": "Visavis"}
        )
        self._video = self._container.add_stream("libx264", rate=FPS)
        self._video.width = self._video.height = size
        self._video.pix_fmt = "yuv420p"
        self._video.options = {"preset": "veryfast", "crf": "18"}
        # What `to_i420` makes: BT.601, limited range.
        self._video.codec_context.color_range = 1
        self._video.codec_context.colorspace = 6
        self._audio = self._container.add_stream("aac", rate=WIRE_RATE_HZ)
        self._audio.layout = "stereo" if channels == 2 else "mono"
        self._audio.bit_rate = 96_000 * channels
        self._samples = 0

    def __enter__(self) -> Mp4Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._container.mux(self._video.encode(None))
            self._container.mux(self._audio.encode(None))
        self._container.close()

    def picture(self, i420: Pixels, frame_index: int) -> None:
        """Add one frame (N * 3 / 2, N) uint8."""
        frame = av.VideoFrame.from_ndarray(i420, format="yuv420p")
        frame.pts, frame.time_base = frame_index * FRAME_TICKS_90K, _TICK
        frame.colorspace, frame.color_range = 6, 1
        self._container.mux(self._video.encode(frame))

    def sound(self, pcm: Pcm) -> None:
        """Add (n, channels) int16 right after what was added before."""
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(pcm.reshape(1, -1)), "s16", self._audio.layout.name
        )
        frame.sample_rate, frame.pts, frame.time_base = WIRE_RATE_HZ, self._samples, _SAMPLE
        self._samples += len(pcm)
        self._container.mux(self._audio.encode(frame))


__all__ = ["SYNTHETIC_NOTE", "AudioFile", "Mp4Writer", "Pcm", "Pixels", "RenderError"]
