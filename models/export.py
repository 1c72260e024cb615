"""Torch networks -> ONNX, with a parity gate: an export that draws something else is refused."""

from __future__ import annotations

import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from models.checkpoint import open_checkpoint, write_manifest
from models.codes import CODE_DIM
from models.config import ModelConfig
from models.face import LANDMARKS, FaceModel
from models.networks import Exported, Networks, half_precision
from models.rates import MEL_BANDS

OPSET = 20
#: Largest absolute difference that an exported network may show against torch.
TOLERANCE = {"audio": 2e-3, "motion": 2e-3, "appearance": 2e-3, "generator": 4e-3}


class ParityError(RuntimeError):
    """An exported network differs from torch by more than its tolerance."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute difference per network and output."""

    errors: dict[str, dict[str, float]]


def example_inputs(
    name: str, config: ModelConfig, face: FaceModel, seed: int
) -> tuple[Tensor, ...]:
    """Inputs in the range that the product really feeds; never zeros."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    size = config.image_size
    if name == "audio":
        return (noise(1, config.mel_window, MEL_BANDS),)
    if name in ("motion", "appearance"):
        smooth = torch.nn.functional.interpolate(noise(1, 3, 24, 24), (size, size), mode="bicubic")
        return ((smooth * 2 - 1).clamp(-1, 1),)
    if config.family == "paper":
        return (
            2 * noise(1, 512, size // 32, size // 32),
            noise(1, 2048),
            noise(1, config.code_dim) - 0.5,
        )
    shape = torch.from_numpy(face.mean)[None] + 0.004 * noise(1, LANDMARKS, 3)
    codes = [0.3 * (noise(1, CODE_DIM) - 0.5) for _ in range(2)]
    smooth = torch.nn.functional.interpolate(noise(1, 3, 16, 16), (128, 128), mode="bicubic")
    f64 = 2 * noise(1, 48, size // 4, size // 4) - 1
    f32 = 2 * noise(1, 96, size // 8, size // 8) - 1
    return (smooth * 2 - 1, f64, f32, noise(1, 64), shape, codes[0], codes[1])


def export_network(net: Exported, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write one network as ONNX with fixed batch 1 and weights inside the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            net, inputs, str(path), input_names=list(net.inputs), output_names=list(net.outputs),
            opset_version=OPSET, dynamo=True, external_data=False, verbose=False, optimize=True,
        )  # fmt: skip


def store_half(path: Path) -> None:
    """Store large float32 weights of an ONNX file as float16 behind a Cast.

    Nothing is lost, because they were rounded to float16 before; the file halves and
    runtimes fold the casts when they compile.
    """
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < 256:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, name + "_f16"))
        casts.append(
            onnx.helper.make_node("Cast", [name + "_f16"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def export_checkpoint(
    networks: Networks, face: FaceModel, out: Path, *, about: dict[str, Any]
) -> Parity:
    """Write a whole checkpoint folder; `about` (name, data, metrics) goes into its manifest.

    Weights are rounded to float16 first, so torch and ONNX hold the same numbers. The folder
    is written beside `out` and renamed at the end, so a server never opens half of one.

    Raises:
        ParityError: OpenVINO's result differs from torch's; the folder has no manifest then.
    """
    from safetensors.torch import save_file

    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    networks.eval()
    save_file(half_precision(networks), fresh / "weights.safetensors")
    (fresh / "weights.safetensors").chmod(0o644)
    np.savez(fresh / "face.npz", mean=face.mean, basis=face.basis)
    sizes = {}
    for name, net in networks.named():
        path = fresh / f"{name}.onnx"
        export_network(net, example_inputs(name, networks.config, face, 0), path)
        store_half(path)
        sizes[name] = sum(p.numel() for p in net.parameters())
    parity = check_parity(networks, face, fresh)
    write_manifest(fresh, networks.config, **about, parameters=sizes, parity=parity.errors)
    open_checkpoint(fresh)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return parity


def check_parity(networks: Networks, face: FaceModel, folder: Path) -> Parity:
    """Run every exported network in OpenVINO and in torch on three inputs.

    Raises:
        ParityError: a difference is larger than `TOLERANCE`.
    """
    import openvino

    core = openvino.Core()
    errors: dict[str, dict[str, float]] = {}
    for name, net in networks.named():
        compiled = core.compile_model(
            str(folder / f"{name}.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        worst = dict.fromkeys(net.outputs, 0.0)
        for seed in (1, 2, 3):
            inputs = example_inputs(name, networks.config, face, seed)
            with torch.inference_mode():
                wanted = net(*inputs)
            found = compiled([t.numpy() for t in inputs])
            for output, tensor in zip(net.outputs, wanted, strict=True):
                error = float(np.abs(found[output] - tensor.numpy()).max())
                worst[output] = max(worst[output], error)
        errors[name] = worst
        if max(worst.values()) > TOLERANCE[name]:
            raise ParityError(
                f"{name}.onnx differs from torch by {max(worst.values()):.2e}, "
                f"allowed is {TOLERANCE[name]:.0e}: {worst}"
            )
    return Parity(errors)
