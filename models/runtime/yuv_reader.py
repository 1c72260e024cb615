"""Webcam pictures on the device: planes up, crops, E_mot, codes down; then one wait.

The decoders' planes are copied into pinned memory once and go up as they are, the pictures of
all sessions that are due in one copy; `yuv_to_tensor` cuts, converts and normalises the trackers'
crops straight into E_mot's input, all in one launch, and E_mot reads them as one batch. What
changes from picture to picture (size, colours, transform) is a row of a table in pinned memory,
so graphs that are recorded when the engine is loaded, one per batch size, serve every webcam.
Belongs to the engine's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from kernels import driver, yuv_to_tensor
from kernels.operation import Library
from kernels.view import View
from models.codes import Array
from models.runtime.device_network import DeviceNetwork, padded
from models.runtime.engine import YuvPicture
from models.runtime.flavour import BATCH_SIZES, MAX_BATCH

#: Height and width of the picture that there is memory for from the beginning.
USUAL_SHAPE = (720, 1280)
Shape = tuple[int, int]
Crop = tuple[YuvPicture, Array]


class YuvReader:
    """E_mot on crops of decoded pictures; see the module's docstring.

    Raises CompileError, NoCompilerError, DriverError.
    """

    def __init__(self, motion: DeviceNetwork, library: Library) -> None:
        self._library = library
        device = self._device = motion.device
        library.load("yuv_to_tensor")
        # A row of zeros means no picture: its crop is black, and nothing is read for it.
        self._rows = device.context.pinned((MAX_BATCH,), yuv_to_tensor.PICTURE)
        self._rows.array[:] = np.zeros((), yuv_to_tensor.PICTURE)
        self._table = device.zeros((MAX_BATCH,), yuv_to_tensor.PICTURE)
        self._motion = motion
        self._found = {
            name: device.context.pinned((MAX_BATCH, *spec.shape), spec.dtype)
            for name, spec in motion.program.outputs.items()
        }
        (face,) = motion.inputs.values()
        self._crops = {
            b: yuv_to_tensor.yuv_to_tensor(self._table.part(0, b), face.part(0, b))
            for b in BATCH_SIZES
        }
        self._staged, self._planes = self._room(_nbytes(USUAL_SHAPE))
        self._graphs = {b: device.record(partial(self._work, b)) for b in BATCH_SIZES}

    def read(self, crops: Sequence[Crop]) -> dict[str, Array]:
        """E_mot's outputs of 1 to `MAX_BATCH` crops, float32, by name and with a batch axis.

        A crop is a picture and the transform of `ReadsYuv`. Memory grows when the pictures
        together are larger than any before; nothing else allocates on the device.

        Raises:
            ValueError: too many crops, or a transform that maps everything to a line.
            EngineError, DeviceLostError: see `Device.guard`.
        """
        count = len(crops)
        if not 1 <= count <= MAX_BATCH:
            raise ValueError(f"a batch has 1 to {MAX_BATCH} crops, got {count}")
        with self._device.guard():
            self._place(crops)
            self._graphs[padded(count)].launch(self._device.stream)
            self._device.stream.synchronize()
            return {n: found.array[:count].astype(np.float32) for n, found in self._found.items()}

    def _work(self, batch: int) -> None:
        """What one graph does."""
        stream = self._device.stream
        self._table.upload(self._rows, stream)
        self._library.run(self._crops[batch], stream)
        self._motion.enqueue(batch)
        for name, found in self._found.items():
            self._motion.outputs[name].part(0, batch).download(found.array[:batch], stream)

    def _place(self, crops: Sequence[Crop]) -> None:
        """Copy planes and rows into pinned memory, and send the planes up."""
        nbytes = sum(_nbytes(picture.y.shape) for picture, _ in crops)
        if nbytes > self._planes.nbytes:
            # The stream is idle. What is there stays until there is more.
            staged, planes = self._room(nbytes)
            self._staged.free()
            self._planes.free()
            self._staged, self._planes = staged, planes
        rows, start = [], 0
        for picture, transform in crops:
            y, u, v = self._copy(picture, start)
            rows.append(
                yuv_to_tensor.picture(
                    y, u, v, transform, matrix=picture.matrix, full_range=picture.full_range
                )
            )
            start += _nbytes(picture.y.shape)
        self._rows.array[: len(rows)] = np.array(rows, yuv_to_tensor.PICTURE)
        self._rows.array[len(rows) :] = np.zeros((), yuv_to_tensor.PICTURE)
        self._planes.upload(self._staged.array[:nbytes], self._device.stream)

    def _copy(self, picture: YuvPicture, start: int) -> list[View]:
        """Put a picture's planes into pinned memory; where they will lie on the device."""
        views = []
        layout = _layout(picture.y.shape)
        for at, plane in zip(layout, (picture.y, picture.u, picture.v), strict=True):
            memory = self._staged.array[start + at : start + at + plane.size]
            np.copyto(memory.reshape(plane.shape), plane)
            pointer, strides = self._planes.pointer + start + at, (plane.shape[1], 1)
            views.append(View(pointer, plane.shape, strides, plane.dtype))
        return views

    def _room(self, nbytes: int) -> tuple[driver.PinnedArray, driver.DeviceArray]:
        """Memory for planes, pinned and on the device."""
        context = self._device.context
        planes = context.alloc((nbytes,), np.uint8)
        try:
            return context.pinned((nbytes,), np.uint8), planes
        except driver.DriverError:
            planes.free()
            raise


def _chroma(shape: Shape) -> int:
    return (shape[0] + 1) // 2 * ((shape[1] + 1) // 2)


def _layout(shape: Shape) -> tuple[int, int, int]:
    """Where Y, U and V begin, one behind the other without gaps."""
    luma = shape[0] * shape[1]
    return 0, luma, luma + _chroma(shape)


def _nbytes(shape: Shape) -> int:
    return shape[0] * shape[1] + 2 * _chroma(shape)
