"""Predicts the CKKS error of a network without encrypting anything.

Errors are independent Gaussians per slot, in normalised units; their variances follow from the
operations that the backend runs (fresh encryption, rounding at each rescale, key switching) and go
through the layers by first-order propagation on calibration data. The per-operation variances are the
usual ones (Kim, Papadimitriou, Polyakov 2022) for a ternary secret and sigma 3.2.

Where a graph joins layers, one error arrives on two ways and the two are not independent: then the
errors of the outputs follow from gradients, what one operation adds times its slope to the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.moai import bases, wiring
from tensorguard.moai.bases import Basis
from tensorguard.moai.graph import Graph, Join, Layer, Linear, Polynomial
from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import LayerPlan, LinearPlan, Plan, PolynomialPlan
from tensorguard.moai.polynomial import Node, schedule

Floats = npt.NDArray[np.float64]
SIGMA = 3.2
MAX_GRADIENTS = 1 << 16  # rows times outputs whose gradients are taken; more do not move a mean
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


@dataclass(frozen=True, eq=False)
class _Trace:
    """What each layer takes and gives, and the variance that its own operations add."""

    graph: Graph
    taken: list[list[Floats]]
    given: list[Floats]
    added: list[Floats]


def simulate(graph: Graph, plan: Plan, parameters: CkksParameters, samples: Floats) -> Simulation:
    """Predict the CKKS error of `graph` for rows of raw inputs `samples` (n, features)."""
    noise = Noise.of(parameters)
    values = graph.standardise(samples)
    fresh = np.full_like(values, noise.fresh + noise.encode)
    trace = _trace(graph, plan, parameters, noise, values)
    variances: list[Floats] = []
    layers = []
    for number, layer in enumerate(graph.layers):
        given = trace.given[number]
        operands = [fresh if s == wiring.INPUT else variances[s] for s in graph.sources[number]]
        inherited = _inherited(layer, trace.taken[number], operands)
        variances.append(inherited + trace.added[number])
        mean = float(variances[-1].mean())
        layers.append(LayerSimulation(mean, float(given.min()), float(given.max())))
    outputs = variances[-1].mean(axis=0)
    if any(isinstance(layer, Join) for layer in graph.layers):
        outputs = _by_gradients(trace, fresh)
    return Simulation(tuple(layers), outputs, float(np.abs(trace.given[-1]).max()))


def _trace(
    graph: Graph, plan: Plan, parameters: CkksParameters, noise: Noise, values: Floats
) -> _Trace:
    given = graph.trace(values)
    taken = [[values if s == wiring.INPUT else given[s] for s in wired] for wired in graph.sources]
    added = [
        _added(layer, step, parameters, noise, operands)
        for layer, step, operands in zip(graph.layers, plan.layers, taken, strict=True)
    ]
    return _Trace(graph, taken, given, added)


def _added(
    layer: Layer,
    step: LayerPlan,
    parameters: CkksParameters,
    noise: Noise,
    operands: list[Floats],
) -> Floats:
    if isinstance(layer, Linear) and isinstance(step, LinearPlan):
        return _linear(layer, step, noise, operands[0])
    if isinstance(layer, Polynomial) and isinstance(step, PolynomialPlan):
        return _polynomial(layer, step, parameters, noise, operands[0])
    if isinstance(layer, Join):
        return np.full_like(operands[0], noise.rescale if layer.kind == "product" else 0.0)
    raise MalformedInput(f"plan and graph differ at layer {layer.name}")


def _inherited(layer: Layer, operands: list[Floats], variances: list[Floats]) -> Floats:
    """Return the variance of what a layer gives, from that of what it takes, if independent."""
    if isinstance(layer, Linear):
        return np.asarray(variances[0] @ (layer.weight**2).T)
    if isinstance(layer, Polynomial):
        return np.asarray(layer.derivative(operands[0]) ** 2 * variances[0])
    (left, right), (x, y) = variances, operands
    return left + right if layer.kind == "add" else y**2 * left + x**2 * right


def _by_gradients(trace: _Trace, fresh: Floats) -> Floats:
    """Return the mean variance of each output, exact to the first order of every single error."""
    graph, last = trace.graph, len(trace.given) - 1
    outputs = trace.given[last].shape[1]
    some = slice(None, None, -(-len(fresh) * outputs // MAX_GRADIENTS))
    result = np.zeros(outputs)
    for output in range(outputs):
        slopes = {last: np.zeros_like(trace.given[last][some])}
        slopes[last][:, output] = 1.0
        for number in range(last, wiring.INPUT - 1, -1):
            slope = slopes.pop(number)
            added = fresh if number == wiring.INPUT else trace.added[number]
            result[output] += (slope**2 * added[some]).sum(axis=1).mean()
            if number == wiring.INPUT:
                continue
            operands = [x[some] for x in trace.taken[number]]
            parts = _backwards(graph.layers[number], operands, slope)
            for source, part in zip(graph.sources[number], parts, strict=True):
                slopes[source] = slopes[source] + part if source in slopes else part
    return result


def _backwards(layer: Layer, operands: list[Floats], slope: Floats) -> tuple[Floats, ...]:
    """Return the slopes of the output to what a layer takes, from that to what it gives."""
    if isinstance(layer, Linear):
        return (slope @ layer.weight,)
    if isinstance(layer, Polynomial):
        return (slope * layer.derivative(operands[0]),)
    if layer.kind == "add":
        return (slope, slope)
    x, y = operands
    return (slope * y, slope * x)


def _linear(layer: Linear, plan: LinearPlan, noise: Noise, values: Floats) -> Floats:
    rotated = noise.switch[plan.level] * (plan.baby - 1) / plan.baby
    encoding = noise.encode * (values**2).sum(axis=1, keepdims=True)
    copies = 1 << len(plan.folds)
    folds = copies * noise.rescale + (copies - 1) * noise.switch[plan.level - 1]
    each = rotated * (layer.weight**2).sum(axis=1)
    return np.asarray(each + encoding + folds + noise.encode)


def _polynomial(
    layer: Polynomial,
    plan: PolynomialPlan,
    parameters: CkksParameters,
    noise: Noise,
    z: Floats,
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
    return _node(steps.root, (columns, layer.basis), noise, z, powers)[1]


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
