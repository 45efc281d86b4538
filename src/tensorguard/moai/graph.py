"""A network as it is evaluated: linear layers and polynomials, nothing else, all normalised.

The client standardises the input and rescales the output; between them every value is about 1.
A graph checks itself when it is made, so that nothing is found wrong during an inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.moai import bases
from tensorguard.moai.bases import MAX_DEGREES, Basis
from tensorguard.moai.plan import MAX_LAYERS, LinearShape, PolynomialShape, Shape
from tensorguard.wire.models import MAX_FEATURES, MAX_OUTPUTS, InputScaling, OutputScaling

StandsFor = Literal["relu", "tanh", "logistic", "gelu", "gelu_tanh", "silu", "polynomial"]
Floats = npt.NDArray[np.float64]
LARGEST = 1e6  # a weight or coefficient beyond this says that nothing was normalised


@dataclass(frozen=True, eq=False)
class Linear:
    """y = weight @ x + bias, with `weight` (outputs, inputs) and `bias` (outputs,)."""

    name: str
    weight: Floats
    bias: Floats

    def __post_init__(self) -> None:
        _check_finite(self.name, self.weight, self.bias)
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:  # noqa: PLR2004 -- a matrix
            raise MalformedInput(f"layer {self.name}: weight and bias do not fit each other")
        if not self.weight.any():
            raise MalformedInput(f"layer {self.name}: all weights are zero")

    @property
    def shape(self) -> LinearShape:
        """Return what the planner needs to know."""
        outputs, inputs = self.weight.shape
        return LinearShape(self.name, inputs, outputs)

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
    def shape(self) -> PolynomialShape:
        """Return what the planner needs to know."""
        return PolynomialShape(self.name, len(self.coefficients), self.degree)

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


Layer = Linear | Polynomial


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
        width = self.layers[0].weight.shape[1]
        check_scalings(self.input, self.output, features=width)
        for layer in self.layers:
            if isinstance(layer, Linear):
                inputs, outputs = layer.shape.inputs, layer.shape.outputs
            else:
                inputs = outputs = layer.shape.width
            if inputs != width:
                raise MalformedInput(f"layer {layer.name} takes {inputs} values, {width} come")
            width = outputs
        if width != len(self.output.scale):
            raise MalformedInput("the output scaling does not fit the last layer")

    @property
    def features(self) -> int:
        """Return how many numbers the client gives."""
        return len(self.input.mean)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Return what the planner needs to know."""
        return tuple(layer.shape for layer in self.layers)

    def standardise(self, x: Floats) -> Floats:
        """Return (x - mean) / std for rows of `x`."""
        return np.asarray((x - np.array(self.input.mean)) / np.array(self.input.std))

    def apply(self, x: Floats) -> Floats:
        """Evaluate in the clear on rows of raw inputs: what a perfect decryption would give."""
        return finish(self.output, self.slots(x))

    def slots(self, x: Floats) -> Floats:
        """Return what the slots would hold: before the output scaling."""
        values = self.standardise(x)
        for layer in self.layers:
            values = layer.apply(values)
        return values

    def raw(self, x: Floats) -> Floats:
        """Return the outputs before their activation: regression values or logits."""
        scale, offset = np.array(self.output.scale), np.array(self.output.offset)
        return np.asarray(self.slots(x) * scale + offset)


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
