"""Self-attention on columns: x + output(softmax(q·kᵀ)·v), for all sequences at once.

Rotations are only those of keys, values and weights by whole tokens: projections, softmax and the
output need none. A softmax's division commutes with everything linear behind it, so it is done last:
the exponentials weigh the values, the head's part of the output matrix follows, and then one product
with the head's inverse, relinearised once for all heads. That leaves the inverse five levels of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tensorguard.moai.research import polynomials
from tensorguard.moai.research.layer import EncoderLayer
from tensorguard.moai.research.packing import Packing
from tensorguard.moai.research.recipe import Recipe, Softmax
from tensorguard.moai.research.runtime import Column, Runtime

Floats = npt.NDArray[np.float64]
LEVELS = 13  # primes of the input; one is left at the end


def attention(
    runtime: Runtime,
    packing: Packing,
    layer: EncoderLayer,
    recipe: Recipe,
    x: Sequence[Column],
) -> list[Column]:
    """Evaluate the block on one column for each feature, at `LEVELS`. Works head by head."""
    totals: list[Column] = []
    for head, softmax in enumerate(recipe.softmax):
        rows = slice(head * layer.head, (head + 1) * layer.head)
        q, k, v = _project(runtime, packing, layer, softmax, rows, x)
        scores = _scores(runtime, packing, q, k)
        weights, inverse = _softmax(runtime, softmax, scores)
        mixed = _mix(runtime, packing, weights, v)
        with runtime.stage("output"):
            low = [runtime.drop(column, inverse.level + 1) for column in mixed]
            scale = runtime.partner_scale(inverse)
            parts = runtime.linear(low, layer.output.weight[:, rows], scale=scale)
            products = [runtime.multiply(part, inverse) for part in parts]
            pairs = zip(totals, products, strict=True) if totals else ()
            totals = [runtime.add(a, b) for a, b in pairs] or products
    with runtime.stage("output"):
        reduced = [runtime.reduce(total) for total in totals]
        summed = [
            runtime.add(y, runtime.drop(column, y.level))
            for y, column in zip(reduced, x, strict=True)
        ]
        return [
            runtime.add_constant(y, float(bias))
            for y, bias in zip(summed, layer.output.bias, strict=True)
        ]


def _project(
    runtime: Runtime,
    packing: Packing,
    layer: EncoderLayer,
    softmax: Softmax,
    rows: slice,
    x: Sequence[Column],
) -> tuple[list[Column], list[Column], list[Column]]:
    """Return a head's queries, keys and values; scores come out as a tokens-th of the exponential's unit."""
    unit = packing.tokens * math.sqrt(layer.head) * softmax.exponential.radius
    key_factor = softmax.balance / math.sqrt(unit)
    query_factor = 1 / (unit * key_factor)
    columns: list[list[Column]] = []
    with runtime.stage("projections"):
        for dense, factor in (
            (layer.query, query_factor),
            (layer.key, key_factor),
            (layer.value, 1.0),
        ):
            outputs = runtime.linear(x, dense.weight[rows] * factor)
            bias = dense.bias[rows] * factor
            columns.append(
                [runtime.add_constant(y, float(b)) for y, b in zip(outputs, bias, strict=True)]
            )
    q, k, v = columns
    return q, k, v


def _scores(
    runtime: Runtime, packing: Packing, q: Sequence[Column], k: Sequence[Column]
) -> list[Column]:
    """Return the cyclic diagonals of q·kᵀ, each token's less their mean, times the number of tokens.

    The centring is done on sums of products, before their rescale, where factors cost no precision.
    """
    diagonals: list[Column] = []
    with runtime.stage("scores"):
        for query, key in zip(q, k, strict=True):
            turned = [key, *runtime.rotations(key, packing.steps)]
            products = [runtime.multiply(query, column) for column in turned]
            pairs = zip(diagonals, products, strict=True) if diagonals else ()
            diagonals = [runtime.add(a, b) for a, b in pairs] or products
        total = runtime.total(diagonals)
        centred = []
        for diagonal in diagonals:
            multiple = diagonal
            for _ in range(packing.tokens.bit_length() - 1):
                multiple = runtime.add(multiple, multiple)
            centred.append(runtime.reduce(runtime.subtract(multiple, total)))
        return centred


def _softmax(
    runtime: Runtime, softmax: Softmax, scores: Sequence[Column]
) -> tuple[list[Column], Column]:
    """Return the exponentials, and the inverse of their sum; diagonals are added, so nothing is rotated."""
    exponential, inverse = softmax.exponential, softmax.inverse
    with runtime.stage("softmax"):
        weights = [
            polynomials.evaluate(
                runtime,
                runtime.add_constant(score, -exponential.centre / exponential.radius),
                exponential.coefficients,
            )
            for score in scores
        ]
        total = runtime.total(weights)
        centred = runtime.add_constant(total, -inverse.centre / inverse.radius)
        return weights, polynomials.evaluate(runtime, centred, inverse.coefficients)


def _mix(
    runtime: Runtime, packing: Packing, weights: Sequence[Column], v: Sequence[Column]
) -> list[Column]:
    """Return Σ_i weights_i ⊙ rotation(v, i), by baby and giant steps.

    With i = g·baby + b the sum is Σ_g rotation(Σ_b rotation(weights_i, -g·baby) ⊙ rotation(v, b), g·baby).
    """
    baby, giant = packing.baby, packing.giant
    with runtime.stage("values"):
        back = [
            weight if i < baby else runtime.rotate(weight, packing.step(-(i // baby) * baby))
            for i, weight in enumerate(weights)
        ]
        mixed = []
        for value in v:
            low = runtime.drop(value, weights[0].level)
            turned = [low, *runtime.rotations(low, packing.steps[: baby - 1])]
            parts = []
            for g in range(giant):
                group = zip(back[g * baby : (g + 1) * baby], turned, strict=True)
                part = runtime.reduce(runtime.total(runtime.multiply(a, b) for a, b in group))
                parts.append(runtime.rotate(part, packing.step(g * baby)) if g else part)
            mixed.append(runtime.total(parts))
        return mixed
