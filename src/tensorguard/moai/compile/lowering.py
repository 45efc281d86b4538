"""Static graphs, lowered to a chain of linear layers with activations between them.

Everything linear between two activations is one affine map, also across parallel branches: that
merges batch norms, pools and LoRA adapters. What is no such chain is refused with the node named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.moai.compile.affine import MAX_WORK, Affine, MatrixTooLarge, check_size
from tensorguard.moai.compile.network import Activation, Dense, ModelNotSupported, Network, Source
from tensorguard.moai.compile.onnx_linear import ACTIVATED, CONSTANTS, LINEAR, UNCHANGED
from tensorguard.moai.compile.pointwise import BASIC, Pointwise, recognise
from tensorguard.moai.compile.static_graph import Node, StaticGraph

Floats = npt.NDArray[np.float64]
MAX_POWER = 15
_LOOK = "put linear operators and supported activations in one chain"
_PRODUCT = (
    "it multiplies two values that both depend on the input; the second operand is a constant"
)
REASONS = {
    "MaxPool": "a maximum cannot be evaluated on encrypted data; use average pooling",
    "GlobalMaxPool": "a maximum cannot be evaluated on encrypted data; use average pooling",
    "LeakyRelu": "use Relu, Gelu, SiLU, Tanh or Sigmoid",
    "LayerNormalization": "its statistics depend on the data; use BatchNormalization",
    "InstanceNormalization": "its statistics depend on the data; use BatchNormalization",
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
    if last.stage != len(lowering.stages):
        raise graph.nodes[-1].refuse(f"the output does not depend on every activation; {_LOOK}")
    layers = (*lowering.layers(), *_dense(last, None, len(lowering.stages)))
    width = last.width
    if labels and not (softmax or logistic):
        softmax, logistic = width > 1, width == 1
    names = tuple(labels) or tuple(str(k) for k in range(max(width, 2)))
    if (softmax or logistic) and len(names) != max(width, 2):
        raise ModelNotSupported(f"the network has {max(width, 2)} classes, {len(names)} labels")
    return Network(
        layers,
        mean=np.zeros(int(np.prod(graph.shape))),
        std=np.ones(int(np.prod(graph.shape))),
        output_scale=np.ones(width),
        output_offset=np.zeros(width),
        output_activation="logistic" if logistic else "softmax" if softmax else "identity",
        labels=names if softmax or logistic else (),
        source=source,
        source_sha256=source_sha256,
        options={"opset": str(graph.opset)},
    )


def _dense(value: Affine, activation: Activation | None, stage: int) -> tuple[Dense, ...]:
    factors = value.factors or (value.composed(),)
    return tuple(
        Dense(f"dense{stage}.{k}", weight, bias, activation if k == len(factors) - 1 else None)
        for k, (weight, bias) in enumerate(factors)
    )


class _Lowering:
    """Walks the nodes once, keeping what each tensor is."""

    def __init__(self, graph: StaticGraph) -> None:
        self.graph = graph
        self.constants = dict(graph.constants)
        self.values: dict[str, Value] = {graph.input: Affine(0, graph.shape)}
        self.stages: list[tuple[Affine, Activation]] = []
        self._realised: dict[int, tuple[Pointwise, Affine]] = {}
        self._spent = 0

    def layers(self) -> tuple[Dense, ...]:
        """Return the layers up to the last activation."""
        return tuple(
            dense
            for index, (value, activation) in enumerate(self.stages)
            for dense in _dense(value, activation, index)
        )

    def run(self) -> Value:
        """Return what the graph's output is."""
        for node in self.graph.nodes:
            if node.op == "Constant":
                continue
            if any(node.outputs[1:]) and node.op != "Dropout":
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
        if node.op in BASIC:
            return _pointwise(values[0]).apply(BASIC[node.op])
        if node.op in ACTIVATED:
            return _pointwise(values[0]).apply(ACTIVATED[node.op](node))
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
                f"Tanh, Sigmoid or a polynomial of degree at most {MAX_POWER}"
            )
        if match.activation is None:
            result = value.root.times(match.gain, match.offset)
        else:
            if value.root.stage != len(self.stages):
                raise node.refuse(
                    f"two activations stand side by side, not one behind the other; {_LOOK}"
                )
            inner = value.root
            if (match.a, match.b) != (1.0, 0.0):
                inner = inner.times(match.a, match.b)
            self.stages.append((inner, match.activation))
            result = Affine(len(self.stages), inner.shape)
            if (match.gain, match.offset) != (1.0, 0.0):
                result = result.times(match.gain, match.offset)
        self._realised[id(value)] = (value, result)
        return result

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
        if scale.size == shift.size == 1 and constant.ndim <= _rank(value) + 1:
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
        a, b = _pointwise(left), _pointwise(right)
        if node.op == "Mul" and a.root is b.root:
            return a.times(b)
        if node.op not in {"Add", "Sub", "Sum"}:
            raise node.refuse(_PRODUCT)
        if node.op == "Sub":
            right, b = _times(right, -1.0, 0.0), b.scaled(-1.0, 0.0)
        if a.root is b.root:
            return a.plus(b)
        first, second = self.realised(left, node), self.realised(right, node)
        if first.stage != second.stage:
            raise node.refuse(
                "it adds values from before and behind an activation (a residual connection); "
                "leave the shortcut out, or keep the branch between free of activations"
            )
        if first.shape != second.shape:
            raise node.refuse("it adds values of two shapes")
        self._spend(node, first.size + second.size)
        return first.plus(second)


def _pointwise(value: Affine | Pointwise) -> Pointwise:
    return value if isinstance(value, Pointwise) else Pointwise.of(value)


def _rank(value: Affine | Pointwise) -> int:
    return len(value.shape if isinstance(value, Affine) else value.root.shape)


def _times(value: Affine | Pointwise, scale: float, shift: float) -> Affine | Pointwise:
    return value.times(scale, shift) if isinstance(value, Affine) else value.scaled(scale, shift)


def _power(node: Node, value: Affine | Pointwise, exponent: float) -> Pointwise:
    if exponent not in range(1, MAX_POWER + 1):
        raise node.refuse(f"a power is a whole number from 1 to {MAX_POWER}")
    base = _pointwise(value)
    result = base
    for _ in range(int(exponent) - 1):
        result = result.times(base)
    return result
