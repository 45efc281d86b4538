"""A trained network as its framework defines it: dense layers with activations, sums and products.

A layer takes the one before it, or an earlier one by its name; the input is the first layer's alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.moai import bases
from tensorguard.moai.bases import Basis
from tensorguard.moai.graph import StandsFor
from tensorguard.moai.plan import Joining

Floats = npt.NDArray[np.float64]
Function = StandsFor
Source = Literal["scikit-learn", "safetensors", "onnx", "pytorch"]


class ModelNotSupported(MalformedInput):
    code = "model_not_supported"
    remedy = (
        "Use linear layers with activations between them, as docs/models.md lists them: "
        "scikit-learn (.skops), ONNX (.onnx), PyTorch (.pt2), or safetensors with a layer description."
    )


def _inverse_root(x: Floats) -> Floats:
    """Return 1/sqrt(x); of what is not positive, where no calibrated value is, that of a tiny number."""
    return np.asarray(1 / np.sqrt(np.maximum(x, np.finfo(np.float64).tiny)))


_PLAIN: dict[Function, Callable[[Floats], Floats]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "rsqrt": _inverse_root,
    "tanh": np.tanh,
}


@dataclass(frozen=True, eq=False)
class Activation:
    """An elementwise function; a polynomial has the coefficients of 1, x, x² and so on.

    In the Chebyshev basis they are those of T_0, T_1, …, and the polynomial is meant for [-1, 1].
    """

    function: Function
    coefficients: tuple[float, ...] = ()
    basis: Basis = "monomial"

    def __call__(self, x: Floats) -> Floats:
        """Evaluate elementwise."""
        if self.function in _PLAIN:
            return np.asarray(_PLAIN[self.function](x))
        if self.function in {"logistic", "silu"}:
            logistic = 1 / (1 + np.exp(-np.clip(x, -500, 500)))
            return np.asarray(logistic * x if self.function == "silu" else logistic)
        if self.function == "gelu":
            return np.asarray(x * (1 + _erf(x / math.sqrt(2))) / 2)
        if self.function == "gelu_tanh":
            return np.asarray(x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2)
        return bases.evaluate(np.array([self.coefficients]), x, self.basis)


@dataclass(frozen=True, eq=False)
class Dense:
    """weight (outputs, inputs), bias (outputs,), and the activation behind it, if any."""

    name: str
    weight: Floats
    bias: Floats
    activation: Activation | None
    of: str | None = None

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:  # noqa: PLR2004 -- a matrix
            raise ModelNotSupported(f"layer {self.name}: weight and bias do not fit each other")
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise ModelNotSupported(f"layer {self.name}: a weight is not finite")

    @property
    def takes(self) -> tuple[str | None, ...]:
        """Return the names of the layers that it takes; None: the one before."""
        return (self.of,)

    def __call__(self, x: Floats) -> Floats:
        """Evaluate on rows (n, inputs)."""
        values = x @ self.weight.T + self.bias
        return values if self.activation is None else self.activation(values)


@dataclass(frozen=True, eq=False)
class Join:
    """The sum or the product of two layers of the same width."""

    name: str
    kind: Joining
    other: str
    of: str | None = None

    @property
    def takes(self) -> tuple[str | None, ...]:
        """Return the names of the layers that it takes; None: the one before."""
        return (self.of, self.other)

    def __call__(self, x: Floats, y: Floats) -> Floats:
        """Evaluate on rows (n, width)."""
        return x + y if self.kind == "add" else x * y


NetworkLayer = Dense | Join


def named(layers: Sequence[NetworkLayer]) -> list[tuple[str | None, ...]]:
    """Return the names of what each layer takes; None is the network's input.

    Raises `ModelNotSupported` for a name that is not before it.
    """
    known: set[str] = set()
    found: list[tuple[str | None, ...]] = []
    for number, layer in enumerate(layers):
        before = layers[number - 1].name if number else None
        taken = tuple(before if name is None else name for name in layer.takes)
        if any(name is not None and name not in known for name in taken) or layer.name in known:
            raise ModelNotSupported(f"layer {layer.name} is there twice, or takes a later one")
        known.add(layer.name)
        found.append(taken)
    return found


@dataclass(frozen=True, eq=False)
class Network:
    """Standardise, apply the layers, rescale, then `output_activation`."""

    steps: tuple[NetworkLayer, ...]
    mean: Floats
    std: Floats
    output_scale: Floats
    output_offset: Floats
    output_activation: Literal["identity", "softmax", "logistic"] = "identity"
    labels: tuple[str, ...] = ()
    source: Source = "safetensors"
    source_sha256: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.steps:
            raise ModelNotSupported("the network has no layer")
        width = self._width()
        if isinstance(self.steps[-1], Join) or self.steps[-1].activation is not None:
            raise ModelNotSupported("the last layer is linear; its activation is the client's")
        if len(self.output_scale) != width or len(self.output_offset) != width:
            raise ModelNotSupported(f"the output scaling is not for {width} outputs")
        if (self.std <= 0).any() or (self.output_scale <= 0).any():
            raise ModelNotSupported("standard deviations and output scales are positive")

    @property
    def layers(self) -> tuple[Dense, ...]:
        """Return the dense layers: all that there is in a plain chain."""
        return tuple(step for step in self.steps if isinstance(step, Dense))

    @property
    def last(self) -> Dense:
        """Return the last layer."""
        layer = self.steps[-1]
        if isinstance(layer, Join):
            raise TypeError("a network ends with a dense layer")
        return layer

    def _width(self) -> int:
        """Return how many values come out, once all layers fit each other."""
        widths: dict[str | None, int] = {None: len(self.mean)}
        for layer, taken in zip(self.steps, named(self.steps), strict=True):
            come = {widths[name] for name in taken}
            wanted = {layer.weight.shape[1]} if isinstance(layer, Dense) else come
            if come != wanted or len(come) != 1:
                raise ModelNotSupported(
                    f"layer {layer.name} takes {sorted(wanted)} values, {sorted(come)} come"
                )
            widths[layer.name] = len(layer.bias) if isinstance(layer, Dense) else come.pop()
        return widths[self.steps[-1].name]

    def raw(self, x: Floats) -> Floats:
        """Return the last layer's values for rows of raw inputs, before the output scaling."""
        values: dict[str | None, Floats] = {None: (x - self.mean) / self.std}
        for layer, taken in zip(self.steps, named(self.steps), strict=True):
            values[layer.name] = layer(*(values[name] for name in taken))
        return values[self.steps[-1].name]


def merged(layers: Sequence[NetworkLayer]) -> tuple[NetworkLayer, ...]:
    """Multiply out linear layers that have no activation between them, where that is no more work.

    Factors of low rank, such as the two of an adapter, stay apart, and so does what others take too.
    """
    takes = named(layers)
    uses = Counter(name for taken in takes for name in taken)
    result: list[NetworkLayer] = []
    sources: dict[str, str | None] = {}  # of the layers in the result
    for layer, (first, *_) in zip(layers, takes, strict=True):
        before = next((x for x in result if x.name == first), None)
        made, source = layer, first
        if (
            isinstance(layer, Dense)
            and isinstance(before, Dense)
            and before.activation is None
            and uses[before.name] == 1
            and not _low_rank(before, layer)
        ):
            result.remove(before)
            weight, bias = layer.weight @ before.weight, layer.weight @ before.bias + layer.bias
            made, source = replace(layer, weight=weight, bias=bias), sources[before.name]
        sources[layer.name] = source
        result.append(replace(made, of=source))
    return tuple(_implicit(result))


def separated(layers: Sequence[NetworkLayer]) -> tuple[NetworkLayer, ...]:
    """Let the first factor of every product be a dense layer that nothing else takes.

    Where neither factor is one, a layer that changes nothing is put before the product.
    """
    takes = named(layers)
    uses = Counter(name for taken in takes for name in taken)
    widths: dict[str | None, int] = {}
    own: set[str | None] = set()
    result: list[NetworkLayer] = []
    for layer, (first, *others) in zip(layers, takes, strict=True):
        if isinstance(layer, Dense):
            widths[layer.name] = len(layer.bias)
            own |= {layer.name} if uses[layer.name] == 1 else set()
            result.append(replace(layer, of=first))
            continue
        widths[layer.name] = widths[first]
        left, right = first, others[0]
        if layer.kind == "product" and left not in own:
            left, right = right, left
        if layer.kind == "product" and left not in own:
            eye = np.eye(widths[left])
            result.append(Dense(f"{layer.name}.alone", eye, np.zeros(len(eye)), None, left))
            left = result[-1].name
        result.append(replace(layer, of=left, other=str(right)))
    return tuple(_implicit(result))


def _implicit(layers: Sequence[NetworkLayer]) -> Iterator[NetworkLayer]:
    """Name what a layer takes only where it is not the one before."""
    before: str | None = None
    for layer in layers:
        yield replace(layer, of=None) if layer.of == before else layer
        before = layer.name


def _low_rank(before: Dense, layer: Dense) -> bool:
    """Return whether the two have less than half the weights of their product."""
    product = layer.weight.shape[0] * before.weight.shape[1]
    return bool(2 * (before.weight.size + layer.weight.size) < product)


def _erf(x: Floats) -> Floats:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))
