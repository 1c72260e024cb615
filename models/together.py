"""Webcams of several people in one go: their trackers take turns, E_mot runs once for all.

Every tracker works until it needs a crop read (`FaceTracker.steps`); then all waiting crops are
read as one batch, cut on the device where the engine can, and every tracker goes on. What goes
wrong with one picture stays with its tracker.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.codes import Array
from models.runtime.engine import DeviceLostError, Engine, MotionReading, ReadsYuv, YuvPicture
from models.tracking import FaceTracker, Picture, Steps

Frame = NDArray[np.uint8] | YuvPicture
#: A reading, None where no face is seen, or what went wrong.
Outcome = MotionReading | Exception | None


def update_together(engine: Engine, pairs: Sequence[tuple[FaceTracker, Frame]]) -> list[Outcome]:
    """`FaceTracker.update` of every tracker with its frame; no tracker may come twice.

    The trackers' engine reads. An exception takes the place of its tracker's reading; that
    tracker is in an unknown state.

    Raises:
        DeviceLostError: the engine is gone.
    """
    running = {i: tracker.steps(frame) for i, (tracker, frame) in enumerate(pairs)}
    outcomes: list[Outcome] = [None] * len(pairs)
    given: dict[int, Outcome] = dict.fromkeys(running)
    while given:
        wanted: dict[int, tuple[Picture, Array]] = {}
        for i, reading in given.items():
            try:
                wanted[i] = _go_on(running[i], reading)
            except StopIteration as end:
                outcomes[i] = end.value
            except DeviceLostError:
                raise
            except Exception as error:
                outcomes[i] = error
        given = dict(zip(wanted, read_crops(engine, list(wanted.values())), strict=True))
    return outcomes


def _go_on(steps: Steps, reading: Outcome) -> tuple[Picture, Array]:
    """The next crop that a tracker wants. Raises StopIteration with its result, or its error."""
    if reading is None:
        return next(steps)
    if isinstance(reading, Exception):
        return steps.throw(reading)
    return steps.send(reading)


def read_crops(
    engine: Engine, crops: Sequence[tuple[Picture, Array]]
) -> list[MotionReading | Exception]:
    """Readings of any number of crops, or what went wrong with a crop. Raises DeviceLostError."""
    if len(crops) > 1:
        try:
            return list(_read_at_once(engine, crops))
        except DeviceLostError:
            raise
        except Exception:
            # It names no culprit, so each is read alone.
            pass
    return [_read_alone(picture, transform) for picture, transform in crops]


def _read_alone(picture: Picture, transform: Array) -> MotionReading | Exception:
    try:
        return picture.read(transform)
    except DeviceLostError:
        raise
    except Exception as error:
        return error


def _read_at_once(engine: Engine, crops: Sequence[tuple[Picture, Array]]) -> list[MotionReading]:
    """Pictures in planes in one batch, where the engine takes them; all others in another."""
    planes: dict[int, tuple[YuvPicture, Array]] = {}
    faces: dict[int, NDArray[np.uint8]] = {}
    for i, (picture, transform) in enumerate(crops):
        if picture.planes is not None and isinstance(engine, ReadsYuv):
            planes[i] = (picture.planes, transform)
        else:
            faces[i] = picture.crop(transform)
    found: dict[int, MotionReading] = {}
    if planes and isinstance(engine, ReadsYuv):
        found.update(zip(planes, engine.motion_yuv_batch(list(planes.values())), strict=True))
    if faces:
        found.update(zip(faces, engine.motion_batch(list(faces.values())), strict=True))
    return [found[i] for i in range(len(crops))]


__all__ = ["Outcome", "read_crops", "update_together"]
