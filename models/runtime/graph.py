"""An exported network (batch 1, float32) -> the graph a GPU engine is built from.

Three rewrites, in memory; the shipped files stay as they are:

* `dynamic_batch` frees the batch axis, which the export fixed at 1;
* `mixed_half` gives every tensor a type: convolutions and linear layers are float16, what
  computes positions (face model, kernel, flow) and what sums or divides stays float32,
  because a position in float16 is a quarter of a pixel off at 512;
* `plain_products` writes small float32 matrix products as multiply and add, for cards
  whose builder has no float32 matrix product (SM 75).

`models.runtime.build` runs the result on the CPU against the original before it is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

BATCH = "batch"
#: Always float16: nearly all arithmetic of a network, accumulated in float32 by the card.
HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm"})
#: Always float32: sums over many elements, and functions that lose digits or overflow.
EXACT = frozenset(
    {"Softmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Sin", "Cos", "Einsum", "Div",
     "ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare", "InstanceNormalization",
     "LayerNormalization"}
)  # fmt: skip
#: Operands of these have one batch size: constants among them are repeated.
_ONE_BATCH = frozenset({"Concat", "GridSample"})
#: Inputs that are float32 by definition, whatever the node computes in.
_FIXED_INPUTS = {"Resize": (1, 2, 3)}
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def load_graph(path: Path) -> ModelProto:
    """Read a network of a checkpoint, its weights widened to float32, constants folded.

    Batch norms become a factor and an offset, worked out here in float64.
    """
    model = onnx.load(path)
    graph = model.graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes = tensor_shapes(model)
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Cast" and node.input[0] in values:
            to = helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
            values[node.output[0]] = values[node.input[0]].astype(to)
        elif node.input and all(i in values for i in node.input):
            # What depends on weights alone would be worked out anew in every frame.
            values.update(_evaluated(model, node, values))
        elif node.op_type == "BatchNormalization":
            nodes += _norm_as_affine(node, values, len(shapes[node.input[0]]))
        else:
            nodes.append(node)
    _set_nodes(graph, nodes)
    _set_initializers(graph, values)
    return model


def _evaluated(
    model: ModelProto, node: NodeProto, values: dict[str, NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    """Outputs of a node whose inputs are all known."""
    feeds = {name: values[name] for name in node.input}
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feeds.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    alone = helper.make_model(
        helper.make_graph([node], "constant", inputs, outputs), opset_imports=model.opset_import
    )
    found = ReferenceEvaluator(alone).run(None, feeds)
    return {n: np.asarray(v) for n, v in zip(node.output, found, strict=True)}


def _norm_as_affine(
    node: NodeProto, values: dict[str, NDArray[np.generic]], rank: int
) -> list[NodeProto]:
    gain, bias, mean, variance = (values[n].astype(np.float64) for n in node.input[1:5])
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    factor = gain / np.sqrt(variance + epsilon)
    shape = (-1, *[1] * (rank - 2))
    out = node.output[0]
    values[out + "/gain"] = factor.astype(np.float32).reshape(shape)
    values[out + "/bias"] = (bias - mean * factor).astype(np.float32).reshape(shape)
    return [
        helper.make_node("Mul", [node.input[0], out + "/gain"], [out + "/scaled"]),
        helper.make_node("Add", [out + "/scaled", out + "/bias"], [out]),
    ]


def dynamic_batch(model: ModelProto) -> None:
    """Free the leading axis of every input and output, in place.

    Raises:
        ValueError: an input or output has no leading axis of 1.
    """
    graph = model.graph
    shapes = tensor_shapes(model)
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    dependent = {i.name for i in graph.input}
    size_needed = False
    nodes: list[NodeProto] = []
    for number, node in enumerate(graph.node):
        if node.op_type == "Reshape" and node.input[1] in values:
            shape = [int(v) for v in shapes[node.output[0]]]
            if shape[0] == 1 and node.input[0] in dependent:
                values[name := f"reshape/{number}"] = np.array([-1, *shape[1:]], np.int64)
                node.input[1] = name
        elif node.op_type == "Resize" and len(node.input) > 3:
            before, after = shapes[node.input[0]], shapes[node.output[0]]
            scales = [_scale(a, b) for a, b in zip(before[1:], after[1:], strict=True)]
            values[name := f"resize/{number}"] = np.array([1, *scales], np.float32)
            _set_inputs(node, [node.input[0], "", name])
        elif node.op_type in _ONE_BATCH and dependent & set(node.input):
            fixed = [i for i in node.input if i not in dependent]
            for name in fixed:
                nodes.append(helper.make_node("Expand", [name, f"{BATCH}/size{len(shapes[name])}"],
                                              [f"{name}/{number}"]))  # fmt: skip
                size_needed = True
            _set_inputs(node, [f"{i}/{number}" if i in fixed else i for i in node.input])
        if dependent & set(node.input):
            dependent.update(node.output)
        nodes.append(node)
    for tensor in graph.output:
        if tensor.name not in dependent:
            nodes, values = _free_constant(tensor.name, nodes, values, len(shapes[tensor.name]))
            size_needed = True
    if size_needed:
        nodes = _batch_sizes(graph, values) + nodes
    _set_nodes(graph, nodes)
    _set_initializers(graph, values)
    del graph.value_info[:]
    for tensor in (*graph.input, *graph.output):
        leading = tensor.type.tensor_type.shape.dim[0]
        if leading.dim_value != 1:
            raise ValueError(f"{tensor.name} has no batch axis of 1")
        leading.dim_param = BATCH


def _scale(before: int, after: int) -> np.float32:
    """The float32 factor whose product with `before`, rounded down, is `after`."""
    scale = np.float32(after / before)
    if int(before * float(scale)) < after:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _free_constant(
    name: str, nodes: list[NodeProto], values: dict[str, NDArray[np.generic]], rank: int
) -> tuple[list[NodeProto], dict[str, NDArray[np.generic]]]:
    """Let an output that depends on no input have one copy per item of the batch."""
    one = name + "/one"
    renamed = _rename(nodes, name, one)
    renamed.append(helper.make_node("Expand", [one, f"{BATCH}/size{rank}"], [name]))
    return renamed, {one if n == name else n: v for n, v in values.items()}


def _batch_sizes(graph: GraphProto, values: dict[str, NDArray[np.generic]]) -> list[NodeProto]:
    """Nodes that make (B, 1, ...) shapes of 2 to 4 axes from the first input."""
    nodes = [helper.make_node("Shape", [graph.input[0].name], [f"{BATCH}/size"], start=0, end=1)]
    for rank in (2, 3, 4):
        values[f"{BATCH}/ones{rank}"] = np.ones(rank - 1, np.int64)
        parts = [f"{BATCH}/size", f"{BATCH}/ones{rank}"]
        nodes.append(helper.make_node("Concat", parts, [f"{BATCH}/size{rank}"], axis=0))
    return nodes


def mixed_half(model: ModelProto) -> None:
    """Type every tensor float16 or float32 and cast in between, in place; before `dynamic_batch`.

    `HEAVY` nodes are float16, `EXACT` ones float32; any other node takes the type of its
    largest operand, a draw counting as float32. Inputs that are pictures or feature maps
    (four axes) are float16: they stay on the card, and each frame reads them. All other
    inputs and all outputs are float32.
    """
    graph = model.graph
    shapes = tensor_shapes(model)
    floats = _float_tensors(model)
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    types: dict[str, int] = {}
    for tensor in graph.input:
        pictures = len(shapes[tensor.name]) == 4
        types[tensor.name] = _HALF if pictures else _FLOAT
        tensor.type.tensor_type.elem_type = types[tensor.name]
    casts = _Casts(values, types)
    nodes: list[NodeProto] = []
    for node in graph.node:
        operands = [i for i in node.input if i in types]
        if not any(o in floats for o in node.output) and node.op_type != "Cast":
            nodes.append(node)
            continue
        wanted = _wanted(node, operands, types, shapes)
        fixed = _FIXED_INPUTS.get(node.op_type, ())
        inputs = [
            casts.read(name, wanted, nodes) if name in floats and k not in fixed else name
            for k, name in enumerate(node.input)
        ]
        _set_inputs(node, inputs)
        types.update(dict.fromkeys(node.output, wanted))
        nodes.append(node)
    for tensor in graph.output:
        if types.get(tensor.name) == _HALF:
            nodes = _rename(nodes, tensor.name, tensor.name + "/half")
            nodes.append(
                helper.make_node("Cast", [tensor.name + "/half"], [tensor.name], to=_FLOAT)
            )
    _set_nodes(graph, nodes)
    _set_initializers(graph, values)
    del graph.value_info[:]


def _wanted(
    node: NodeProto, operands: list[str], types: dict[str, int], shapes: dict[str, tuple[int, ...]]
) -> int:
    if node.op_type in HEAVY:
        return _HALF
    if node.op_type in EXACT or not operands:
        return _FLOAT
    if node.op_type in ("GridSample", "Resize"):
        return types[operands[0]]
    largest = max(int(np.prod(shapes[i])) for i in operands)
    biggest = {types[i] for i in operands if int(np.prod(shapes[i])) == largest}
    return _HALF if biggest == {_HALF} else _FLOAT


class _Casts:
    """Each tensor is cast at most once, each constant stored once per type."""

    def __init__(self, values: dict[str, NDArray[np.generic]], types: dict[str, int]) -> None:
        self._values, self._types = values, types
        self._made: set[str] = set()

    def read(self, name: str, wanted: int, nodes: list[NodeProto]) -> str:
        """The name under which `name` is found as `wanted`; adds a Cast node if it must."""
        if name in self._values:
            if wanted == _FLOAT:
                return name
            half = self._values[name].astype(np.float16)
            if not np.isfinite(half).all():
                raise ValueError(f"constant {name} does not fit float16")
            self._values[name + "/half"] = half
            return name + "/half"
        if self._types[name] == wanted:
            return name
        cast = name + ("/as_half" if wanted == _HALF else "/as_float")
        if cast not in self._made:
            self._made.add(cast)
            nodes.append(helper.make_node("Cast", [name], [cast], to=wanted))
        return cast


def plain_products(model: ModelProto) -> None:
    """Write float32 MatMuls and Einsums as multiply and sum, in place.

    (..., M, K) x (..., K, N) -> reduce over K of (..., M, K, 1) * (..., 1, K, N). Einsum is
    taken only as the face model writes it, "br,rkc->bkc".
    """
    graph = model.graph
    halves = _half_tensors(model)
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes: list[NodeProto] = []
    for number, node in enumerate(graph.node):
        if node.op_type not in ("MatMul", "Einsum") or node.output[0] in halves:
            nodes.append(node)
            continue
        axes = _product_axes(node, values)
        a, b = f"product/{number}/a", f"product/{number}/b"
        for name, source, axis in ((a, node.input[0], axes[0]), (b, node.input[1], axes[1])):
            if axis is None:
                nodes.append(helper.make_node("Identity", [source], [name]))
                continue
            values[name + "/axis"] = np.array(axis, np.int64)
            nodes.append(helper.make_node("Unsqueeze", [source, name + "/axis"], [name]))
        values[f"product/{number}/over"] = np.array([axes[2]], np.int64)
        product = f"product/{number}"
        nodes.append(helper.make_node("Mul", [a, b], [product]))
        nodes.append(
            helper.make_node(
                "ReduceSum", [product, product + "/over"], list(node.output), keepdims=0
            )
        )
    _set_nodes(graph, nodes)
    _set_initializers(graph, values)


def _product_axes(
    node: NodeProto, values: dict[str, NDArray[np.generic]]
) -> tuple[list[int] | None, list[int] | None, int]:
    """Axes to insert into both operands, and the axis to sum over."""
    if node.op_type == "Einsum":
        equation = node.attribute[0].s.decode().replace(" ", "")
        if equation != "br,rkc->bkc":
            raise ValueError(f"cannot write Einsum {equation} as multiply and sum")
        return [-1, -2], None, -3
    if node.input[1] in values and values[node.input[1]].ndim == 1:
        return None, None, -1
    return [-1], [-3], -2


def tensor_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a model with fixed shapes."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {t.name: tuple(t.dims) for t in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return shapes


def _float_tensors(model: ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {t.name for t in inferred.initializer if t.data_type == _FLOAT}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.tensor_type.elem_type == _FLOAT:
            found.add(value.name)
    return found


def _half_tensors(model: ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == _HALF}


def _rename(nodes: Iterable[NodeProto], old: str, new: str) -> list[NodeProto]:
    renamed = list(nodes)
    for node in renamed:
        _set_inputs(node, [new if i == old else i for i in node.input])
        outputs = [new if o == old else o for o in node.output]
        del node.output[:]
        node.output.extend(outputs)
    return renamed


def _set_inputs(node: NodeProto, inputs: Iterable[str]) -> None:
    names = list(inputs)
    del node.input[:]
    node.input.extend(names)


def _set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def _set_initializers(graph: GraphProto, values: dict[str, NDArray[np.generic]]) -> None:
    """Keep what a node reads, or what is an output itself."""
    read = {name for node in graph.node for name in node.input} | {o.name for o in graph.output}
    del graph.initializer[:]
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in values.items() if n in read
    )
