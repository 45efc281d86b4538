"""scikit-learn's linear models and perceptrons, alone or in pipelines, read by type, never guessed.

In a `Pipeline` the leading scalers become the client's input scaling and a PCA is multiplied into
the layer behind it; the scaler of a `TransformedTargetRegressor` becomes the output scaling. A linear
classifier without probabilities gives the softmax of its decision values: the order of the classes,
so `predict`, is the estimator's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tensorguard.errors import ConfigurationError
from tensorguard.moai.compile.build import DEFAULT_ERROR_BUDGET, Compiled, compile_network
from tensorguard.moai.compile.network import Activation, Dense, ModelNotSupported, Network
from tensorguard.moai.compile.preprocessing import Scaling, read_step, read_steps

Floats = npt.NDArray[np.float64]
OutputActivation = Literal["identity", "softmax", "logistic"]


class SklearnMissing(ConfigurationError):
    code = "sklearn_missing"
    remedy = "Install the extra: pip install 'tensorguard[sklearn]'."


@dataclass(frozen=True, eq=False)
class _Parts:
    """An estimator taken apart."""

    model: Any
    scaling: Scaling | None = None
    before: tuple[Dense, ...] = ()
    target: Scaling | None = None


@dataclass(frozen=True, eq=False)
class _Model:
    """The layers of the last step, and what the client does with their outputs."""

    layers: tuple[Dense, ...]
    activation: OutputActivation = "identity"
    labels: tuple[str, ...] = ()
    outputs: Literal["values", "probabilities", "decision-values"] = "values"


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
    model = _read_model(parts.model)
    layers = (*parts.before, *model.layers)
    scaling = parts.scaling or Scaling.identity(layers[0].weight.shape[1])
    target = parts.target or Scaling.identity(layers[-1].weight.shape[0])
    return Network(
        layers,
        mean=scaling.mean,
        std=scaling.std,
        output_scale=target.std,
        output_offset=target.mean,
        output_activation=model.activation,
        labels=model.labels,
        source="scikit-learn",
        source_sha256=source_sha256,
        options={"estimator": type(estimator).__name__, "outputs": model.outputs},
    )


def _take_apart(estimator: Any) -> _Parts:
    try:
        from sklearn.compose import TransformedTargetRegressor
        from sklearn.pipeline import Pipeline
    except ImportError as error:
        raise SklearnMissing("scikit-learn is not installed") from error
    if type(estimator) is Pipeline:
        steps = [step for _, step in estimator.steps if step not in {"passthrough", None}]
        if not steps:
            raise ModelNotSupported("the pipeline has no estimator")
        inner = _take_apart(steps[-1])
        if len(steps) == 1:
            return inner
        if inner.scaling is not None or inner.before:
            raise ModelNotSupported("a pipeline in a pipeline: put all steps into one")
        scaling, before = read_steps(steps[:-1])
        return replace(inner, scaling=scaling, before=before)
    if type(estimator) is TransformedTargetRegressor:
        if not hasattr(estimator, "regressor_"):
            raise ModelNotSupported("the estimator is not fitted")
        inner = _take_apart(estimator.regressor_)
        target = read_step(estimator.transformer_)
        if inner.target is not None or not isinstance(target, Scaling):
            raise ModelNotSupported("targets are transformed by one scaler")
        return replace(inner, target=target)
    return _Parts(estimator)


def _read_model(model: Any) -> _Model:
    from sklearn import linear_model as linear
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.svm import LinearSVC, LinearSVR

    kind = type(model)
    if kind in {MLPClassifier, MLPRegressor}:
        return _perceptron(model)
    if kind in {
        linear.LinearRegression,
        linear.Ridge,
        linear.Lasso,
        linear.ElasticNet,
        linear.SGDRegressor,
        LinearSVR,
    }:
        return _Model((_matrix(model),))
    if kind in {
        linear.LogisticRegression,
        linear.Perceptron,
        linear.RidgeClassifier,
        linear.SGDClassifier,
        LinearSVC,
    }:
        return _classifier(model)
    raise ModelNotSupported(f"{kind.__name__} is not a supported estimator")


def _matrix(model: Any) -> Dense:
    if not hasattr(model, "coef_"):
        raise ModelNotSupported("the estimator is not fitted")
    coefficients = model.coef_
    if hasattr(coefficients, "toarray"):  # after `sparsify()`
        coefficients = coefficients.toarray()
    weight = np.atleast_2d(np.asarray(coefficients, dtype=np.float64))
    intercept = np.asarray(model.intercept_, dtype=np.float64).ravel()
    if intercept.size == 1:
        intercept = np.full(len(weight), intercept[0])
    return Dense("dense0", weight, intercept, None)


def _classifier(model: Any) -> _Model:
    layer = _matrix(model)
    labels = tuple(str(label) for label in model.classes_)
    outputs = len(layer.bias)
    binarizer = getattr(model, "_label_binarizer", None)  # a RidgeClassifier's
    several = binarizer is not None and str(binarizer.y_type_).startswith("multilabel")
    if several or outputs != (1 if len(labels) == 2 else len(labels)):  # noqa: PLR2004 -- two classes, one value
        raise ModelNotSupported("multi-label classification is not supported")
    activation: OutputActivation = "logistic" if outputs == 1 else "softmax"
    name = type(model).__name__
    one_by_one = getattr(model, "multi_class", "auto") == "ovr" or name == "SGDClassifier"
    probable = name == "LogisticRegression" or getattr(model, "loss", None) == "log_loss"
    if probable and (outputs == 1 or not one_by_one):
        return _Model((layer,), activation, labels, "probabilities")
    return _Model((layer,), activation, labels, "decision-values")


def _perceptron(model: Any) -> _Model:
    if not hasattr(model, "coefs_"):
        raise ModelNotSupported("the estimator is not fitted")
    last = len(model.coefs_) - 1
    hidden = _activation(model.activation)
    layers = tuple(
        Dense(
            f"dense{index}",
            np.asarray(weight, dtype=np.float64).T,
            np.asarray(bias, dtype=np.float64),
            None if index == last else hidden,
        )
        for index, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True))
    )
    if not hasattr(model, "classes_"):
        return _Model(layers)
    labels = tuple(str(label) for label in model.classes_)
    if model.out_activation_ == "softmax":
        return _Model(layers, "softmax", labels, "probabilities")
    if model.out_activation_ == "logistic" and model.n_outputs_ == 1:
        return _Model(layers, "logistic", labels, "probabilities")
    raise ModelNotSupported("multi-label classification is not supported")


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
