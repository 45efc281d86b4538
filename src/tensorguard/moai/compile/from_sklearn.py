"""scikit-learn's multi-layer perceptrons, alone or behind scalers, read by type and never guessed.

Supported: `MLPRegressor` and `MLPClassifier`; in a `Pipeline` behind one `StandardScaler`, which
becomes the client's input scaling; in a `TransformedTargetRegressor` with a `StandardScaler`, which
becomes its output scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorguard.errors import ConfigurationError
from tensorguard.moai.compile.build import DEFAULT_ERROR_BUDGET, Compiled, compile_network
from tensorguard.moai.compile.network import Activation, Dense, ModelNotSupported, Network

Floats = npt.NDArray[np.float64]


class SklearnMissing(ConfigurationError):
    code = "sklearn_missing"
    remedy = "Install the extra: pip install 'tensorguard[sklearn]'."


@dataclass(frozen=True)
class _Parts:
    """An estimator taken apart."""

    perceptron: Any
    mean: Floats | None = None
    std: Floats | None = None
    target_mean: Floats | None = None
    target_std: Floats | None = None


def from_sklearn(
    estimator: Any,
    calibration: Floats,
    *,
    error_budget: float = DEFAULT_ERROR_BUDGET,
    degree: int | None = None,
    refit_last: bool = False,
    source_sha256: str | None = None,
) -> Compiled:
    """Compile a fitted estimator. `calibration` (n, features) is what `predict` would take."""
    return compile_network(
        network_of(estimator, source_sha256=source_sha256),
        np.asarray(calibration, dtype=np.float64),
        error_budget=error_budget,
        degree=degree,
        refit_last=refit_last,
    )


def network_of(estimator: Any, *, source_sha256: str | None = None) -> Network:
    """Return the estimator's network. Raises `ModelNotSupported` or `SklearnMissing`."""
    parts = _take_apart(estimator)
    perceptron = parts.perceptron
    if not hasattr(perceptron, "coefs_"):
        raise ModelNotSupported("the estimator is not fitted")
    last = len(perceptron.coefs_) - 1
    hidden = _activation(perceptron.activation)
    layers = tuple(
        Dense(
            f"dense{index}",
            np.asarray(weight, dtype=np.float64).T,
            np.asarray(bias, dtype=np.float64),
            None if index == last else hidden,
        )
        for index, (weight, bias) in enumerate(
            zip(perceptron.coefs_, perceptron.intercepts_, strict=True)
        )
    )
    features, outputs = layers[0].weight.shape[1], layers[-1].weight.shape[0]
    activation, labels = _output(perceptron)
    return Network(
        layers,
        mean=np.zeros(features) if parts.mean is None else parts.mean,
        std=np.ones(features) if parts.std is None else parts.std,
        output_scale=np.ones(outputs) if parts.target_std is None else parts.target_std,
        output_offset=np.zeros(outputs) if parts.target_mean is None else parts.target_mean,
        output_activation=activation,
        labels=labels,
        source="scikit-learn",
        source_sha256=source_sha256,
        options={"estimator": type(estimator).__name__},
    )


def _take_apart(estimator: Any) -> _Parts:
    try:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import Pipeline
    except ImportError as error:
        raise SklearnMissing("scikit-learn is not installed") from error
    if type(estimator) in {MLPClassifier, MLPRegressor}:
        return _Parts(estimator)
    if type(estimator) is Pipeline:
        steps = [step for _, step in estimator.steps if step != "passthrough"]
        inner = _take_apart(steps[-1])
        if len(steps) == 1:
            return inner
        if len(steps) > 2 or inner.mean is not None:  # noqa: PLR2004 -- one scaler, one estimator
            raise ModelNotSupported("a pipeline is one StandardScaler and the estimator")
        mean, std = _scaler(steps[0])
        return _Parts(inner.perceptron, mean, std, inner.target_mean, inner.target_std)
    if type(estimator) is TransformedTargetRegressor:
        inner = _take_apart(estimator.regressor_)
        mean, std = _scaler(estimator.transformer_)
        return _Parts(inner.perceptron, inner.mean, inner.std, mean, std)
    raise ModelNotSupported(f"{type(estimator).__name__} is not a supported estimator")


def _scaler(scaler: Any) -> tuple[Floats, Floats]:
    from sklearn.preprocessing import StandardScaler

    if type(scaler) is not StandardScaler or not hasattr(scaler, "n_features_in_"):
        raise ModelNotSupported(f"{type(scaler).__name__} is not a fitted StandardScaler")
    size = int(scaler.n_features_in_)
    mean = np.zeros(size) if scaler.mean_ is None else np.asarray(scaler.mean_, dtype=np.float64)
    std = np.ones(size) if scaler.scale_ is None else np.asarray(scaler.scale_, dtype=np.float64)
    return (mean if scaler.with_mean else np.zeros(size)), std


def _activation(name: str) -> Activation | None:
    known: dict[str, Literal["relu", "tanh", "logistic"] | None] = {
        "relu": "relu",
        "tanh": "tanh",
        "logistic": "logistic",
        "identity": None,
    }
    if name not in known:
        raise ModelNotSupported(f"the activation {name!r} is not supported")
    function = known[name]
    return Activation(function) if function else None


def _output(
    perceptron: Any,
) -> tuple[Literal["identity", "softmax", "logistic"], tuple[str, ...]]:
    if not hasattr(perceptron, "classes_"):
        return "identity", ()
    labels = tuple(str(label) for label in perceptron.classes_)
    if perceptron.out_activation_ == "softmax":
        return "softmax", labels
    if perceptron.out_activation_ == "logistic" and perceptron.n_outputs_ == 1:
        return "logistic", labels
    raise ModelNotSupported("multi-label classification is not supported")
