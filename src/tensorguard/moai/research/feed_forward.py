"""LayerNorm and the feed-forward block on columns. Nothing in here rotates.

Means and variances are sums of columns. A token's inverse deviation commutes with the dense layer, so
in the feed-forward block it is applied behind it: the matrix product runs beside the polynomial, not
after it, and that leaves a level for a better polynomial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.moai.research import polynomials
from tensorguard.moai.research.layer import EncoderLayer
from tensorguard.moai.research.recipe import Fit, Recipe
from tensorguard.moai.research.runtime import Column, Runtime

Floats = npt.NDArray[np.float64]
LEVELS = 13  # primes of the feed-forward block's input; one is left at the end
NORM_LEVELS = 8  # of the last norm's, and two more for each Newton step
CHUNK = 64  # units of the intermediate layer that are in memory before GELU


@dataclass(frozen=True, slots=True)
class _Normed:
    """The centred columns, and 1 / deviation one level below them."""

    centred: list[Column]
    inverse: Column


def feed_forward(
    runtime: Runtime, layer: EncoderLayer, recipe: Recipe, y: Sequence[Column]
) -> list[Column]:
    """Return n + final(gelu(intermediate(n))) for n the attention norm of y, at `LEVELS`."""
    with runtime.stage("norm"):
        normed = _normalise(runtime, recipe.attention_norm, y, newton=0)
        residual = _apply(runtime, normed, layer.attention_norm.gain)
    gain, bias = layer.attention_norm.gain, layer.attention_norm.bias
    weight, offset = layer.intermediate.weight * gain, layer.intermediate(bias)
    hidden: list[Column] = []
    for start in range(0, len(offset), CHUNK):
        units = slice(start, start + CHUNK)
        hidden += _units(
            runtime,
            normed.centred,
            normed.inverse,
            weight[units],
            offset[units],
            recipe.gelu[units],
        )
    with runtime.stage("final"):
        results = runtime.linear(hidden, layer.final.weight)
        return [
            runtime.add_constant(
                runtime.add(result, runtime.drop(kept, result.level)), float(shift)
            )
            for result, kept, shift in zip(results, residual, layer.final.bias + bias, strict=True)
        ]


def norm(
    runtime: Runtime, layer: EncoderLayer, recipe: Recipe, z: Sequence[Column]
) -> list[Column]:
    """Return the final norm of z, at `norm_levels`."""
    with runtime.stage("norm"):
        normed = _normalise(runtime, recipe.final_norm, z, newton=recipe.newton)
        columns = _apply(runtime, normed, layer.final_norm.gain)
        return [
            runtime.add_constant(column, float(bias))
            for column, bias in zip(columns, layer.final_norm.bias, strict=True)
        ]


def norm_levels(recipe: Recipe) -> int:
    """Return how many primes the input of `norm` has."""
    return NORM_LEVELS + 2 * recipe.newton


def _normalise(runtime: Runtime, fit: Fit, y: Sequence[Column], *, newton: int) -> _Normed:
    """Centre the columns, and fit 1 / sqrt(variance).

    The variance is summed from columns that are scaled down beforehand, so that it comes out in the
    polynomial's unit without a level for it. The columns that are kept are not scaled down: they
    would lose digits.
    """
    count = len(y)
    small = 1 / math.sqrt(count * fit.radius)
    (mean, small_mean) = runtime.linear(y, np.array([[1.0], [small]]) / count * np.ones(count))
    # the variance takes a level, its polynomial log2 of its coefficients, a Newton step two
    level = mean.level - (len(fit.coefficients).bit_length() - 1) - 2 * newton
    low = runtime.drop(mean, level)
    centred = [runtime.subtract(runtime.drop(column, level), low) for column in y]
    variance = runtime.reduce(runtime.total(_squares(runtime, y, small, small_mean)))
    shifted = runtime.add_constant(variance, -fit.centre / fit.radius)
    inverse = polynomials.evaluate(runtime, shifted, fit.coefficients)
    for _ in range(newton):
        inverse = polynomials.newton_inverse_root(runtime, variance, inverse, unit=fit.radius)
    return _Normed(centred, inverse)


def _squares(
    runtime: Runtime, y: Sequence[Column], small: float, small_mean: Column
) -> Iterator[Column]:
    for column in y:
        (scaled,) = runtime.linear([column], np.array([[small]]))
        deviation = runtime.subtract(scaled, small_mean)
        yield runtime.multiply(deviation, deviation)


def _apply(runtime: Runtime, normed: _Normed, gain: Floats) -> list[Column]:
    """Return gain · centred · inverse."""
    inverse = normed.inverse
    scale = runtime.partner_scale(inverse)
    results = []
    for column, factor in zip(normed.centred, gain, strict=True):
        (scaled,) = runtime.linear([column], np.array([[factor]]), scale=scale)
        results.append(runtime.reduce(runtime.multiply(scaled, inverse)))
    return results


def _units(
    runtime: Runtime,
    centred: Sequence[Column],
    inverse: Column,
    weight: Floats,
    offset: Floats,
    fits: Sequence[Fit],
) -> list[Column]:
    """Return gelu(weight · centred · inverse + offset), in the unit of each unit's polynomial."""
    radius = np.array([fit.radius for fit in fits])
    centre = np.array([fit.centre for fit in fits])
    scale = runtime.partner_scale(inverse)
    with runtime.stage("intermediate"):
        sums = runtime.linear(centred, weight / radius[:, None], scale=scale)
        units = [
            runtime.add_constant(runtime.reduce(runtime.multiply(x, inverse)), float(shift))
            for x, shift in zip(sums, (offset - centre) / radius, strict=True)
        ]
    with runtime.stage("gelu"):
        return [
            polynomials.evaluate(runtime, unit, fit.coefficients)
            for unit, fit in zip(units, fits, strict=True)
        ]
