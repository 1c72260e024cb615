"""The rewritten graphs: same numbers in any batch, float16 where it is safe, refused where not."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.checkpoint import NETWORKS, Checkpoint, open_checkpoint
from models.runtime import build, graph
from models.runtime.engine import EngineError

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(verify=False)


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_free_batch_changes_no_number(checkpoint: Checkpoint, name: str) -> None:
    model = graph.load_graph(checkpoint.network(name))
    graph.dynamic_batch(model)
    feeds = [build.example_feeds(checkpoint, name, seed) for seed in range(3)]
    wanted = build.reference_outputs(checkpoint.network(name), feeds)
    found = build.run_graph(model.SerializeToString(), feeds)
    for output, value in wanted.items():
        assert np.ptp(value, axis=0).max() > 1e-4, "three inputs, three answers"
        np.testing.assert_allclose(found[output], value, atol=3e-5)


@pytest.mark.parametrize("target", ["sm75", "sm86"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float16_is_near_and_real(checkpoint: Checkpoint, name: str, target: str) -> None:
    converted = build.convert(checkpoint, name, target)
    worst = max(converted.errors.values())
    assert 1e-6 < worst < 5e-3, "rounding to float16 shows, and is small"
    model = onnx.load_from_string(converted.model)
    kinds = types(model)
    heavy = [n for n in model.graph.node if n.op_type in graph.HEAVY]
    assert heavy
    assert {kinds[n.output[0]] for n in heavy} == {TensorProto.FLOAT16}
    floats = [n for n in model.graph.node if n.op_type in ("MatMul", "Einsum")]
    if target == "sm75":
        assert not floats
    for tensor in model.graph.output:
        assert tensor.type.tensor_type.elem_type == TensorProto.FLOAT
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"
    for node in model.graph.node:
        if node.op_type in graph.EXACT:
            assert kinds[node.output[0]] == TensorProto.FLOAT, node.op_type


def test_positions_stay_exact(checkpoint: Checkpoint) -> None:
    converted = build.convert(checkpoint, "generator", "sm86")
    assert converted.errors["flow"] < 5e-5, "a fortieth of a pixel at 512"


def test_a_graph_that_loses_too_much_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "TOLERANCE", 1e-9)
    with pytest.raises(EngineError, match=r"audio\.onnx in float16 differs by .* in lip"):
        build.convert(checkpoint, "audio", "sm86")


def small_model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_batch_norms_become_factor_and_offset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {n: rng.random(4).astype(np.float32) + 0.1 for n in ("g", "b", "m", "v")}
    model = small_model(
        [helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])], values
    )
    onnx.save(model, tmp_path / "norm.onnx")
    loaded = graph.load_graph(tmp_path / "norm.onnx")
    assert [n.op_type for n in loaded.graph.node] == ["Mul", "Add"]
    feeds = [{"x": rng.random((1, 4, 6, 6), np.float32)}]
    np.testing.assert_allclose(
        build.run_graph(loaded.SerializeToString(), feeds)["y"],
        build.reference_outputs(tmp_path / "norm.onnx", feeds)["y"],
        atol=1e-6,
    )


def test_what_depends_on_weights_alone_is_worked_out_once(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).random((4, 4, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["w", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["turned"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "turned"], ["y"]),
    ]
    model = small_model(nodes, {"w": weight, "scale": np.float32([2.0])})
    onnx.save(model, tmp_path / "scaled.onnx")
    loaded = graph.load_graph(tmp_path / "scaled.onnx")
    assert [n.op_type for n in loaded.graph.node] == ["Conv"]
    (found,) = loaded.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(found), 2 * weight.transpose(1, 0, 2, 3))


def test_constants_that_overflow_are_refused(tmp_path: Path) -> None:
    weight = np.full((4, 4, 1, 1), 1e5, np.float32)
    model = small_model([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": weight})
    onnx.save(model, tmp_path / "large.onnx")
    loaded = graph.load_graph(tmp_path / "large.onnx")
    with (
        pytest.raises(ValueError, match="constant w does not fit float16"),
        np.errstate(all="ignore"),
    ):
        graph.mixed_half(loaded)


def test_what_cannot_be_written_plainly_is_refused() -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="bchw,cd->bdhw")
    model = small_model([node], {"w": np.eye(4, dtype=np.float32)})
    with pytest.raises(ValueError, match="cannot write Einsum"):
        graph.plain_products(model)
