"""An ONNX file is data: one static graph of plain operators with its tensors inside, or refused.

Nothing is executed, downloaded or opened beside the file. External data, functions, custom
domains, subgraphs (control flow), sparse and quantised tensors and dynamic shapes are refused; the
first dimension of the input is the batch, and no operator may mix its rows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tensorguard.errors import ConfigurationError, MalformedInput
from tensorguard.moai.compile.network import ModelNotSupported
from tensorguard.moai.compile.static_graph import (
    MAX_ELEMENTS,
    MAX_NODES,
    MAX_RANK,
    Array,
    Attribute,
    Node,
    StaticGraph,
    check_order,
)
from tensorguard.wire.models import MAX_FEATURES

if TYPE_CHECKING:
    import onnx

MAX_ONNX = 256 << 20
OPSETS = range(7, 27)


class OnnxMissing(ConfigurationError):
    code = "onnx_missing"
    remedy = "Install the extra: pip install 'tensorguard[onnx]'."


def read_graph(data: bytes) -> StaticGraph:
    """Parse and check the bytes of an `.onnx` file. Raises `ModelNotSupported` and others."""
    if len(data) > MAX_ONNX:
        raise MalformedInput(f"an ONNX file has at most {MAX_ONNX} bytes")
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise OnnxMissing("onnx is not installed") from error
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise MalformedInput("this is not an ONNX file") from error
    graph = model.graph
    if not graph.node or len(graph.node) > MAX_NODES:
        raise ModelNotSupported(f"an ONNX graph has 1 to {MAX_NODES} nodes")
    if model.functions or model.training_info:
        raise ModelNotSupported("the file defines functions: export with them inlined")
    if graph.sparse_initializer or graph.quantization_annotation:
        raise ModelNotSupported("sparse and quantised tensors are not supported: export in float32")
    opset = _opset(model)
    constants = _constants(graph)
    nodes = tuple(_node(index, node, constants) for index, node in enumerate(graph.node))
    if sum(value.size for value in constants.values()) > MAX_ELEMENTS:
        raise ModelNotSupported(f"the tensors have over {MAX_ELEMENTS} numbers")
    name, shape = _only_input(graph, constants)
    if len(graph.output) != 1:
        raise ModelNotSupported(f"the graph has {len(graph.output)} outputs; one is supported")
    output = graph.output[0].name
    check_order(nodes, {name, *constants}, output)
    return StaticGraph(nodes, constants, name, shape, output, opset)


def _opset(model: onnx.ModelProto) -> int:
    versions = [x.version for x in model.opset_import if x.domain in {"", "ai.onnx"}]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise ModelNotSupported(f"the operator set is one of {OPSETS[0]} to {OPSETS[-1]}")
    return int(versions[0])


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    constants: dict[str, Array] = {}
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in constants:
            raise MalformedInput("two tensors have the same name")
        constants[tensor.name] = _array(tensor, tensor.name)
    return constants


def _node(index: int, proto: onnx.NodeProto, constants: dict[str, Array]) -> Node:
    attributes: dict[str, Attribute] = {}
    label = repr((proto.name or f"#{index}")[:80])
    node = Node(proto.op_type[:40], label, tuple(proto.input), tuple(proto.output), attributes)
    if proto.domain not in {"", "ai.onnx"}:
        raise node.refuse(f"the domain {proto.domain[:80]!r} is not ONNX's own")
    if not any(proto.output):
        raise node.refuse("it has no output")
    for entry in proto.attribute:
        if entry.ref_attr_name or entry.name in attributes:
            raise node.refuse("an attribute is a reference or given twice")
        attributes[entry.name] = _attribute(entry, node)
    if node.op == "Constant":
        value = attributes.get("value", attributes.get("value_float", attributes.get("value_int")))
        value = attributes.get("value_floats", attributes.get("value_ints", value))
        if value is None or isinstance(value, str) or len(attributes) != 1:
            raise node.refuse("the constant is not a number tensor")
        constants[node.outputs[0]] = _numbers(value)
    return node


def _numbers(value: float | tuple[float, ...] | Array) -> Array:
    array = np.asarray(value)
    return array.astype(np.int64) if array.dtype.kind == "i" else array.astype(np.float64)


def _attribute(entry: onnx.AttributeProto, node: Node) -> Attribute:
    kinds = type(entry)
    if entry.type == kinds.INT:
        return int(entry.i)
    if entry.type == kinds.FLOAT:
        return float(entry.f)
    if entry.type == kinds.STRING:
        return entry.s[:256].decode(errors="replace")
    if entry.type == kinds.INTS:
        return tuple(int(x) for x in entry.ints)
    if entry.type == kinds.FLOATS:
        return tuple(float(x) for x in entry.floats)
    if entry.type == kinds.TENSOR:
        return _array(entry.t, node.label)
    raise node.refuse(f"attribute {entry.name[:40]!r} holds a graph or another unsupported type")


def _array(tensor: onnx.TensorProto, name: str) -> Array:
    """Decode a tensor. Floats become float64, integers int64."""
    if tensor.external_data or tensor.data_location != type(tensor).DEFAULT:
        raise ModelNotSupported(
            f"tensor {name[:80]!r} is in another file: save the model with its data inside"
        )
    shape = tuple(int(size) for size in tensor.dims)
    if len(shape) > MAX_RANK or any(size < 0 for size in shape) or tensor.HasField("segment"):
        raise MalformedInput(f"tensor {name[:80]!r} has no usable shape")
    size = math.prod(shape)
    kinds = type(tensor)
    known: dict[int, tuple[str, str]] = {
        kinds.FLOAT: ("<f4", "float_data"),
        kinds.DOUBLE: ("<f8", "double_data"),
        kinds.FLOAT16: ("<f2", ""),
        kinds.INT64: ("<i8", "int64_data"),
        kinds.INT32: ("<i4", "int32_data"),
        kinds.BOOL: ("|u1", "int32_data"),
    }
    if tensor.data_type not in known or size > MAX_ELEMENTS:
        raise ModelNotSupported(f"tensor {name[:80]!r} is not of float32 or int64, or too large")
    dtype, typed = known[tensor.data_type]
    if tensor.raw_data:
        if len(tensor.raw_data) != size * np.dtype(dtype).itemsize:
            raise MalformedInput(f"tensor {name[:80]!r} does not have the size of its shape")
        flat = np.frombuffer(tensor.raw_data, dtype=dtype)
    else:
        flat = np.asarray(getattr(tensor, typed) if typed else ())
        if flat.size != size:
            raise MalformedInput(f"tensor {name[:80]!r} does not have the size of its shape")
    result = flat.reshape(shape)
    if dtype[1] == "f":
        if not np.isfinite(result).all():
            raise ModelNotSupported(f"tensor {name[:80]!r} is not finite")
        return np.asarray(result, dtype=np.float64)
    return np.asarray(result, dtype=np.int64)


def _only_input(graph: onnx.GraphProto, constants: dict[str, Array]) -> tuple[str, tuple[int, ...]]:
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ModelNotSupported(f"the graph has {len(inputs)} inputs; one is supported")
    given = inputs[0]
    kind = given.type.tensor_type
    if not given.name or not given.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise ModelNotSupported("the input has no static shape: export with fixed sizes")
    if not kind.shape.dim:
        raise ModelNotSupported("the input's first dimension is the batch: 1, or a name")
    batch, *rest = kind.shape.dim
    if batch.HasField("dim_value") and batch.dim_value != 1:
        raise ModelNotSupported("the input's first dimension is the batch: 1, or a name")
    if not rest or len(rest) > MAX_RANK or any(not size.HasField("dim_value") for size in rest):
        raise ModelNotSupported("only the batch may be dynamic: export with fixed sizes")
    shape = tuple(int(size.dim_value) for size in rest)
    if min(shape) < 1 or math.prod(shape) > MAX_FEATURES:
        raise ModelNotSupported(f"the input has 1 to {MAX_FEATURES} numbers")
    return given.name, shape
