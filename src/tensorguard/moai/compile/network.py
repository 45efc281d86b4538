"""A trained network as its framework defines it: dense layers with activations between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.moai import bases
from tensorguard.moai.bases import Basis
from tensorguard.moai.graph import StandsFor

Floats = npt.NDArray[np.float64]
Function = StandsFor
Source = Literal["scikit-learn", "safetensors", "onnx"]


class ModelNotSupported(MalformedInput):
    code = "model_not_supported"
    remedy = (
        "Use linear layers with activations between them, as docs/models.md lists them: "
        "scikit-learn (.skops), ONNX (.onnx), or safetensors with a layer description."
    )


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
        if self.function == "relu":
            return np.maximum(x, 0.0)
        if self.function == "tanh":
            return np.tanh(x)
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

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:  # noqa: PLR2004 -- a matrix
            raise ModelNotSupported(f"layer {self.name}: weight and bias do not fit each other")
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise ModelNotSupported(f"layer {self.name}: a weight is not finite")


@dataclass(frozen=True, eq=False)
class Network:
    """Standardise, apply the layers, rescale, then `output_activation`."""

    layers: tuple[Dense, ...]
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
        if not self.layers:
            raise ModelNotSupported("the network has no layer")
        width = len(self.mean)
        for layer in self.layers:
            if layer.weight.shape[1] != width:
                raise ModelNotSupported(
                    f"layer {layer.name} takes {layer.weight.shape[1]} values, {width} come"
                )
            width = layer.weight.shape[0]
        if self.layers[-1].activation is not None:
            raise ModelNotSupported("the last layer is linear; its activation is the client's")
        if len(self.output_scale) != width or len(self.output_offset) != width:
            raise ModelNotSupported(f"the output scaling is not for {width} outputs")
        if (self.std <= 0).any() or (self.output_scale <= 0).any():
            raise ModelNotSupported("standard deviations and output scales are positive")

    def raw(self, x: Floats) -> Floats:
        """Return the last layer's values for rows of raw inputs, before the output scaling."""
        values = (x - self.mean) / self.std
        for layer in self.layers:
            values = values @ layer.weight.T + layer.bias
            if layer.activation is not None:
                values = layer.activation(values)
        return values


def merged(layers: Sequence[Dense]) -> tuple[Dense, ...]:
    """Multiply out linear layers that have no activation between them, where that is no more work.

    Factors of low rank, such as the two of an adapter, stay apart.
    """
    result: list[Dense] = []
    for layer in layers:
        if result and result[-1].activation is None and not _low_rank(result[-1], layer):
            before = result.pop()
            result.append(
                Dense(
                    layer.name,
                    layer.weight @ before.weight,
                    layer.weight @ before.bias + layer.bias,
                    layer.activation,
                )
            )
        else:
            result.append(layer)
    return tuple(result)


def _low_rank(before: Dense, layer: Dense) -> bool:
    """Return whether the two have less than half the weights of their product."""
    product = layer.weight.shape[0] * before.weight.shape[1]
    return bool(2 * (before.weight.size + layer.weight.size) < product)


def _erf(x: Floats) -> Floats:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))
