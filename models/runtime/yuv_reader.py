"""A webcam picture on the device: planes up, crop, E_mot, codes down; then one wait.

The decoder's planes are copied into pinned memory once and go up as they are; `yuv_to_tensor`
cuts, converts and normalises the tracker's crop straight into E_mot's input. What changes from
picture to picture (size, colours, transform) is one row of a table in pinned memory, so a graph
that is recorded when the engine is loaded serves every webcam. Belongs to the engine's thread.
"""

from __future__ import annotations

import numpy as np

from kernels import driver, yuv_to_tensor
from kernels.operation import Library
from kernels.view import View
from models.codes import Array
from models.runtime.device_network import DeviceNetwork
from models.runtime.engine import YuvPicture

#: Height and width of the pictures that there is memory for from the beginning.
USUAL_SHAPE = (720, 1280)
Shape = tuple[int, int]


class YuvReader:
    """E_mot on crops of decoded pictures; see the module's docstring.

    Raises CompileError, NoCompilerError, DriverError.
    """

    def __init__(self, motion: DeviceNetwork, library: Library) -> None:
        self._library = library
        device = self._device = motion.device
        library.load("yuv_to_tensor")
        self._row = device.context.pinned((1,), yuv_to_tensor.PICTURE)
        self._table = device.zeros((1,), yuv_to_tensor.PICTURE)
        self._motion = motion
        self._found = {
            name: device.context.pinned((1, *spec.shape), spec.dtype)
            for name, spec in motion.program.outputs.items()
        }
        (face,) = motion.inputs.values()
        self._crop = yuv_to_tensor.yuv_to_tensor(self._table, face.part(0))
        self._staged, self._planes = self._room(_nbytes(USUAL_SHAPE))
        # While it is recorded the work runs once, on a single black pixel.
        dot = np.zeros((1, 1), np.uint8)
        blank = YuvPicture(dot, dot, dot, "bt601", False, to_rgb=lambda: dot)
        self._place(blank, np.eye(2, 3, dtype=np.float32))
        self._graph = device.record(self._work)

    def read(self, picture: YuvPicture, transform: Array) -> dict[str, Array]:
        """E_mot's outputs, float32 with a batch axis of 1; `transform` as in `ReadsYuv`.

        Memory grows when a picture is larger than any before; nothing else allocates on the device.

        Raises:
            ValueError: the transform maps everything to a line.
            EngineError, DeviceLostError: see `Device.guard`.
        """
        with self._device.guard():
            self._place(picture, transform)
            self._graph.launch(self._device.stream)
            self._device.stream.synchronize()
            return {name: found.array.astype(np.float32) for name, found in self._found.items()}

    def _work(self) -> None:
        """What the graph does."""
        stream = self._device.stream
        self._table.upload(self._row, stream)
        self._library.run(self._crop, stream)
        self._motion.enqueue(1)
        for name, found in self._found.items():
            self._motion.outputs[name].download(found, stream)

    def _place(self, picture: YuvPicture, transform: Array) -> None:
        """Copy planes and row into pinned memory, and send the planes up."""
        shape: Shape = picture.y.shape
        nbytes = _nbytes(shape)
        if nbytes > self._planes.nbytes:
            # The stream is idle. What is there stays until there is more.
            staged, planes = self._room(nbytes)
            self._staged.free()
            self._planes.free()
            self._staged, self._planes = staged, planes
        views = []
        for at, plane in zip(_layout(shape), (picture.y, picture.u, picture.v), strict=True):
            memory = self._staged.array[at : at + plane.size].reshape(plane.shape)
            np.copyto(memory, plane)
            strides = (plane.shape[1], 1)
            views.append(View(self._planes.pointer + at, plane.shape, strides, plane.dtype))
        y, u, v = views
        self._row.array[0] = yuv_to_tensor.picture(
            y, u, v, transform, matrix=picture.matrix, full_range=picture.full_range
        )
        self._planes.upload(self._staged.array[:nbytes], self._device.stream)

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
