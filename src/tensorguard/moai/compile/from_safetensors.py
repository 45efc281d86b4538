"""A safetensors file with a JSON description of its layers, for every framework that can write one.

The description (docs/formats/model-pack.md) names tensors and says how they are applied. Unknown
members are refused. A network trained with a polynomial activation is exported exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from tensorguard.crypto import canonical
from tensorguard.crypto.files import read_bounded
from tensorguard.errors import MalformedInput
from tensorguard.moai import tensors
from tensorguard.moai.bases import MAX_DEGREES
from tensorguard.moai.compile.build import DEFAULT_ERROR_BUDGET, Compiled, compile_network
from tensorguard.moai.compile.network import Activation, Dense, ModelNotSupported, Network
from tensorguard.moai.plan import MAX_LAYERS
from tensorguard.wire.models import Record

Floats = npt.NDArray[np.float64]
MAX_DESCRIPTION = 1 << 20
MAX_WEIGHTS = 256 << 20

Values = str | Annotated[tuple[float, ...], Meta(min_length=1, max_length=4096)]


class LinearEntry(Record, frozen=True, tag="linear", tag_field="kind"):
    """y = weight @ x + bias; both name tensors, `weight` is (outputs, inputs)."""

    weight: str
    bias: str | None = None


class ActivationEntry(Record, frozen=True, tag="activation", tag_field="kind"):
    """An elementwise function that is replaced by a fitted polynomial (identity: by nothing)."""

    function: Literal["relu", "tanh", "logistic", "gelu", "gelu_tanh", "silu", "identity"]


class PolynomialEntry(Record, frozen=True, tag="polynomial", tag_field="kind"):
    """An elementwise polynomial: the coefficients of 1, x, x², … (numbers, or a tensor's name)."""

    coefficients: Values


class InputEntry(Record, frozen=True):
    """z = (x - mean) / std, done by the client. Numbers, or names of tensors."""

    features: Annotated[int, Meta(ge=1, le=4096)]
    mean: Values | None = None
    std: Values | None = None


class OutputEntry(Record, frozen=True):
    """y · scale + offset, then for a classification softmax (or logistic, with one output)."""

    kind: Literal["regression", "classification"] = "regression"
    scale: Values | None = None
    offset: Values | None = None
    labels: tuple[str, ...] = ()


class Description(Record, frozen=True):
    """What a layer description file holds."""

    input: InputEntry
    layers: Annotated[
        tuple[LinearEntry | ActivationEntry | PolynomialEntry, ...],
        Meta(min_length=1, max_length=2 * MAX_LAYERS),
    ]
    output: OutputEntry = OutputEntry()


def from_safetensors(
    weights: Path | bytes,
    description: Description | bytes | dict[str, object],
    calibration: Floats,
    *,
    error_budget: float = DEFAULT_ERROR_BUDGET,
    degree: int | None = None,
    refit_last: bool = False,
) -> Compiled:
    """Compile the described network. `weights` is a path or the file's bytes."""
    data = weights if isinstance(weights, bytes) else read_bounded(weights, limit=MAX_WEIGHTS)
    return compile_network(
        network_of(data, read_description(description)),
        np.asarray(calibration, dtype=np.float64),
        error_budget=error_budget,
        degree=degree,
        refit_last=refit_last,
    )


def read_description(value: Description | bytes | dict[str, object]) -> Description:
    """Check a description. Raises `MalformedInput`."""
    if isinstance(value, Description):
        return value
    content = canonical.parse(value, limit=MAX_DESCRIPTION) if isinstance(value, bytes) else value
    try:
        return msgspec.convert(content, Description)
    except msgspec.ValidationError as error:
        raise MalformedInput(f"this is not a layer description: {error}") from error


def network_of(data: bytes, description: Description) -> Network:
    """Return the described network. Raises `ModelNotSupported` or `MalformedInput`."""
    values = tensors.load_any(data)
    layers: list[Dense] = []
    pending: Activation | None = None
    for entry in description.layers:
        if isinstance(entry, LinearEntry):
            weight = _tensor(values, entry.weight)
            bias = np.zeros(len(weight)) if entry.bias is None else _tensor(values, entry.bias)
            layers.append(Dense(f"dense{len(layers)}", weight, bias, None))
            continue
        pending = _activation(entry, values)
        if pending is None:
            continue
        if not layers or layers[-1].activation is not None:
            raise ModelNotSupported("an activation follows a linear layer")
        layers[-1] = replace(layers[-1], activation=pending)
    if not layers:
        raise ModelNotSupported("the network has no linear layer")
    outputs = len(layers[-1].bias)
    features = description.input.features
    labels = description.output.labels
    if description.output.kind == "regression":
        activation: Literal["identity", "softmax", "logistic"] = "identity"
        if labels:
            raise ModelNotSupported("a regression has no labels")
    else:
        activation = "logistic" if outputs == 1 else "softmax"
        if len(labels) != max(outputs, 2):
            raise ModelNotSupported("a classification has a label for each class")
    return Network(
        tuple(layers),
        mean=_vector(values, description.input.mean, features, 0.0),
        std=_vector(values, description.input.std, features, 1.0),
        output_scale=_vector(values, description.output.scale, outputs, 1.0),
        output_offset=_vector(values, description.output.offset, outputs, 0.0),
        output_activation=activation,
        labels=labels,
        source="safetensors",
        source_sha256=hashlib.sha256(data).hexdigest(),
    )


def _tensor(values: dict[str, Floats], name: str) -> Floats:
    if name not in values:
        raise MalformedInput(f"the weight file has no tensor {name!r}")
    return values[name]


def _vector(values: dict[str, Floats], given: Values | None, size: int, default: float) -> Floats:
    if given is None:
        return np.full(size, default)
    vector = _tensor(values, given) if isinstance(given, str) else np.array(given, dtype=np.float64)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise MalformedInput(f"a scaling is {size} finite numbers")
    return vector


def _activation(
    entry: ActivationEntry | PolynomialEntry, values: dict[str, Floats]
) -> Activation | None:
    if isinstance(entry, ActivationEntry):
        return None if entry.function == "identity" else Activation(entry.function)
    given: Sequence[float] | Floats = (
        _tensor(values, entry.coefficients)
        if isinstance(entry.coefficients, str)
        else entry.coefficients
    )
    coefficients = np.array(given, dtype=np.float64)
    if coefficients.ndim != 1 or not np.isfinite(coefficients).all():
        raise MalformedInput("polynomial coefficients are a list of finite numbers")
    trimmed = np.trim_zeros(coefficients, "b")
    most = MAX_DEGREES["monomial"]
    if not 2 <= len(trimmed) <= most + 1:  # noqa: PLR2004 -- degree 1 at least
        raise ModelNotSupported(f"a polynomial activation has degree 1 to {most}")
    return Activation("polynomial", tuple(trimmed.tolist()))
