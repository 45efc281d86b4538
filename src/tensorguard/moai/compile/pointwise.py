"""Elementwise functions as graphs spell them: recognised by their values, not by their spelling.

A GELU may come as one operator or as five around `Erf`. Whatever is computed from one value
elementwise is kept as one function of it, and compared with the activations that can be fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.moai.bases import MAX_DEGREES
from tensorguard.moai.compile.affine import Affine
from tensorguard.moai.compile.network import Activation, Function

Floats = npt.NDArray[np.float64]
Elementwise = Callable[[Floats], Floats]
KNOWN: tuple[Function, ...] = ("relu", "tanh", "logistic", "gelu", "gelu_tanh", "silu")
_GRID = np.linspace(-7, 7, 281)
_POSITIVE = np.geomspace(1e-3, 1e3, 61)  # where roots are compared
_MAX_TERMS = 64  # far over what is supported, and still refused as a polynomial
_TOLERANCE = 2e-6  # the constants of an export are float32

BASIC: dict[str, Elementwise] = {
    "Relu": Activation("relu"),
    "Tanh": Activation("tanh"),
    "Sigmoid": Activation("logistic"),
    "Sqrt": lambda x: np.asarray(np.sqrt(x)),
    "Reciprocal": lambda x: np.asarray(1 / x),
    "Erf": lambda x: np.asarray(np.vectorize(math.erf, otypes=[float])(x)),
}


@dataclass(frozen=True, eq=False)
class Pointwise:
    """f(root), elementwise. `inner`: the a · root + b that functions in it were applied to."""

    root: Affine
    f: Elementwise
    inner: tuple[tuple[float, float], ...] = ()
    polynomial: tuple[float, ...] | None = None

    @classmethod
    def of(cls, value: Affine) -> Pointwise:
        """Return the value as the polynomial a · root + b."""
        root, a, b = value.root
        return cls(root, lambda x: a * x + b, (), (b, a))

    def apply(self, f: Elementwise) -> Pointwise:
        """Return f of this."""
        inner, before = self.inner, self.f
        if self.polynomial is not None and len(self.polynomial) == 2:  # noqa: PLR2004 -- a · x + b
            inner = (*inner, (self.polynomial[1], self.polynomial[0]))
        return Pointwise(self.root, lambda x: f(before(x)), inner)

    def plus(self, other: Pointwise) -> Pointwise:
        """Return the sum with a function of the same root."""
        left, right = self.f, other.f
        both = _polynomial(self, other, product=False)
        return Pointwise(self.root, lambda x: left(x) + right(x), self.inner + other.inner, both)

    def times(self, other: Pointwise) -> Pointwise:
        """Return the product with a function of the same root."""
        left, right = self.f, other.f
        both = _polynomial(self, other, product=True)
        return Pointwise(self.root, lambda x: left(x) * right(x), self.inner + other.inner, both)

    def scaled(self, scale: float, shift: float) -> Pointwise:
        """Return scale times this, plus shift."""
        number = Pointwise(self.root, lambda x: np.full_like(x, scale), (), (scale,))
        added = Pointwise(self.root, lambda x: np.full_like(x, shift), (), (shift,))
        return self.times(number).plus(added)


@dataclass(frozen=True)
class Match:
    """f(x) = gain · activation(a · x + b) + offset; no activation: it is affine."""

    activation: Activation | None
    a: float = 1.0
    b: float = 0.0
    gain: float = 1.0
    offset: float = 0.0

    @property
    def plain(self) -> bool:
        """Return whether it is the activation itself."""
        return (self.a, self.b, self.gain, self.offset) == (1.0, 0.0, 1.0, 0.0)


def recognise(value: Pointwise) -> Match | None:
    """Return what the function is, if it is one that can be fitted."""
    if value.polynomial is not None:
        coefficients = np.trim_zeros(np.array(value.polynomial), "b")
        if len(coefficients) <= 2:  # noqa: PLR2004 -- degree 1
            offset, gain = np.pad(coefficients, (0, 2 - len(coefficients))).tolist()
            return Match(None, gain=gain, offset=offset)
        if len(coefficients) - 1 > MAX_DEGREES["monomial"]:
            return None
        return Match(Activation("polynomial", tuple(coefficients.tolist())))
    for a, b in ((1.0, 0.0), *value.inner[:8]):
        if a == 0:
            continue
        with np.errstate(all="ignore"):
            root = value.f((_POSITIVE - b) / a) * np.sqrt(_POSITIVE)
            wanted = value.f((_GRID - b) / a)
        gain = float(root[0])
        if np.isfinite(root).all() and np.abs(root - gain).max() <= _TOLERANCE * abs(gain):
            return Match(Activation("rsqrt"), a, b, _snapped(gain, 1.0))
        if not np.isfinite(wanted).all():
            continue
        for name in KNOWN:
            found = _match(name, wanted)
            if found is not None:
                return Match(Activation(name), a, b, *found)
    return None


def _match(name: Function, wanted: Floats) -> tuple[float, float] | None:
    """Return gain and offset if `wanted` is a multiple of the function, plus a number."""
    shape = Activation(name)(_GRID)
    design = np.column_stack([shape, np.ones_like(shape)])
    gain, offset = np.linalg.lstsq(design, wanted, rcond=None)[0].tolist()
    if np.abs(design @ [gain, offset] - wanted).max() > _TOLERANCE * np.abs(wanted).max():
        return None
    return _snapped(gain, 1.0), _snapped(offset, 0.0)


def _snapped(value: float, to: float) -> float:
    return to if abs(value - to) < 2 * _TOLERANCE else value


def _polynomial(left: Pointwise, right: Pointwise, *, product: bool) -> tuple[float, ...] | None:
    if left.polynomial is None or right.polynomial is None:
        return None
    a, b = np.polynomial.Polynomial(left.polynomial), np.polynomial.Polynomial(right.polynomial)
    result = a * b if product else a + b
    return tuple(np.trim_zeros(result.coef, "b")[:_MAX_TERMS].tolist()) or (0.0,)
