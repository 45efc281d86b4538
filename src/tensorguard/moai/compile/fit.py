"""Activations become polynomials where the network really uses them.

Each unit is fitted on its own calibrated range (with a margin), by least squares on the calibration
data; a light uniform grid keeps the polynomial sane in the margin, where there is no data. The unit's
shift and scale are folded into the linear layer before it, its gain into the one behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numpy.polynomial.chebyshev import chebpts1, chebvander
from numpy.polynomial.polynomial import polyvander

from tensorguard.errors import MalformedInput
from tensorguard.moai import bases
from tensorguard.moai.bases import Basis
from tensorguard.moai.compile.network import Activation

Floats = npt.NDArray[np.float64]
GRID = 65  # points of the grid over the range with margin
GRID_WEIGHT = 0.1  # of the data's weight: enough for the margin, too little to bend the fit
MAX_FIT_ROWS = 4096  # more rows do not move a fit of 8 coefficients
MARGIN = 0.1  # of the calibrated half-width, on either side
MAX_STRETCH = 128.0  # of a fit's highest basis function on [-1, 1]: digits lost when it is moved
MAX_MONOMIAL = 7  # above that, fits are in the Chebyshev basis


@dataclass(frozen=True, eq=False)
class Fit:
    """h = centre + radius · t per unit; activation(h) is about gain · Σ coefficients[u, k] · b_k(t)."""

    centre: Floats
    radius: Floats
    gain: Floats
    coefficients: Floats
    basis: Basis
    low: float
    high: float
    error_max: float
    error_rms: float


def fit(activation: Activation, h: Floats, *, degree: int) -> Fit:
    """Fit one polynomial per unit to the activation of pre-activations `h` (n, units)."""
    low, high = h.min(axis=0), h.max(axis=0)
    start, end = low, high
    if activation.function == "rsqrt":
        if low.min() <= 0:
            raise MalformedInput("an inverse square root is of positive numbers; add an epsilon")
        start, end = low / (1 + MARGIN), high * (1 + MARGIN)  # never beyond zero
    centre = (start + end) / 2
    radius = (end - start) / 2 * (1 + MARGIN * (activation.function != "rsqrt"))
    radius[radius < 1e-9 * (1 + np.abs(centre))] = 1.0  # a unit that never moves
    basis: Basis = activation.basis
    if basis == "chebyshev":
        centre, radius = _unit_interval(low, high)
        coefficients = np.tile(np.array(activation.coefficients), (len(centre), 1))
    elif activation.function == "polynomial":
        coefficients = substitute(np.array([activation.coefficients]), centre, radius)
    else:
        basis = "chebyshev" if degree > MAX_MONOMIAL else "monomial"
        coefficients = _least_squares(activation, h, centre, radius, degree, basis)
    target = activation(h)
    approximation = bases.evaluate(coefficients, (h - centre) / radius, basis)
    error = np.abs(approximation - target)
    gain = np.maximum(np.abs(approximation).max(axis=0), 1e-6)
    return Fit(
        centre,
        radius,
        gain,
        coefficients / gain[:, None],
        basis,
        float(low.min()),
        float(high.max()),
        float(error.max()),
        float(np.sqrt((error**2).mean())),
    )


def _unit_interval(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Leave a polynomial on [-1, 1] as it is. Raises `MalformedInput` if it is used beyond."""
    largest = max(-float(low.min()), float(high.max())) * (1 + MARGIN)
    if largest > 1 + 1e-9:
        raise MalformedInput(
            f"a Chebyshev polynomial is for [-1, 1]; its calibrated inputs reach {largest:.3g} "
            f"with a margin of {MARGIN:.0%}"
        )
    return np.zeros(len(low)), np.ones(len(low))


def substitute(coefficients: Floats, shift: Floats, scale: Floats) -> Floats:
    """Return the coefficients in t of p(shift + scale · t), per unit (rows): exact."""
    degree = coefficients.shape[1] - 1
    result = np.zeros((len(shift), degree + 1))
    for power in range(degree + 1):
        for k in range(power + 1):
            part = math.comb(power, k) * shift ** (power - k) * scale**k
            result[:, k] += coefficients[:, power] * part
    return result


def moved(fitted: Fit, shift: Floats, scale: Floats) -> Fit | None:
    """Return the fit as one in u, where h = shift + scale · u; None if that would lose digits."""
    a, b = (shift - fitted.centre) / fitted.radius, scale / fitted.radius
    degree = fitted.coefficients.shape[1] - 1
    reach = np.array([float((np.abs(a) + np.abs(b)).max())])
    largest = float(bases.evaluate(np.eye(degree + 1)[[degree]], reach[None], fitted.basis)[0, 0])
    if not abs(largest) <= MAX_STRETCH:
        return None
    if fitted.basis == "monomial":
        changed = substitute(fitted.coefficients, a, b)
    else:
        nodes = chebpts1(degree + 1)
        values = bases.evaluate(fitted.coefficients, a + b * nodes[:, None], fitted.basis)
        changed = np.asarray(np.linalg.solve(chebvander(nodes, degree), values).T, np.float64)
    return replace(fitted, centre=shift, radius=scale, coefficients=changed)


def _least_squares(
    activation: Activation,
    h: Floats,
    centre: Floats,
    radius: Floats,
    degree: int,
    basis: Basis,
) -> Floats:
    matrix = chebvander if basis == "chebyshev" else polyvander
    rows = h[:: -(-len(h) // MAX_FIT_ROWS)]
    grid = np.linspace(-1, 1, GRID)
    weights = np.concatenate(
        [np.full(len(rows), 1.0), np.full(GRID, math.sqrt(GRID_WEIGHT * len(rows) / GRID))]
    )
    result = np.empty((h.shape[1], degree + 1))
    for unit in range(h.shape[1]):
        t = np.concatenate([(rows[:, unit] - centre[unit]) / radius[unit], grid])
        target = activation(centre[unit] + radius[unit] * t)
        # the error of an inverse root is multiplied by about the root
        each = np.asarray(weights / target if activation.function == "rsqrt" else weights)
        design = matrix(t, degree) * each[:, None]
        result[unit] = np.linalg.lstsq(design, target * each, rcond=None)[0]
    return result


def refit(activations: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Return weight and bias of the ridge least-squares map from activations to targets."""
    design = np.hstack([activations, np.ones((len(activations), 1))])
    gram = design.T @ design / len(design)
    ridge = 1e-8 * np.trace(gram) / len(gram)
    solution = np.linalg.solve(gram + ridge * np.eye(len(gram)), design.T @ targets / len(design))
    return solution[:-1].T, solution[-1]
