"""Decoded webcam frames as the engines take them: planes where they fit, else RGB.

Colours are what libswscale makes of the frame's own tags, on both ways: BT.601 where they say
nothing, limited range unless they say full.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from models.runtime.engine import YuvPicture

Pixels = NDArray[np.uint8]
#: `AVFrame.colorspace` (ITU-T H.273, table 4) -> matrix: unnamed, BT.470BG and SMPTE 170M are one.
_MATRICES: dict[int, Literal["bt601", "bt709"]] = {
    0: "bt601", 1: "bt709", 2: "bt601", 5: "bt601", 6: "bt601",
}  # fmt: skip
_FULL_RANGE = 2


def to_rgb(frame: av.VideoFrame) -> Pixels:
    """(H, W, 3) uint8."""
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def yuv_picture(frame: av.VideoFrame) -> YuvPicture | None:
    """The frame's planes, not copied; they keep its memory alive.

    None for other layouts than I420 and NV12, and for colours that are neither BT.601 nor BT.709.
    """
    matrix = _MATRICES.get(int(frame.colorspace))
    if frame.format.name not in ("yuv420p", "yuvj420p", "nv12") or matrix is None:
        return None
    height, width = frame.height, frame.width
    rows, columns = (height + 1) // 2, (width + 1) // 2
    y = _plane(frame.planes[0], height, width)
    if frame.format.name == "nv12":
        both = _plane(frame.planes[1], rows, 2 * columns)
        u, v = both[:, ::2], both[:, 1::2]
    else:
        u, v = (_plane(plane, rows, columns) for plane in frame.planes[1:3])
    full = frame.format.name == "yuvj420p" or int(frame.color_range) == _FULL_RANGE
    return YuvPicture(y, u, v, matrix, full, to_rgb=partial(to_rgb, frame))


def _plane(plane: av.video.plane.VideoPlane, rows: int, columns: int) -> Pixels:
    """(rows, columns) of a plane whose lines may be longer."""
    lines: Pixels = np.frombuffer(memoryview(plane), np.uint8, rows * plane.line_size)
    return lines.reshape(rows, plane.line_size)[:, :columns]
