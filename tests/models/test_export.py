"""Export: halved files hold the same numbers, a difference is refused, nothing is left half."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models import export
from models.checkpoint import open_checkpoint
from models.config import ModelConfig
from models.export import ParityError, example_inputs, export_checkpoint, export_network, store_half
from models.networks import Networks, half_precision

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(ModelConfig())


def test_half_storage_changes_no_number(networks: Networks, tmp_path: Path) -> None:
    import openvino

    half_precision(networks)
    path = tmp_path / "audio.onnx"
    inputs = example_inputs("audio", networks.config, open_checkpoint().face, 0)
    export_network(networks["audio"], inputs, path)
    before, large = path.stat().st_size, onnx.load(path)
    store_half(path)
    assert path.stat().st_size < 0.85 * before
    core = openvino.Core()
    outputs = []
    for model in (large.SerializeToString(), path.read_bytes()):
        compiled = core.compile_model(
            core.read_model(model, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        outputs.append(compiled([t.numpy() for t in inputs])[0])
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)


def test_a_checkpoint_round_trips_and_failure_leaves_the_old_one(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.networks import load_networks

    face, out = open_checkpoint().face, tmp_path / "tiny"
    export_checkpoint(networks, face, out, about={"name": "test"})
    opened = open_checkpoint(out)
    assert opened.manifest["name"] == "test"
    loaded = load_networks(opened).state_dict()
    for name, value in networks.state_dict().items():
        torch.testing.assert_close(loaded[name], value)
    monkeypatch.setattr(export, "TOLERANCE", dict.fromkeys(export.TOLERANCE, -1.0))
    with pytest.raises(ParityError, match=r"audio\.onnx differs"):
        export_checkpoint(networks, face, out, about={"name": "broken"})
    assert open_checkpoint(out).manifest["name"] == "test"
