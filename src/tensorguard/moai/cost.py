"""What an evaluation costs on the native runtime: operations counted from the plan, priced as measured.

Counted are limb operations, over N residues each: number-theoretic transforms, multiply-accumulates,
and those of column sums, which run as a matrix product. docs/native-runtime.md derives the counts;
TenSEAL's backend takes the same plans at other prices. The planner compares packings by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import (
    JoinPlan,
    LayerPlan,
    Layout,
    LinearPlan,
    LinearShape,
    Plan,
    PolynomialPlan,
    Shape,
)
from tensorguard.moai.polynomial import Node, schedule

VECTOR_BITS: Final = 50  # primes above it run on the scalar kernels


@dataclass(frozen=True, slots=True)
class Prices:
    """Nanoseconds: of a transform per N log2 N, of the others per residue."""

    transform: float
    multiply: float
    column: float  # one multiply-accumulate of a column sum


# Fitted to the cases of `tensorguard bench inference` on an AMD EPYC with AVX512-IFMA, one thread: the
# processor time of whole evaluations lies within 25 % of these.
PRICES: Final = MappingProxyType(
    {
        "ifma": Prices(0.155, 0.40, 0.08),
        "avx2": Prices(0.26, 0.55, 0.45),
        "scalar": Prices(0.75, 1.90, 0.45),
    }
)
REFERENCE: Final = "ifma"
ARRIVAL: Final = 14.0  # nanoseconds for each residue of an input: its seed is expanded, and checked


@dataclass(frozen=True, slots=True)
class Counts:
    """Limb operations of an evaluation; `wide` are those on the special prime."""

    transforms: int = 0
    multiplies: int = 0
    columns: int = 0
    wide_transforms: int = 0
    wide_multiplies: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.transforms + other.transforms,
            self.multiplies + other.multiplies,
            self.columns + other.columns,
            self.wide_transforms + other.wide_transforms,
            self.wide_multiplies + other.wide_multiplies,
        )

    def __mul__(self, times: int) -> Counts:
        return Counts(
            self.transforms * times,
            self.multiplies * times,
            self.columns * times,
            self.wide_transforms * times,
            self.wide_multiplies * times,
        )


def milliseconds(
    plan: Plan, shapes: Sequence[Shape], parameters: CkksParameters, *, kernels: str = REFERENCE
) -> float:
    """Return the processor time of one evaluation: one sample in blocks, `plan.slots` in columns."""
    degree, counts = parameters.degree, count(plan, shapes, parameters)
    usual = PRICES[kernels]
    wide = PRICES["scalar"] if parameters.special.bit_length() > VECTOR_BITS else usual
    transforms = counts.transforms * usual.transform + counts.wide_transforms * wide.transform
    multiplies = counts.multiplies * usual.multiply + counts.wide_multiplies * wide.multiply
    first = shapes[0]
    frames = first.inputs if plan.layout == "columns" and isinstance(first, LinearShape) else 1
    rest = multiplies + counts.columns * usual.column + parameters.levels * frames * ARRIVAL
    return degree * (transforms * math.log2(degree) + rest) / 1e6


def per_sample(
    plan: Plan, shapes: Sequence[Shape], parameters: CkksParameters, *, batch: int
) -> float:
    """Return the milliseconds for each of `batch` samples that come together."""
    evaluations = -(-batch // plan.slots) if plan.layout == "columns" else batch
    return milliseconds(plan, shapes, parameters) * evaluations / batch


def count(plan: Plan, shapes: Sequence[Shape], parameters: CkksParameters) -> Counts:
    """Return the limb operations of one evaluation of a network."""
    total = Counts()
    for step, shape in zip(plan.layers, shapes, strict=True):
        if isinstance(shape, LinearShape):
            total += _linear(step, shape, plan.layout)
        else:
            units = shape.width if plan.layout == "columns" else 1
            total += _unit(step, parameters) * units
    return total


def _linear(step: LayerPlan, shape: LinearShape, layout: Layout) -> Counts:
    if layout == "columns":
        sums = Counts(columns=2 * step.level * shape.inputs * shape.outputs)
        return sums + _rescale(step.level) * shape.outputs
    if not isinstance(step, LinearPlan):
        raise TypeError(f"plan and shapes differ at layer {shape.name}")
    return _transform(step) + _fold(step.level - 1) * len(step.folds)


def _unit(step: LayerPlan, parameters: CkksParameters) -> Counts:
    """Count an activation or a join of one ciphertext."""
    if isinstance(step, PolynomialPlan):
        return _polynomial(step.degree, step.level, parameters)
    if isinstance(step, JoinPlan) and step.kind == "product":
        return _relinearise(step.level)
    return Counts()


def _transform(step: LinearPlan) -> Counts:
    """Count one: baby steps share a decomposition; a giant step has one of its own; one division at the end."""
    level, baby, giant = step.level, step.baby, step.giant
    if baby * giant == 1:
        return Counts(multiplies=2 * level) + _rescale(level)
    decompose = Counts(level * level, wide_transforms=level)
    divide = Counts(level, wide_transforms=1)
    products = Counts(multiplies=2 * level, wide_multiplies=2)
    switch = products * level
    return (
        decompose * giant
        + divide * (giant - 1)
        + divide * 2
        + switch * (baby + giant - 2)
        + products * (baby * giant)
    )


def _fold(level: int) -> Counts:
    """Count a rotation that is added; only its second polynomial is divided before the last."""
    switch = Counts(multiplies=2 * level * level, wide_multiplies=2 * level)
    return Counts(level * level + level, wide_transforms=level + 1) + switch


def _relinearise(level: int) -> Counts:
    """Count a relinearisation and a rescale in one, after a product."""
    switch = Counts(multiplies=2 * level * level, wide_multiplies=2 * level)
    return Counts(level * level + 2 * level, 4 * level, wide_transforms=level + 2) + switch


def _rescale(level: int) -> Counts:
    return Counts(transforms=2 * level)


def _polynomial(degree: int, level: int, parameters: CkksParameters) -> Counts:
    """Count what its schedule does, with every coefficient in use."""
    steps = schedule([True] * (degree + 1), parameters=parameters, level=level, scale=1.0)
    total = _node(steps.root)
    for step in range(len(steps.powers) - 1):
        total += _relinearise(level - step)
    return total


def _node(node: Node) -> Counts:
    level = node.level + 1
    total = Counts(multiplies=2 * level * len(node.terms))
    for quotient, _ in node.products:
        total += _node(quotient)
    if not node.products:
        return total + _rescale(level)
    products = Counts(multiplies=4 * level) * (len(node.products) - 1)  # one is in the next line
    return total + products + _relinearise(level)
