"""A driving clip from a recorded video: every 25th of a second is read by E_mot.

The whole recording is known here, so a person's neutral is a statistic of all of it:
pose and gaze are relative to their medians, lids to the usual open eye. Expressions get
the same trailing mean as a live webcam. Runs wherever the engine lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from models.codes import CODE_DIM, DIMS, FACTOR_SLICES, Array
from models.config import ModelConfig
from models.rates import FPS
from models.runtime.engine import MotionReading, YuvPicture
from models.streaming import ExpressionWindow, OneEuro
from realtime.decoded import yuv_picture
from realtime.sources.clip import MAX_CLIP_FRAMES, Clip, ClipError, load_clip

Pixels = NDArray[np.uint8]
Update = Callable[[Any], MotionReading | None]
#: Called with frames done and frames expected (None if the file does not say).
Progress = Callable[[int, int | None], None]

#: Larger pictures are shrunk before anything looks at them.
MAX_HEIGHT_PX = 720
MIN_SEEN = 0.1
_LIDS = slice(FACTOR_SLICES["eye"].start, FACTOR_SLICES["eye"].start + 2)
_GAZE = slice(FACTOR_SLICES["eye"].start + 2, FACTOR_SLICES["eye"].start + 4)
_POSE, _EXP = FACTOR_SLICES["pose"], FACTOR_SLICES["exp"]


def read_driver(
    path: Path,
    update: Update,
    config: ModelConfig,
    on_progress: Progress = lambda done, all: None,
    *,
    planes: bool = False,
) -> Clip:
    """Read a video file (or an .npz clip) into a clip whose frame f is shown at f / 25 s.

    `update` is `models.tracking.FaceTracker.update` of a fresh tracker; with `planes` it gets
    decoded pictures as they are, for an engine that cuts crops itself. Raises ClipError when the
    file cannot be read, is too long or shows a face in less than a tenth of it.
    """
    if path.suffix == ".npz":
        return load_clip(path)
    readings: list[MotionReading | None] = []
    for frame, expected in read_video(path, planes=planes):
        readings.append(update(frame))
        on_progress(len(readings), expected)
    seen = [i for i, reading in enumerate(readings) if reading is not None]
    if len(seen) < max(1, MIN_SEEN * len(readings)):
        raise ClipError(f"No face was found in {path.name}.")
    raw = np.zeros((len(seen), CODE_DIM), np.float32)
    for row, i in enumerate(seen):
        reading = readings[i]
        assert reading is not None
        raw[row] = reading.code.concat()
    codes = np.empty((len(readings), CODE_DIM), np.float32)
    for column in range(CODE_DIM):
        codes[:, column] = np.interp(np.arange(len(readings)), seen, raw[:, column])
    return Clip(_relative(codes, raw, config), path.stem)


def read_video(
    path: Path, *, planes: bool = False
) -> Iterator[tuple[Pixels | YuvPicture, int | None]]:
    """Pictures (H, W, 3) uint8 RGB at 25 fps by presentation time, and how many to expect.

    With `planes` a picture that stands upright in I420 or NV12 comes unconverted. Raises ClipError.
    """
    try:
        container = av.open(str(path))
    except FileNotFoundError as error:
        raise ClipError(f"There is no file {path}.") from error
    except (OSError, av.FFmpegError) as error:
        raise ClipError(f"{path.name} cannot be read as a video.") from error
    with container:
        if not container.streams.video:
            raise ClipError(f"{path.name} has no pictures.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        seconds = container.duration / av.time_base if container.duration else None
        expected = round(seconds * FPS) if seconds else None
        count = 0
        try:
            for frame in _at_25_fps(container, stream):
                count += 1
                if count > MAX_CLIP_FRAMES:
                    minutes = MAX_CLIP_FRAMES // (60 * FPS)
                    raise ClipError(f"{path.name} is longer than {minutes} minutes.")
                yield _pixels(frame, planes), expected
        except av.FFmpegError as error:
            # A damaged end is common in recordings; a damaged beginning is no video.
            if count == 0:
                raise ClipError(f"{path.name} cannot be decoded.") from error
        if count == 0:
            raise ClipError(f"{path.name} has no pictures.")


def _at_25_fps(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """The frame on screen at every 25th of a second."""
    start: float | None = None
    shown: av.VideoFrame | None = None
    target = 0
    last = 0.0
    for number, frame in enumerate(container.decode(stream)):
        # Some containers have no timestamps: then frames are evenly spaced.
        stamped = frame.pts is not None
        time = frame.time if stamped else number / float(stream.average_rate or FPS)
        start = time if start is None else start
        last = time - start
        # A frame that comes less than half a millisecond after the tick is on time.
        while shown is not None and last > target / FPS + 5e-4:
            yield shown
            target += 1
        shown = frame
    if shown is not None and last <= target / FPS + 5e-4:
        yield shown


def _pixels(frame: av.VideoFrame, planes: bool) -> Pixels | YuvPicture:
    """Upright and not larger than needed; in RGB unless it may be `planes`, and is."""
    if frame.height > MAX_HEIGHT_PX:
        width = max(2, round(frame.width * MAX_HEIGHT_PX / frame.height / 2) * 2)
        frame = frame.reformat(width=width, height=MAX_HEIGHT_PX)
    turns = round((frame.rotation or 0) / 90) % 4
    picture = yuv_picture(frame) if planes and not turns else None
    if picture is not None:
        return picture
    image = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def _relative(codes: Array, seen: Array, config: ModelConfig) -> Array:
    """Absolute readings (T, 58) -> what to add to a portrait's own code; smoothed like live."""
    out = codes.copy()
    out[:, _POSE] -= np.median(seen[:, _POSE], axis=0)
    out[:, _GAZE] -= np.median(seen[:, _GAZE], axis=0)
    open_lids = np.clip(np.percentile(seen[:, _LIDS], 20, axis=0), 0.0, 0.6)
    out[:, _LIDS] = np.clip((out[:, _LIDS] - open_lids) / (1.0 - open_lids), 0.0, 1.0)
    pose, window = (
        OneEuro(cutoff_hz=2.0, beta=16.0),
        ExpressionWindow(config.expression_window, DIMS["exp"]),
    )
    for row in out:
        row[_POSE] = pose.push(row[_POSE])
        row[_EXP] = window.push(row[_EXP])
    return out
