"""A schedule for slot-wise polynomials at minimal depth, with every scale exact.

P(z) = Q(z) · z^m + R(z) with m the largest power of two not above the degree, recursively: every
power is a square, and a node is evaluated *before* its rescale, so that Q·z^m and R are added at one
scale and rescaled once (Paterson and Stockmeyer 1973; Bossuat et al. 2021 for the scales). In the
Chebyshev basis z^m stands for T_m(z), and a square for 2 z² - 1, at the same scale: see `moai.bases`.

Pure arithmetic: the backend interprets the schedule, the simulator only needs its depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import polynomial_depth


@dataclass(frozen=True, slots=True)
class Term:
    """coefficient[power] · z^power with a plaintext of `scale`, at the node's raw level."""

    power: int
    scale: float


@dataclass(frozen=True, slots=True)
class Node:
    """Σ terms + quotient · z^power, at `level` + 1 before and `level` after its rescale.

    `constant` is added after the rescale. `first` is the number of its lowest coefficient.
    """

    level: int
    scale: float
    first: int
    terms: tuple[Term, ...]
    products: tuple[tuple[Node, int], ...]
    constant: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """The scales of z, z², z⁴, … (at levels that fall by one) and the root node."""

    powers: tuple[float, ...]
    root: Node


def schedule(
    used: Sequence[bool],
    *,
    parameters: CkksParameters,
    level: int,
    scale: float,
    result: float | None = None,
) -> Schedule:
    """Schedule a polynomial on z at (`level`, `scale`); `used[k]`: some coefficient of z^k is not 0.

    The result has the scale `result`, or that of `parameters`, at level `level` - ceil(log2(degree + 1)).
    """
    degree = len(used) - 1
    powers = [scale]
    for step in range(degree.bit_length() - 1):
        powers.append(powers[-1] ** 2 / parameters.primes[level - 1 - step])
    end = level - polynomial_depth(degree)
    builder = _Builder(tuple(used), tuple(powers), parameters)
    return Schedule(
        tuple(powers), builder.node(0, degree, level=end, scale=result or parameters.scale)
    )


@dataclass(frozen=True, slots=True)
class _Builder:
    used: tuple[bool, ...]
    powers: tuple[float, ...]
    parameters: CkksParameters

    def node(self, first: int, degree: int, *, level: int, scale: float) -> Node:
        """Build the node of coefficients first … first + degree."""
        raw = scale * self.parameters.primes[level]
        terms: list[Term] = []
        products: list[tuple[Node, int]] = []
        while degree > 0:
            if not any(self.used[first + 1 : first + degree + 1]):
                break
            while not self.used[first + degree]:
                degree -= 1
            index = degree.bit_length() - 1
            power = 1 << index
            if degree == power:
                terms.append(Term(power, raw / self.powers[index]))
            else:
                quotient = self.node(
                    first + power, degree - power, level=level + 1, scale=raw / self.powers[index]
                )
                products.append((quotient, power))
            degree = power - 1
        return Node(level, scale, first, tuple(terms), tuple(products), self.used[first])
