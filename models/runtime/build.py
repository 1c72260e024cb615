"""Build all engines of a checkpoint for one target: rewrite, prove, compile, measure, store.

Needs `onnx` and `onnxruntime` besides the flavour; no torch. The float16 graph is proven on
the CPU before anything is compiled. Where the target's card is at hand the built engine is
compared too, else its error is stored as unknown.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from models.checkpoint import NETWORKS, Checkpoint
from models.codes import Array
from models.runtime.device_network import Device, DeviceNetwork, HostRunner
from models.runtime.engine import EngineError
from models.runtime.engine_cache import (
    EngineManifest,
    NetworkRecord,
    engine_folder,
    onnx_hash,
)
from models.runtime.flavour import FlavourName, Program, TensorSpec

try:
    import onnx
    import onnxruntime

    from models.runtime import graph as rewrites
except ImportError as missing:
    raise EngineError(
        f"{missing.name} is needed to build engines: pip install -e '.[gpu]'"
    ) from missing

#: Largest difference of the float16 graph, as a part of the output's largest value (at least 1).
TOLERANCE = 1e-2
#: Positions are held tighter: a tenth of a pixel at 512.
TOLERANCES = {"flow": 2e-4}
#: Cards whose builder has no float32 matrix product.
NO_FLOAT_PRODUCTS = ("sm75",)
Progress = Callable[[str], None]
Feeds = dict[str, Array]


class Builder(Protocol):
    """What `build_engines` needs of a flavour: `models.runtime.flavour.TensorRT`."""

    name: FlavourName
    version: str

    def build(self, onnx_model: bytes, target: str) -> tuple[bytes, Program]:
        """See `TensorRT.build`."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A network ready to compile."""

    model: bytes
    errors: dict[str, float]


#: By checkpoint, network and whether products are written plainly.
Conversions = dict[tuple[str, str, bool], Converted]


def convert(
    checkpoint: Checkpoint, name: str, target: str, seeds: Sequence[int] = (1, 2, 3)
) -> Converted:
    """Rewrite one network for `target` and prove it on the CPU with one input per seed.

    Raises:
        EngineError: the rewritten graph computes something else.
    """
    path = checkpoint.network(name)
    try:
        model = rewrites.load_graph(path)
        rewrites.mixed_half(model)
        rewrites.dynamic_batch(model)
        if target in NO_FLOAT_PRODUCTS:
            rewrites.plain_products(model)
        onnx.checker.check_model(model, full_check=True)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise EngineError(f"{path.name} cannot be rewritten for {target}: {error}") from error
    data = model.SerializeToString()
    feeds = [example_feeds(checkpoint, name, seed) for seed in seeds]
    errors = differences(reference_outputs(path, feeds), run_graph(data, feeds))
    for output, size in errors.items():
        if not size <= TOLERANCES.get(output, TOLERANCE):
            raise EngineError(
                f"{path.name} in float16 differs by {size:.1e} in {output}, "
                f"allowed is {TOLERANCES.get(output, TOLERANCE):.0e}"
            )
    return Converted(data, errors)


def _converted(
    checkpoint: Checkpoint, name: str, target: str, known: Conversions | None
) -> Converted:
    """`convert`, once for all targets that need the same graph."""
    key = (str(checkpoint.path), name, target in NO_FLOAT_PRODUCTS)
    if known is not None and key in known:
        return known[key]
    converted = convert(checkpoint, name, target)
    if known is not None:
        known[key] = converted
    return converted


def example_feeds(checkpoint: Checkpoint, name: str, seed: int) -> Feeds:
    """Inputs of one network, batch 1, in the range that the product feeds; never zeros."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for tensor in onnx.load(checkpoint.network(name)).graph.input:
        shape = tuple(d.dim_value for d in tensor.type.tensor_type.shape.dim)
        noise = rng.random(shape, np.float32)
        if tensor.name == "shape":
            feeds[tensor.name] = checkpoint.face.mean[None] + np.float32(0.004) * noise
        elif len(shape) == 4 and shape[1] == 3:
            coarse = rng.random((24, 24, 3), np.float32)
            picture = cv2.resize(coarse, shape[:1:-1], interpolation=cv2.INTER_CUBIC)
            feeds[tensor.name] = np.clip(picture.transpose(2, 0, 1)[None] * 2 - 1, -1, 1)
        elif len(shape) == 4:
            feeds[tensor.name] = 2 * noise - 1
        elif len(shape) == 2 and "code" in tensor.name:
            feeds[tensor.name] = np.float32(0.3) * (noise - np.float32(0.5))
        else:
            feeds[tensor.name] = noise
        feeds[tensor.name] = np.ascontiguousarray(feeds[tensor.name], np.float32)
    return feeds


def reference_outputs(path: Path, feeds: list[Feeds]) -> Feeds:
    """The original network, one input after another; outputs stacked."""
    session = _session(path.read_bytes())
    names = [o.name for o in session.get_outputs()]
    outputs = [session.run(None, f) for f in feeds]
    return {n: np.concatenate([o[i] for o in outputs]) for i, n in enumerate(names)}


def run_graph(model: bytes, feeds: list[Feeds]) -> Feeds:
    """A rewritten network on all inputs as one batch; float16 only where the graph says so."""
    session = _session(model)
    batch = {
        i.name: np.concatenate([f[i.name] for f in feeds]).astype(
            np.float16 if i.type == "tensor(float16)" else np.float32
        )
        for i in session.get_inputs()
    }
    names = [o.name for o in session.get_outputs()]
    outputs = session.run(None, batch)
    return {n: o.astype(np.float32) for n, o in zip(names, outputs, strict=True)}


def differences(wanted: Feeds, found: Feeds) -> dict[str, float]:
    """Largest difference per output, as a part of its largest value (at least 1)."""
    return {
        name: float(np.abs(found[name] - value).max() / max(1.0, float(np.abs(value).max())))
        for name, value in wanted.items()
    }


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Fusing would drop casts, and with them the rounding that is to be seen.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def build_engines(
    checkpoint: Checkpoint,
    flavour: Builder,
    target: str,
    root: Path,
    *,
    conversions: Conversions | None = None,
    device: str | None = None,
    measure: Callable[[str, bytes], dict[str, float]] | None = None,
    git_commit: str | None = None,
    progress: Progress = lambda message: None,
) -> Path:
    """Build every network for `target`; returns the folder, complete or as it was before.

    `measure(network, plan)` runs a plan on its card and returns its differences; without it
    the parity error is stored as unknown. `conversions` keeps rewritten graphs for the next
    target.

    Raises:
        EngineError: a network cannot be rewritten, compiled, or differs on its card.
    """
    folder = engine_folder(root, checkpoint.config.name, flavour.name, target)
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    records: dict[str, NetworkRecord] = {}
    for name in NETWORKS:
        converted = _converted(checkpoint, name, target, conversions)
        plan, tensors = flavour.build(converted.model, target)
        (fresh / f"{name}.plan").write_bytes(plan)
        parity = measure(name, plan) if measure is not None else None
        if parity is not None:
            _check_parity(name, parity)
        records[name] = NetworkRecord(
            hashlib.sha256(plan).hexdigest(), len(plan), onnx_hash(checkpoint, name),
            _table(tensors.inputs), _table(tensors.outputs), converted.errors, parity,
        )  # fmt: skip
        progress(f"{name} for {target}: {len(plan) / 2**20:.1f} MiB")
    EngineManifest(
        config=checkpoint.config.name,
        weights_sha256=str(checkpoint.manifest["files"].get(checkpoint.weights.name)),
        flavour=flavour.name, flavour_version=flavour.version, target=target,
        device=device if flavour.name == "tensorrt" else None, networks=records,
        git_commit=git_commit,
    ).write(fresh)  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder


def measure_on(
    device: Device, load: Callable[[bytes], Program], checkpoint: Checkpoint
) -> Callable[[str, bytes], dict[str, float]]:
    """For `build_engines`: run a plan on this card and compare it with the original."""

    def measure(name: str, plan: bytes) -> dict[str, float]:
        feeds = [example_feeds(checkpoint, name, seed) for seed in (1, 2, 3)]
        batch = {n: np.concatenate([f[n] for f in feeds]) for n in feeds[0]}
        with device.guard():
            program = load(plan)
            scratch = device.context.alloc((max(program.scratch_bytes, 1),), np.uint8)
            runner = HostRunner(DeviceNetwork(device, program, scratch), (1, 2, 4))
        found = runner.run(batch)
        return differences(reference_outputs(checkpoint.network(name), feeds), found)

    return measure


def _check_parity(name: str, parity: dict[str, float]) -> None:
    for output, error in parity.items():
        if not error <= TOLERANCES.get(output, TOLERANCE):
            raise EngineError(
                f"the engine of {name} differs by {error:.1e} in {output} on its card"
            )


def _table(specs: dict[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    return {name: asdict(spec) for name, spec in specs.items()}
