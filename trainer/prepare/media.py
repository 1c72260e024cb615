"""Any video file as pictures at 25 frames a second and sound at 16 kHz on one clock.

Both start at the file's earliest presentation time, so a stream that begins later than
the other keeps its place. Pictures are decoded one at a time: an hour of video needs no
more memory than a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from models.rates import FPS, MODEL_RATE_HZ

Pixels = NDArray[np.uint8]
F32 = NDArray[np.float32]
#: Larger pictures are shrunk: a 256-pixel crop of a face needs no more.
MAX_SIDE_PX = 1280
FRAME_SAMPLES = MODEL_RATE_HZ // FPS


class MediaError(RuntimeError):
    """A file cannot be used; the message is a sentence for its owner."""


def pictures(path: Path) -> Iterator[Pixels]:
    """(H, W, 3) uint8 RGB, upright; picture f is what is on screen at f / 25 s.

    A damaged end is the end. Raises MediaError when nothing can be decoded.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path.name} has no pictures.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            start = _start_s(container)
            shown: av.VideoFrame | None = None
            target = 0
            try:
                for number, frame in enumerate(container.decode(stream)):
                    stamped = frame.pts is not None
                    at = frame.time if stamped else number / float(stream.average_rate or FPS)
                    # A frame that comes less than half a millisecond after the tick is on time.
                    while shown is not None and at - start > target / FPS + 5e-4:
                        yield _upright(shown)
                        target += 1
                    shown = frame
            except av.FFmpegError as error:
                if shown is None:
                    raise MediaError(f"{path.name} cannot be decoded.") from error
            if shown is None:
                raise MediaError(f"{path.name} has no pictures.")
            yield _upright(shown)
    except (OSError, av.FFmpegError) as error:
        raise MediaError(f"{path.name} cannot be read as a video.") from error


def stated_frames(path: Path) -> int:
    """How many pictures at 25 frames a second a file says that it has; 0: it does not say."""
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                return 0
            if stream.duration is not None and stream.time_base is not None:
                return round(float(stream.duration * stream.time_base) * FPS)
            return round((container.duration or 0) / av.time_base * FPS)
    except (OSError, av.FFmpegError):
        return 0


def _start_s(container: av.container.InputContainer) -> float:
    """Earliest presentation time of all sound and picture streams, in seconds."""
    starts = [
        float(s.start_time * s.time_base)
        for s in (*container.streams.video, *container.streams.audio)
        if s.start_time is not None and s.time_base is not None
    ]
    return min(starts, default=0.0)


def _upright(frame: av.VideoFrame) -> Pixels:
    longer = max(frame.width, frame.height)
    if longer > MAX_SIDE_PX:
        width, height = (max(2, round(n * MAX_SIDE_PX / longer / 2) * 2)
                         for n in (frame.width, frame.height))  # fmt: skip
        frame = frame.reformat(width=width, height=height)
    turns = round((frame.rotation or 0) / 90) % 4
    image = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def sound(path: Path) -> F32:
    """Mono float32 at 16 kHz; sample n is heard at n / 16000 s. Raises MediaError."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=MODEL_RATE_HZ)
    parts: list[F32] = []
    first_s: float | None = None
    start = 0.0
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise MediaError(f"{path.name} has no sound.")
            start = _start_s(container)
            try:
                for frame in container.decode(audio=0):
                    if first_s is None:
                        first_s = frame.time if frame.pts is not None else start
                    frame.pts = None
                    parts += [np.asarray(f.to_ndarray()[0]) for f in resampler.resample(frame)]
                parts += [np.asarray(f.to_ndarray()[0]) for f in resampler.resample(None)]
            except (av.FFmpegError, ValueError) as error:
                if not parts:
                    raise MediaError(f"{path.name}: its sound cannot be decoded.") from error
    except (OSError, av.FFmpegError) as error:
        raise MediaError(f"{path.name} cannot be read.") from error
    if not parts:
        raise MediaError(f"{path.name} has no sound.")
    signal = np.concatenate(parts).astype(np.float32)
    shift = round(((first_s or start) - start) * MODEL_RATE_HZ)
    if shift >= 0:
        return np.pad(signal, (shift, 0))
    return signal[-shift:]


def write_clip(
    path: Path, frames: list[Pixels], samples: F32 | None = None, *, lossless: bool = False
) -> None:
    """Write pictures (N, N, 3) at 25 fps, and 16 kHz sound, as MP4; appears when complete."""
    part = path.with_name(path.name + ".part")
    pixel_format, options = "yuv420p", {"preset": "veryfast", "crf": "14"}
    if lossless:
        pixel_format, options = "rgb24", {"preset": "ultrafast", "qp": "0"}
    with av.open(str(part), "w", format="mp4") as container:
        video: Any = container.add_stream("libx264rgb" if lossless else "libx264", rate=FPS)
        video.width, video.height = frames[0].shape[1], frames[0].shape[0]
        video.pix_fmt, video.options = pixel_format, options
        audio: Any = None
        if samples is not None:
            audio = container.add_stream("aac", rate=MODEL_RATE_HZ, layout="mono")
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None and samples is not None:
            pcm = np.clip(samples * 32767, -32768, 32767).astype(np.int16)
            block = av.AudioFrame.from_ndarray(pcm[None], "s16", "mono")
            block.sample_rate, block.pts = MODEL_RATE_HZ, 0
            block.time_base = Fraction(1, MODEL_RATE_HZ)
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    part.replace(path)
