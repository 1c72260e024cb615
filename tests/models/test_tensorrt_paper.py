"""The `paper` configuration, untrained, goes the same way: rewritten, proven, compiled for all."""

from __future__ import annotations

import pytest

from models.checkpoint import NETWORKS, Checkpoint
from models.config import paper_config
from models.runtime import build
from models.runtime.flavour import TensorRT, installed_flavours
from models.untrained import untrained_checkpoint

# Exporting and compiling 78 million parameters takes a minute or two on two slow cores.
pytestmark = [pytest.mark.unit, pytest.mark.timeout(900)]

TARGETS = ("sm75", "sm86", "sm89", "sm120")
SHAPES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    "audio": ({"mel": (20, 80)}, {"lip": (500,)}),
    "motion": (
        {"face": (3, 224, 224)},
        {"lip": (500,), "pose": (6,), "eye": (6,), "exp": (30,), "landmarks": (152, 2)},
    ),
    "appearance": ({"source": (3, 224, 224)}, {"map": (512, 7, 7), "identity": (2048,)}),
    "generator": (
        {"map": (512, 7, 7), "identity": (2048,), "driving_code": (542,)},
        {"flow": (2, 64, 64), "mask": (1, 224, 224), "rgb": (3, 224, 224)},
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return untrained_checkpoint(paper_config(), tmp_path_factory.mktemp("paper"))


def test_an_untrained_checkpoint_is_made_once(checkpoint: Checkpoint) -> None:
    written = (checkpoint.path / "manifest.json").stat().st_mtime_ns
    again = untrained_checkpoint(paper_config(), checkpoint.path.parent)
    assert again.path == checkpoint.path
    assert (checkpoint.path / "manifest.json").stat().st_mtime_ns == written
    assert again.config == paper_config()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_paper_network_compiles_ahead_of_time(checkpoint: Checkpoint, name: str) -> None:
    if "tensorrt_rtx" not in installed_flavours():
        pytest.skip("tensorrt_rtx is not installed: it is in the dev extra on Linux x86-64 only")
    rtx = TensorRT("tensorrt_rtx")
    known: dict[bool, build.Converted] = {}
    for target in TARGETS:
        plain = target in build.NO_FLOAT_PRODUCTS
        if plain not in known:
            known[plain] = build.convert(checkpoint, name, target, seeds=(1,))
        converted = known[plain]
        assert 0 < max(converted.errors.values()) < 5e-3
        plan, tensors = rtx.build(converted.model, target)
        parameters = checkpoint.manifest["parameters"][name]
        assert 1.2 * parameters < len(plan) < 3 * parameters + 10_000_000
        inputs, outputs = SHAPES[name]
        assert {n: s.shape for n, s in tensors.inputs.items()} == inputs
        assert {n: s.shape for n, s in tensors.outputs.items()} == outputs
        assert {s.dtype for s in tensors.outputs.values()} == {"float32"}
        pictures = {n for n, shape in inputs.items() if len(shape) == 3}
        assert {n for n, s in tensors.inputs.items() if s.dtype == "float16"} == pictures
