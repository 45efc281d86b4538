"""Chebyshev polynomials on columns, by the schedule of `moai.polynomial`; no rotation anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tensorguard.moai import bases
from tensorguard.moai.polynomial import Node, schedule
from tensorguard.moai.research.runtime import Column, Runtime

Floats = npt.NDArray[np.float64]


def evaluate(runtime: Runtime, x: Column, coefficients: Floats) -> Column:
    """Return Σ coefficients[k] · T_k(x) at the parameters' scale, for x in [-1, 1].

    The degree is 2^k - 1; it takes k levels.
    """
    flat = bases.product_coefficients(coefficients[None], "chebyshev")[0]
    used = [True] * len(flat)
    plan = schedule(used, parameters=runtime.parameters, level=x.level, scale=x.scale)
    powers = [x]
    for _ in plan.powers[1:]:
        square = runtime.multiply(powers[-1], powers[-1])
        doubled = runtime.reduce(runtime.add(square, square))
        powers.append(runtime.add_constant(doubled, -1.0))
    return _node(runtime, plan.root, powers, flat)


def _node(runtime: Runtime, node: Node, powers: Sequence[Column], flat: Floats) -> Column:
    level = node.level + 1
    (term,) = node.terms  # of a degree 2^k - 1 with all coefficients, always that of z
    base = runtime.drop(powers[term.power.bit_length() - 1], level)
    weight = np.array([[flat[node.first + term.power]]])
    (total,) = runtime.linear([base], weight, scale=node.scale)
    products = [
        runtime.multiply(
            _node(runtime, quotient, powers, flat),
            runtime.drop(powers[power.bit_length() - 1], level),
        )
        for quotient, power in node.products
    ]
    if products:
        total = runtime.add(total, runtime.reduce(runtime.total(products)))
    return runtime.add_constant(total, flat[node.first])


def newton_inverse_root(runtime: Runtime, v: Column, y: Column, *, unit: float) -> Column:
    """Return y · (3 - unit·v·y²) / 2: one step towards 1 / sqrt(unit·v), two levels below y."""
    half = runtime.linear([runtime.drop(v, y.level + 1)], np.array([[-unit / 2]]))[0]
    square = runtime.reduce(runtime.multiply(y, y))
    pull = runtime.reduce(runtime.multiply(half, y))
    cubic = runtime.reduce(runtime.multiply(square, pull))
    base = runtime.drop(y, y.level - 1)
    (kept,) = runtime.linear([base], np.array([[1.5]]), scale=cubic.scale)
    return runtime.add(kept, cubic)
