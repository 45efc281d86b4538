"""Static graphs, lowered to linear layers with activations, sums and products between them.

Everything linear between two activations is one affine map, also across parallel branches: that
merges batch norms, pools and LoRA adapters. A sum of values behind different activations, such as a
residual connection, is a layer, and so is a product. What is none of these is refused with its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tensorguard.moai.compile.affine import MAX_WORK, Affine, MatrixTooLarge, check_size
from tensorguard.moai.compile.network import Activation, ModelNotSupported, Network, Source
from tensorguard.moai.compile.onnx_linear import (
    ACTIVATED,
    CONSTANTS,
    LINEAR,
    UNCHANGED,
    layer_norm_of,
)
from tensorguard.moai.compile.pointwise import BASIC, Pointwise, recognise
from tensorguard.moai.compile.stages import Activated, Joined, Stage, network_layers
from tensorguard.moai.compile.static_graph import Node, StaticGraph

Floats = npt.NDArray[np.float64]
MAX_POWER = 15
_LOOK = "use linear operators, supported activations, and their sums and products"
_PRODUCT = "it multiplies matrices that both depend on the input; the second operand is a constant"
REASONS = {
    "MaxPool": "a maximum cannot be evaluated on encrypted data; use average pooling",
    "GlobalMaxPool": "a maximum cannot be evaluated on encrypted data; use average pooling",
    "LeakyRelu": "use Relu, Gelu, SiLU, Tanh or Sigmoid",
    "InstanceNormalization": "use LayerNormalization or BatchNormalization",
    "GroupNormalization": "use LayerNormalization or BatchNormalization",
    "If": "control flow is not static; export the branch that is used",
    "Loop": "control flow is not static; unroll it",
    "Scan": "control flow is not static; unroll it",
    "QuantizeLinear": "export the model in float32, before quantisation",
    "ArgMax": "remove it; the client takes the largest output",
    "Shape": "shapes are computed while it runs; export with fixed sizes",
}


@dataclass(frozen=True, eq=False)
class Softmax:
    """A softmax over `value`: the client's, so nothing may follow."""

    value: Affine


Value = Affine | Pointwise | Softmax


def lowered(
    graph: StaticGraph, *, labels: Sequence[str], source: Source, source_sha256: str
) -> Network:
    """Return the network that a graph is. Raises `ModelNotSupported` and others.

    `labels` name the classes; with them, plain outputs are taken for logits.
    """
    lowering = _Lowering(graph)
    result = lowering.run()
    last = result.value if isinstance(result, Softmax) else result
    softmax = isinstance(result, Softmax)
    logistic = False
    if isinstance(last, Pointwise):
        match = recognise(last)
        known = match.activation if match and match.plain else None
        logistic = last.root.width == 1 and known is not None and known.function == "logistic"
        last = last.root if logistic else lowering.realised(last, graph.nodes[-1])
    features = int(np.prod(graph.shape))
    layers = network_layers(lowering.stages, last, features=features)
    width = last.width
    if labels and not (softmax or logistic):
        softmax, logistic = width > 1, width == 1
    names = tuple(labels) or tuple(str(k) for k in range(max(width, 2)))
    if (softmax or logistic) and len(names) != max(width, 2):
        raise ModelNotSupported(f"the network has {max(width, 2)} classes, {len(names)} labels")
    return Network(
        layers,
        mean=np.zeros(features),
        std=np.ones(features),
        output_scale=np.ones(width),
        output_offset=np.zeros(width),
        output_activation="logistic" if logistic else "softmax" if softmax else "identity",
        labels=names if softmax or logistic else (),
        source=source,
        source_sha256=source_sha256,
        options={"opset": str(graph.opset)},
    )


class _Lowering:
    """Walks the nodes once, keeping what each tensor is."""

    def __init__(self, graph: StaticGraph) -> None:
        self.graph = graph
        self.constants = dict(graph.constants)
        self.values: dict[str, Value] = {graph.input: Affine(0, graph.shape)}
        self.stages: list[Stage] = []
        self._realised: dict[int, tuple[Pointwise, Affine]] = {}
        self._spent = 0

    def run(self) -> Value:
        """Return what the graph's output is."""
        for node in self.graph.nodes:
            if node.op == "Constant":
                continue
            if any(node.outputs[1:]) and node.op not in {"Dropout", "LayerNormalization"}:
                raise node.refuse("it has more than one output")
            if all(not name or name in self.constants for name in node.inputs):
                self._constant(node)
            else:
                result = self._apply(node)
                self.values[node.outputs[0]] = result
                if isinstance(result, Affine) and result.factors:
                    self._spend(node, result.factors[-1][0].size)
        if self.graph.output not in self.values:
            raise self.graph.nodes[-1].refuse("the output does not depend on the input")
        return self.values[self.graph.output]

    def _spend(self, node: Node, numbers: int) -> None:
        """Bound the memory and time that a small file can ask for."""
        self._spent += numbers
        if self._spent > MAX_WORK:
            raise MatrixTooLarge(f"node {node.label}: the layers take over {MAX_WORK} numbers")

    def _constant(self, node: Node) -> None:
        function = CONSTANTS.get(node.op)
        if function is None:
            raise node.refuse(
                REASONS.get(node.op, "it computes a constant in a way not supported; fold it")
            )
        given = [self.constants[name] for name in node.inputs if name]
        check_size(max(value.size for value in given), len(given))
        try:
            with np.errstate(all="ignore"):
                result = function(node, given)
        except (ValueError, TypeError, IndexError) as error:
            raise node.refuse("its constants do not fit each other") from error
        if not np.isfinite(result).all():
            raise node.refuse("its constant is not finite")
        self.constants[node.outputs[0]] = result

    def _apply(self, node: Node) -> Value:
        given = [self.values[name] for name in node.inputs if name in self.values]
        if any(isinstance(value, Softmax) for value in given):
            if node.op == "Identity":
                return given[0]
            raise node.refuse("it follows a softmax, which only the client can take, at the end")
        values = [value for value in given if not isinstance(value, Softmax)]
        if node.op in BASIC or node.op in ACTIVATED:
            function = BASIC[node.op] if node.op in BASIC else ACTIVATED[node.op](node)
            return _pointwise(values[0]).apply(function)
        if node.op == "LayerNormalization":
            return self._layer_norm(node, values)
        if node.op in {"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sum"}:
            return self._arithmetic(node, values)
        if node.op == "Softmax":
            return self._softmax(node, values[0])
        return self._linear(node, values)

    def _softmax(self, node: Node, given: Affine | Pointwise) -> Softmax:
        value = self.realised(given, node)
        axis = node.integer("axis", 1 if self.graph.opset < 13 else -1)  # noqa: PLR2004 -- its default changed
        if len(value.shape) != 1 or axis not in {-1, 1}:
            raise node.refuse("a softmax is over the classes, at the end")
        return Softmax(value)

    def _linear(self, node: Node, values: list[Affine | Pointwise]) -> Affine | Pointwise:
        if node.op not in LINEAR and node.op not in UNCHANGED:
            raise node.refuse(REASONS.get(node.op, f"this operator is not supported; {_LOOK}"))
        if len(values) != 1 or node.inputs[0] not in self.values:
            raise node.refuse(_PRODUCT)
        constants = [self.constants[name] if name else None for name in node.inputs[1:]]
        if node.op in UNCHANGED:
            UNCHANGED[node.op](node, constants)
            return values[0]
        try:
            return LINEAR[node.op](node, self.realised(values[0], node), constants)
        except (ValueError, IndexError) as error:
            raise node.refuse("its operands do not fit each other") from error

    def realised(self, value: Affine | Pointwise, node: Node) -> Affine:
        """Return the value as an affine map of the newest activation that it needs."""
        if isinstance(value, Affine):
            return value
        if id(value) in self._realised:
            return self._realised[id(value)][1]
        match = recognise(value)
        if match is None:
            raise node.refuse(
                "its input is an elementwise function that is not supported; use Relu, Gelu, SiLU, "
                f"Tanh, Sigmoid, 1/sqrt or a polynomial of degree at most {MAX_POWER}"
            )
        if match.activation is None:
            result = value.root.times(match.gain, match.offset)
        else:
            inner = value.root
            if (match.a, match.b) != (1.0, 0.0):
                inner = inner.times(match.a, match.b)
            result = self._stage(Activated(inner, match.activation), inner.shape)
            if (match.gain, match.offset) != (1.0, 0.0):
                result = result.times(match.gain, match.offset)
        self._realised[id(value)] = (value, result)
        return result

    def _stage(self, stage: Stage, shape: tuple[int, ...]) -> Affine:
        self.stages.append(stage)
        return Affine(len(self.stages), shape)

    def _layer_norm(self, node: Node, values: list[Affine | Pointwise]) -> Affine:
        """Centre, square, average, take the inverse root, multiply by what was centred."""
        if len(values) != 1 or node.inputs[0] not in self.values:
            raise node.refuse("its scale depends on the input")
        value = self.realised(values[0], node)
        gain, bias, epsilon, size = layer_norm_of(node, value, self.constants)
        check_size(value.width, value.width)
        self._spend(node, 3 * value.width**2)
        mean = np.kron(np.eye(value.width // size), np.full((size, size), 1 / size))
        centre = np.asarray(np.eye(value.width) - mean, dtype=np.float64)
        centred = value.linear(centre, None, value.shape)
        square = Activation("polynomial", (0.0, 0.0, 1.0))
        squares = self._stage(Activated(centred, square), value.shape)
        variance = squares.linear(mean, np.full(value.width, epsilon), value.shape)
        root = self._stage(Activated(variance, Activation("rsqrt")), value.shape)
        return self._stage(Joined("product", root, centred), value.shape).scaled(gain, bias)

    def _arithmetic(self, node: Node, values: list[Affine | Pointwise]) -> Affine | Pointwise:
        if node.op == "Neg":
            return _times(values[0], -1.0, 0.0)
        if len(values) == len(node.inputs):
            return self._together(node, values)
        if len(node.inputs) != 2:  # noqa: PLR2004 -- an operator with two operands
            raise node.refuse("a sum with constants has two operands")
        value, first = values[0], node.inputs[0] in self.values
        constant = np.asarray(self.constants[node.inputs[1 if first else 0]], dtype=np.float64)
        if node.op == "Pow" and first and constant.size == 1:
            return _power(node, value, float(constant.ravel()[0]))
        if node.op in {"Div", "Pow"} and not first:
            raise node.refuse("it divides by, or raises to, a value that depends on the input")
        if node.op == "Pow" or (node.op == "Div" and not constant.all()):
            raise node.refuse("the constant is zero, or not a number")
        sign = -1.0 if node.op == "Sub" and not first else 1.0
        if node.op in {"Mul", "Div"}:
            scale, shift = (constant if node.op == "Mul" else 1 / constant), np.zeros(1)
        else:
            shift = -constant if node.op == "Sub" and first else constant
            scale = np.full(1, sign)
        if scale.size == shift.size == 1 and constant.ndim <= len(_shape(value)) + 1:
            return _times(value, float(scale.ravel()[0]), float(shift.ravel()[0]))
        affine = self.realised(value, node)
        target = (1, *affine.shape)
        try:
            return affine.scaled(
                np.broadcast_to(scale, target).ravel(), np.broadcast_to(shift, target).ravel()
            )
        except ValueError as error:
            raise node.refuse("the constant does not have the shape of the value") from error

    def _together(self, node: Node, values: list[Affine | Pointwise]) -> Affine | Pointwise:
        """Combine values that all depend on the input."""
        result = values[0]
        for value in values[1:]:
            result = self._pair(node, result, value)
        return result

    def _pair(
        self, node: Node, left: Affine | Pointwise, right: Affine | Pointwise
    ) -> Affine | Pointwise:
        if node.op in {"Div", "Pow"}:
            if node.op == "Pow":
                raise node.refuse("it raises to a value that depends on the input")
            right = _pointwise(right).apply(BASIC["Reciprocal"])
        if node.op == "Sub":
            right = _times(right, -1.0, 0.0)
        a, b = _pointwise(left), _pointwise(right)
        product = node.op in {"Mul", "Div"}
        if a.root is b.root:
            return a.times(b) if product else a.plus(b)
        left, right = self._broadcast(node, left, right)
        first, second = self.realised(left, node), self.realised(right, node)
        self._spend(node, first.size + second.size)
        if product:
            return self._stage(Joined("product", first, second), first.shape)
        if first.stage == second.stage:
            return first.plus(second)
        return self._stage(Joined("add", first, second), first.shape)

    def _broadcast(
        self, node: Node, left: Affine | Pointwise, right: Affine | Pointwise
    ) -> tuple[Affine | Pointwise, Affine | Pointwise]:
        """Return both values in one shape."""
        try:
            target = np.broadcast_shapes((1, *_shape(left)), (1, *_shape(right)))
        except ValueError as error:
            raise node.refuse("it joins values of two shapes") from error
        if target[0] != 1:
            raise node.refuse("it mixes the batch with other axes")
        return _widened(left, target[1:]), _widened(right, target[1:])


def _pointwise(value: Affine | Pointwise) -> Pointwise:
    return value if isinstance(value, Pointwise) else Pointwise.of(value)


def _shape(value: Affine | Pointwise) -> tuple[int, ...]:
    return value.shape if isinstance(value, Affine) else value.root.shape


def _widened(value: Affine | Pointwise, shape: tuple[int, ...]) -> Affine | Pointwise:
    """Repeat a value along axes of size 1; a function, by repeating what it is applied to."""
    own = _shape(value)
    if own == shape:
        return value
    places = np.arange(int(np.prod(own))).reshape(own)
    check_size(int(np.prod(shape)), places.size)
    index = np.broadcast_to(places, shape)
    if isinstance(value, Affine):
        return value.picked(index)
    return replace(value, root=value.root.picked(index))


def _times(value: Affine | Pointwise, scale: float, shift: float) -> Affine | Pointwise:
    return value.times(scale, shift) if isinstance(value, Affine) else value.scaled(scale, shift)


def _power(node: Node, value: Affine | Pointwise, exponent: float) -> Pointwise:
    if exponent in {0.5, -0.5}:
        root = _pointwise(value).apply(BASIC["Sqrt"])
        return root if exponent > 0 else root.apply(BASIC["Reciprocal"])
    if exponent not in range(1, MAX_POWER + 1):
        raise node.refuse(f"a power is a whole number from 1 to {MAX_POWER}")
    base = _pointwise(value)
    result = base
    for _ in range(int(exponent) - 1):
        result = result.times(base)
    return result
