"""A network as it is evaluated: linear layers, polynomials, sums and products, all normalised.

The client standardises the input and rescales the output; between them every value is about 1. A
layer takes the one before it, or an earlier one by its name; the input is the first layer's alone.
A graph checks itself when it is made, so that nothing is found wrong during an inference.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.moai import bases, wiring
from tensorguard.moai.bases import MAX_DEGREES, Basis
from tensorguard.moai.plan import (
    MAX_LAYERS,
    Joining,
    JoinShape,
    LinearShape,
    PolynomialShape,
    Shape,
)
from tensorguard.wire.models import MAX_FEATURES, MAX_OUTPUTS, InputScaling, OutputScaling

StandsFor = Literal["relu", "tanh", "logistic", "gelu", "gelu_tanh", "silu", "rsqrt", "polynomial"]
Floats = npt.NDArray[np.float64]
LARGEST = 1e6  # a weight or coefficient beyond this says that nothing was normalised


@dataclass(frozen=True, eq=False)
class Linear:
    """y = weight @ x + bias, with `weight` (outputs, inputs) and `bias` (outputs,)."""

    name: str
    weight: Floats
    bias: Floats
    of: str | None = None

    def __post_init__(self) -> None:
        _check_finite(self.name, self.weight, self.bias)
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:  # noqa: PLR2004 -- a matrix
            raise MalformedInput(f"layer {self.name}: weight and bias do not fit each other")
        if not self.weight.any():
            raise MalformedInput(f"layer {self.name}: all weights are zero")

    @property
    def inputs(self) -> int:
        """Return how many values it takes."""
        return int(self.weight.shape[1])

    @property
    def width(self) -> int:
        """Return how many values it gives."""
        return int(self.weight.shape[0])

    @property
    def names(self) -> tuple[str | None, ...]:
        """Return the names of the layers that it takes; None: the one before."""
        return (self.of,)

    def apply(self, x: Floats) -> Floats:
        """Evaluate on rows of `x` (n, inputs)."""
        return x @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False)
class Polynomial:
    """y_u = sum over k of coefficients[u, k] · b_k(x_u), for x in [-1, 1]; b_k is x^k or T_k(x)."""

    name: str
    coefficients: Floats
    stands_for: StandsFor
    basis: Basis = "monomial"
    of: str | None = None

    def __post_init__(self) -> None:
        _check_finite(self.name, self.coefficients)
        most = MAX_DEGREES[self.basis]
        if self.coefficients.ndim != 2 or not 1 <= self.degree <= most:  # noqa: PLR2004 -- units by powers
            raise MalformedInput(
                f"layer {self.name}: a {self.basis} polynomial has degree 1 to {most}"
            )
        if not self.coefficients[:, -1].any():
            raise MalformedInput(f"layer {self.name}: the leading coefficients are all zero")

    @property
    def degree(self) -> int:
        """Return the highest power."""
        return int(self.coefficients.shape[1]) - 1

    @property
    def inputs(self) -> int:
        """Return how many values it takes."""
        return len(self.coefficients)

    @property
    def width(self) -> int:
        """Return how many values it gives."""
        return len(self.coefficients)

    @property
    def names(self) -> tuple[str | None, ...]:
        """Return the names of the layers that it takes; None: the one before."""
        return (self.of,)

    def apply(self, x: Floats) -> Floats:
        """Evaluate on rows of `x` (n, units)."""
        return bases.evaluate(self.coefficients, x, self.basis)

    def derivative(self, x: Floats) -> Floats:
        """Evaluate the derivative on rows of `x` (n, units)."""
        return bases.derivative(self.coefficients, x, self.basis)

    @property
    def product_coefficients(self) -> Floats:
        """Return the coefficients (units, degree + 1) that a schedule evaluates."""
        return bases.product_coefficients(self.coefficients, self.basis)


@dataclass(frozen=True, eq=False)
class Join:
    """x + y or x · y, slot by slot, of two layers of the same width; `other` names the second.

    What a product multiplies first is a linear layer or a polynomial that nothing else takes: it ends
    at the scale that the product's rescale needs.
    """

    name: str
    kind: Joining
    width: int
    other: str
    of: str | None = None

    @property
    def inputs(self) -> int:
        """Return how many values it takes, of each of the two."""
        return self.width

    @property
    def names(self) -> tuple[str | None, ...]:
        """Return the names of the layers that it takes; None: the one before."""
        return (self.of, self.other)

    def apply(self, x: Floats, y: Floats) -> Floats:
        """Evaluate on rows of `x` and `y` (n, width)."""
        return x + y if self.kind == "add" else x * y


Layer = Linear | Polynomial | Join


@dataclass(frozen=True, eq=False)
class Graph:
    """The whole network, with what the client does before and after it."""

    layers: tuple[Layer, ...]
    input: InputScaling
    output: OutputScaling

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise MalformedInput(f"a network has 1 to {MAX_LAYERS} layers")
        if not isinstance(self.layers[0], Linear) or not isinstance(self.layers[-1], Linear):
            raise MalformedInput("a network begins and ends with a linear layer")
        if len({layer.name for layer in self.layers}) != len(self.layers):
            raise MalformedInput("two layers have the same name")
        check_scalings(self.input, self.output, features=self.layers[0].inputs)
        self._check_wiring()
        if self.layers[-1].width != len(self.output.scale):
            raise MalformedInput("the output scaling does not fit the last layer")

    def _check_wiring(self) -> None:
        """Check that layers take earlier ones that fit, that all are used, and products' first ones."""
        uses = Counter(source for taken in self.sources for source in taken)
        for number, (layer, taken) in enumerate(zip(self.layers, self.sources, strict=True)):
            if number < len(self.layers) - 1 and not uses[number]:
                raise MalformedInput(f"no layer takes layer {layer.name}")
            if len(set(taken)) != len(taken):
                raise MalformedInput(f"layer {layer.name} takes the same layer twice")
            for source in taken if number else ():
                given = self.layers[source].width
                if layer.inputs != given:
                    raise MalformedInput(
                        f"layer {layer.name} takes {layer.inputs} values, {given} come"
                    )
            if isinstance(layer, Join) and layer.kind == "product":
                self._check_product(layer, taken[0], uses[taken[0]])

    def _check_product(self, layer: Join, number: int, uses: int) -> None:
        first = self.layers[number]
        if isinstance(first, Join) or uses != 1:
            raise MalformedInput(
                f"layer {layer.name} multiplies {first.name}, which is no linear layer or "
                "polynomial of its own"
            )

    @cached_property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """Return what each layer takes, by number."""
        return wiring.sources(self.shapes)

    @property
    def features(self) -> int:
        """Return how many numbers the client gives."""
        return len(self.input.mean)

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Return what the planner needs to know."""
        numbers: dict[str, int] = {}
        shapes: list[Shape] = []
        for number, layer in enumerate(self.layers):
            first, *second = (
                None if name is None else _number(layer, name, numbers) for name in layer.names
            )
            if first == number - 1:
                raise MalformedInput(f"layer {layer.name} names the layer before it")
            if isinstance(layer, Linear):
                shapes.append(LinearShape(layer.name, layer.inputs, layer.width, first))
            elif isinstance(layer, Polynomial):
                shapes.append(PolynomialShape(layer.name, layer.width, layer.degree, first))
            else:
                other = number if second[0] is None else second[0]
                shapes.append(JoinShape(layer.name, layer.kind, layer.width, other, first))
            numbers[layer.name] = number
        return tuple(shapes)

    def standardise(self, x: Floats) -> Floats:
        """Return (x - mean) / std for rows of `x`."""
        return np.asarray((x - np.array(self.input.mean)) / np.array(self.input.std))

    def apply(self, x: Floats) -> Floats:
        """Evaluate in the clear on rows of raw inputs: what a perfect decryption would give."""
        return finish(self.output, self.slots(x))

    def slots(self, x: Floats) -> Floats:
        """Return what the slots would hold: before the output scaling."""
        return self.trace(self.standardise(x))[-1]

    def trace(self, values: Floats) -> list[Floats]:
        """Return what each layer gives for rows of standardised inputs."""
        found: list[Floats] = []
        for layer, operands in zip(self.layers, self.sources, strict=True):
            given = [values if source == wiring.INPUT else found[source] for source in operands]
            found.append(layer.apply(*given))
        return found

    def raw(self, x: Floats) -> Floats:
        """Return the outputs before their activation: regression values or logits."""
        scale, offset = np.array(self.output.scale), np.array(self.output.offset)
        return np.asarray(self.slots(x) * scale + offset)


def _number(layer: Layer, name: str, numbers: dict[str, int]) -> int:
    if name not in numbers:
        raise MalformedInput(f"layer {layer.name} takes {name[:80]!r}, which is not before it")
    return numbers[name]


def check_scalings(given: InputScaling, output: OutputScaling, *, features: int) -> None:
    """Check sizes and signs of both scalings. Raises `MalformedInput`."""
    columns = (given.mean, given.std, given.low, given.high)
    if not 1 <= features <= MAX_FEATURES or {len(column) for column in columns} != {features}:
        raise MalformedInput(f"the input scaling is not for {features} features")
    for values in (*columns, output.scale, output.offset):
        _check_finite("scaling", np.array(values), largest=np.inf)
    if min(given.std) <= 0 or any(a > b for a, b in zip(given.low, given.high, strict=True)):
        raise MalformedInput("the input scaling has an empty range or no spread")
    count = len(output.scale)
    if not 1 <= count <= MAX_OUTPUTS or len(output.offset) != count or min(output.scale) <= 0:
        raise MalformedInput("the output scaling is inconsistent")
    labels = {"identity": 0, "softmax": count, "logistic": 2}[output.activation]
    classify: Literal["regression", "classification"] = "classification" if labels else "regression"
    logistic = output.activation == "logistic"
    if len(output.labels) != labels or output.meaning != classify or (logistic and count != 1):
        raise MalformedInput("the output's meaning, activation and labels contradict each other")


def finish(output: OutputScaling, values: Floats) -> Floats:
    """Turn rows of decrypted values (n, outputs) into outputs: rescaled, then the activation."""
    values = np.asarray(values * np.array(output.scale) + np.array(output.offset))
    if output.activation == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if output.activation == "logistic":
        positive = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
        return np.concatenate([1 - positive, positive], axis=-1)
    return values


def _check_finite(name: str, *arrays: Floats, largest: float = LARGEST) -> None:
    for array in arrays:
        if array.dtype != np.float64 or array.size == 0 or not np.isfinite(array).all():
            raise MalformedInput(f"{name}: a tensor is empty, not float64, or not finite")
        if np.abs(array).max() > largest:
            raise MalformedInput(f"{name}: a tensor has a value over {largest:g}")
