"""INT8 for the generator's large convolutions, with a parity gate.

NNCF's post-training quantisation on real portraits and codes. Only convolutions are
quantised: landmarks, kernel, openings and sampling positions are geometry, where one step
of 256 is a visible jump (everything quantised: 30 pixels of flow error at the worst place;
convolutions alone: below half a pixel). The last convolutions before flow and pixels stay
float32 too; they are small and their output is the result itself. E_mot was tried the same
way and is not quantised: its pose then trembles by .2 degrees, for 3 ms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.checkpoint import file_hash
from models.codes import Array
from models.composite import compose
from models.runtime.engine import Drawing

#: Lowest peak signal-to-noise ratio against float32 of a composed picture, over all samples.
MIN_PSNR_DB = 42.0
#: Largest flow difference in pixels of 256, over all samples and positions.
MAX_FLOW_PX = 1.5
#: Convolutions with fewer output channels produce results, not features.
_MIN_CHANNELS = 32

Feed = dict[str, Array]


class QuantisationError(RuntimeError):
    """The INT8 generator draws something visibly different; it was not kept."""


def quantise_generator(
    folder: Path, calibration: Sequence[Feed], unseen: Sequence[Feed]
) -> dict[str, float]:
    """Write generator.int8.xml/.bin into a checkpoint folder and enter them into its manifest.

    `calibration` and `unseen` are inputs of the generator (see `BaseEngine.draw`), the first
    to find the ranges, the second to compare with float32. Returns the measured differences.

    Raises:
        QuantisationError: a difference is above its limit; the folder is as before.
        ImportError: nncf is not installed (extra `int8`).
    """
    import nncf
    import openvino

    core = openvino.Core()
    model = core.read_model(str(folder / "generator.onnx"))
    kept = [op.get_friendly_name() for op in model.get_ops() if not _quantisable(op)]
    small = nncf.quantize(
        model,
        nncf.Dataset(list(calibration)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        # Machines without VNNI add in 16 bits, which 8-bit weights overflow.
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE
        ),
    )
    return keep_if_equal(folder, small, unseen)


def keep_if_equal(folder: Path, small: Any, unseen: Sequence[Feed]) -> dict[str, float]:
    """The gate: compare the OpenVINO model `small` with the folder's generator, then save it.

    Raises:
        QuantisationError: see `quantise_generator`.
    """
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    parity = differences(
        core.compile_model(str(folder / "generator.onnx"), "CPU", options),
        core.compile_model(small, "CPU", options),
        unseen,
    )
    if parity["psnr_db_min"] < MIN_PSNR_DB or parity["flow_px_max"] > MAX_FLOW_PX:
        raise QuantisationError(f"the INT8 generator differs too much from float32: {parity}")
    openvino.save_model(small, folder / "generator.int8.xml", compress_to_fp16=False)
    _enter(folder, parity)
    return parity


def differences(reference: Any, other: Any, feeds: Sequence[Feed]) -> dict[str, float]:
    """How two compiled generators differ: flow in pixels of 256, composed pictures in dB."""
    flow, ratio = [], []
    for feed in feeds:
        a, b = (_drawing(compiled, feed) for compiled in (reference, other))
        small = ((feed["rgb128"][0].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255)
        source = np.asarray(cv2.resize(small.astype(np.uint8), (256, 256)), np.uint8)
        flow.append(np.abs(a.flow - b.flow) * 256)
        ratio.append(cv2.PSNR(compose(a, source, 256), compose(b, source, 256)))
    return {
        "flow_px_mean": round(float(np.mean(flow)), 4),
        "flow_px_max": round(float(np.max(flow)), 3),
        "psnr_db_median": round(float(np.median(ratio)), 1),
        "psnr_db_min": round(float(np.min(ratio)), 1),
        "samples": float(len(ratio)),
    }


def _quantisable(op: Any) -> bool:
    kind = op.get_type_name()
    if kind in ("Constant", "Parameter", "Result", "Convert"):
        return True  # nothing that NNCF would touch by itself
    return kind == "Convolution" and int(op.input(1).get_shape()[0]) >= _MIN_CHANNELS


def _drawing(compiled: Any, feed: Feed) -> Drawing:
    out = {port.get_any_name(): np.array(value) for port, value in compiled(feed).items()}
    flow, rgb = (np.ascontiguousarray(out[name][0].transpose(1, 2, 0)) for name in ("flow", "rgb"))
    return Drawing(flow, out["mask"][0, 0], rgb)


def _enter(folder: Path, parity: dict[str, float]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("generator.int8.xml", "generator.int8.bin"):
        manifest["files"][name] = file_hash(folder / name)
    manifest["int8"] = {"generator": parity}
    path.write_text(json.dumps(manifest, indent=2) + "\n")
