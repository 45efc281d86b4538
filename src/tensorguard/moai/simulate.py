"""Predicts the CKKS error of a network without encrypting anything.

Errors are independent Gaussians per slot, in normalised units; their variances follow from the
operations that the backend runs (fresh encryption, rounding at each rescale, key switching) and go
through the layers by first-order propagation on calibration data. The per-operation variances are the
usual ones (Kim, Papadimitriou, Polyakov 2022) for a ternary secret and sigma 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.moai import bases
from tensorguard.moai.bases import Basis
from tensorguard.moai.graph import Graph, Linear, Polynomial
from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import LinearPlan, Plan, PolynomialPlan
from tensorguard.moai.polynomial import Node, schedule

Floats = npt.NDArray[np.float64]
SIGMA = 3.2
_TERNARY = 2 / 3  # variance of a uniform ternary coefficient
_ROUNDING = 1 / 12  # variance of rounding to an integer


@dataclass(frozen=True, slots=True)
class Noise:
    """Variances, per slot and in normalised units, of what one operation adds."""

    fresh: float
    rescale: float
    switch: tuple[float, ...]  # by level; index 0 is unused
    encode: float  # relative: of a plaintext at the scale of the primes

    @classmethod
    def of(cls, parameters: CkksParameters) -> Noise:
        """Compute the variances for these parameters at their scale."""
        degree = parameters.degree
        slot = degree / 2 / parameters.scale**2  # a coefficient's variance, seen in a slot
        rounding = _ROUNDING * (1 + degree * _TERNARY)
        special = float(parameters.special)
        # SEAL does not centre the digits: their mean square is q^2 / 3
        digits = [degree * SIGMA**2 * (q / special) ** 2 / 3 for q in parameters.primes]
        switch = tuple(slot * (sum(digits[:level]) + rounding) for level in range(len(digits) + 1))
        return cls(slot * SIGMA**2, slot * rounding, switch, slot * _ROUNDING)


@dataclass(frozen=True, slots=True)
class LayerSimulation:
    """The mean error variance of a layer's values, and the range of the values."""

    variance: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Simulation:
    """Predicted error variances (of each output) and ranges, in normalised units."""

    layers: tuple[LayerSimulation, ...]
    outputs: Floats
    largest: float  # the largest magnitude of any normalised output


def simulate(graph: Graph, plan: Plan, parameters: CkksParameters, samples: Floats) -> Simulation:
    """Predict the CKKS error of `graph` for rows of raw inputs `samples` (n, features)."""
    noise = Noise.of(parameters)
    values = graph.standardise(samples)
    variance = np.full_like(values, noise.fresh + noise.encode)
    layers = []
    for layer, step in zip(graph.layers, plan.layers, strict=True):
        if isinstance(layer, Linear) and isinstance(step, LinearPlan):
            variance = _linear(layer, step, noise, values, variance)
        elif isinstance(layer, Polynomial) and isinstance(step, PolynomialPlan):
            variance = _polynomial(layer, step, parameters, noise, values, variance)
        values = layer.apply(values)
        layers.append(
            LayerSimulation(float(variance.mean()), float(values.min()), float(values.max()))
        )
    return Simulation(tuple(layers), variance.mean(axis=0), float(np.abs(values).max()))


def _linear(
    layer: Linear, plan: LinearPlan, noise: Noise, values: Floats, variance: Floats
) -> Floats:
    squares = layer.weight**2
    rotated = noise.switch[plan.level] * (plan.baby - 1) / plan.baby
    encoding = noise.encode * (values**2).sum(axis=1, keepdims=True)
    copies = 1 << len(plan.folds)
    folds = copies * noise.rescale + (copies - 1) * noise.switch[plan.level - 1]
    return np.asarray((variance + rotated) @ squares.T + encoding + folds + noise.encode)


def _polynomial(
    layer: Polynomial,
    plan: PolynomialPlan,
    parameters: CkksParameters,
    noise: Noise,
    z: Floats,
    variance: Floats,
) -> Floats:
    columns = layer.product_coefficients.T
    used = [bool(column.any()) for column in columns]
    steps = schedule(used, parameters=parameters, level=plan.level, scale=parameters.scale)
    powers = [np.zeros_like(z)]
    for index in range(1, len(steps.powers)):
        inner = bases.factor(z, 1 << (index - 1), layer.basis)
        if layer.basis == "chebyshev":  # 2 T^2 - 1
            powers.append(16 * inner**2 * powers[-1] + noise.rescale + noise.encode)
        else:
            powers.append(4 * inner**2 * powers[-1] + noise.rescale)
    inherited = layer.derivative(z) ** 2 * variance
    return np.asarray(inherited + _node(steps.root, (columns, layer.basis), noise, z, powers)[1])


def _node(
    node: Node, products: tuple[Floats, Basis], noise: Noise, z: Floats, powers: list[Floats]
) -> tuple[Floats, Floats]:
    """Return the node's value and the variance that its own operations add."""
    columns, basis = products
    value = np.zeros_like(z)
    variance = np.full_like(z, noise.rescale + noise.encode)
    if node.constant:
        value = value + columns[node.first]
    for term in node.terms:
        coefficient = columns[node.first + term.power]
        value = value + coefficient * bases.factor(z, term.power, basis)
        variance = variance + coefficient**2 * powers[term.power.bit_length() - 1]
    for quotient, power in node.products:
        factor, error = _node(quotient, products, noise, z, powers)
        raised = bases.factor(z, power, basis)
        value = value + factor * raised
        variance = variance + raised**2 * error + factor**2 * powers[power.bit_length() - 1]
    return value, variance
