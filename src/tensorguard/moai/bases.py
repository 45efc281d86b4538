"""Polynomials in the basis that they are stable in, and the products that evaluate both bases alike.

A schedule evaluates sums of coefficient[k] · p_k(z), where p_k is the product of the z_(2^i) over the
bits i that are set in k. With z_m = z^m that is the monomial z^k itself. With z_m = T_m(z), the
Chebyshev polynomial, all factors stay in [-1, 1] on [-1, 1], and so no digit is lost at high degrees;
coefficients are divided by T_m for falling powers of two, with 2 T_a T_m = T_(a+m) + T_|a-m|.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Basis = Literal["monomial", "chebyshev"]
MAX_DEGREES: dict[Basis, int] = {"monomial": 15, "chebyshev": 31}


def evaluate(coefficients: Floats, x: Floats, basis: Basis) -> Floats:
    """Return sum over k of coefficients[u, k] · b_k(x[:, u]), for rows of `x` (n, units)."""
    if basis == "chebyshev":
        from numpy.polynomial import chebyshev  # a megabyte that a platform never needs

        return np.asarray(chebyshev.chebval(x, coefficients.T, tensor=False))
    result = np.zeros_like(x)
    for column in coefficients.T[::-1]:
        result = result * x + column
    return result


def derivative(coefficients: Floats, x: Floats, basis: Basis) -> Floats:
    """Return the derivative of `evaluate` in `x`."""
    if basis == "chebyshev":
        from numpy.polynomial import chebyshev

        return evaluate(np.asarray(chebyshev.chebder(coefficients, axis=1), np.float64), x, basis)
    powers = np.arange(1, coefficients.shape[1])
    return evaluate(coefficients[:, 1:] * powers, x, basis)


def factor(z: Floats, power: int, basis: Basis) -> Floats:
    """Return z_m of the module's rule for a power of two m."""
    if basis == "chebyshev":
        from numpy.polynomial import chebyshev

        return np.asarray(chebyshev.chebval(z, np.eye(power + 1)[power]))
    return np.asarray(z**power)


def product_coefficients(coefficients: Floats, basis: Basis) -> Floats:
    """Return the coefficients (units, degree + 1) of the products p_k: the same polynomials."""
    if basis == "monomial":
        return coefficients
    degree = coefficients.shape[1] - 1
    if degree < 2:  # noqa: PLR2004 -- T_0 and T_1 are products
        return coefficients
    half = 1 << (degree.bit_length() - 1)
    quotient, remainder = coefficients[:, half:].copy(), coefficients[:, :half].copy()
    for k in range(1, degree - half + 1):
        remainder[:, half - k] -= quotient[:, k]
        quotient[:, k] *= 2
    parts = [product_coefficients(part, basis) for part in (remainder, quotient)]
    return np.concatenate(parts, axis=1)
