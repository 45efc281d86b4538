"""scikit-learn's preprocessing as affine maps: scalers are diagonal, a PCA is a matrix.

Diagonal steps before the first matrix become the client's input scaling; what comes behind it is a
linear layer, which the compiler multiplies into the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorguard.moai.compile.network import Dense, ModelNotSupported

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scaling:
    """z = (x - mean) / std, elementwise, with positive `std`."""

    mean: Floats
    std: Floats

    @classmethod
    def identity(cls, features: int) -> Scaling:
        """Return the scaling that changes nothing."""
        return cls(np.zeros(features), np.ones(features))

    def then(self, after: Scaling) -> Scaling:
        """Return the scaling that applies this one and then `after`."""
        return Scaling(self.mean + after.mean * self.std, self.std * after.std)

    def layer(self, name: str) -> Dense:
        """Return the same map as a linear layer."""
        return Dense(name, np.diag(1 / self.std), -self.mean / self.std, None)


def read_step(step: Any) -> Scaling | Dense:
    """Return a fitted preprocessing step. Raises `ModelNotSupported`."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

    kind = type(step)
    if kind not in {PCA, MaxAbsScaler, MinMaxScaler, StandardScaler}:
        raise ModelNotSupported(
            f"{kind.__name__} is not a StandardScaler, MinMaxScaler, MaxAbsScaler or PCA"
        )
    if not hasattr(step, "n_features_in_"):
        raise ModelNotSupported(f"the {kind.__name__} is not fitted")
    if kind is PCA:
        return _principal_components(step)
    if getattr(step, "clip", False):
        raise ModelNotSupported(f"a {kind.__name__} with clip=True is not linear: use clip=False")
    size = int(step.n_features_in_)
    scale = np.ones(size) if step.scale_ is None else np.asarray(step.scale_, dtype=np.float64)
    if kind is MinMaxScaler:  # z = x * scale + min
        scaling = Scaling(-np.asarray(step.min_, dtype=np.float64) / scale, 1 / scale)
    elif kind is StandardScaler and step.with_mean:
        scaling = Scaling(np.asarray(step.mean_, dtype=np.float64), scale)
    else:
        scaling = Scaling(np.zeros(size), scale)
    if not (np.isfinite(scaling.mean).all() and (scaling.std > 0).all()):
        raise ModelNotSupported(f"the {kind.__name__} has a scale that is not positive")
    return scaling


def read_steps(steps: Sequence[Any]) -> tuple[Scaling | None, tuple[Dense, ...]]:
    """Return the input scaling of the leading scalers, and linear layers for the rest."""
    scaling: Scaling | None = None
    layers: list[Dense] = []
    for index, step in enumerate(steps):
        part = read_step(step)
        if isinstance(part, Dense):
            layers.append(part)
        elif layers:
            layers.append(part.layer(f"step{index}"))
        else:
            if scaling is not None and len(scaling.mean) != len(part.mean):
                raise ModelNotSupported("two steps of the pipeline do not fit each other")
            scaling = part if scaling is None else scaling.then(part)
    return scaling, tuple(layers)


def _principal_components(step: Any) -> Dense:
    weight = np.asarray(step.components_, dtype=np.float64)
    if step.whiten:
        spread = np.sqrt(np.asarray(step.explained_variance_, dtype=np.float64))
        floor = np.finfo(spread.dtype).eps  # as scikit-learn: a component without variance
        weight = weight / np.maximum(spread, floor)[:, None]
    return Dense("pca", weight, -weight @ np.asarray(step.mean_, dtype=np.float64), None)
