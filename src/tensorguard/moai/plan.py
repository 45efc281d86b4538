"""The planner is pure arithmetic: shapes in; packing, rotations, levels and parameters out.

A linear layer with `inputs` columns and `outputs` rows works on vectors of period p (inputs) and r
(outputs), powers of two. It has D = min(p, r) generalised diagonals (Halevi-Shoup), walked by baby
steps and giant steps, then log2 folds. The client lays the first layer's input out in `blocks`
shifted copies, so that one multiplication serves `blocks` diagonals and only folds are left.
A polynomial of degree d takes ceil(log2(d + 1)) levels (Paterson-Stockmeyer, powers of two). A sum of
two layers takes none, a product one: its rescale divides by a prime that is not the scale, so the layer
that it multiplies ends at the scale of that prime and every scale stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tensorguard.errors import InputError
from tensorguard.moai import wiring
from tensorguard.moai.parameters import MAX_LOG_QP, CkksParameters, make_parameters

MAX_DEGREE = 31  # of one polynomial layer: five levels
MAX_LAYERS = 32
MAX_KEY_BYTES = (
    1 << 29
)  # of all evaluation keys, seeded, as a client makes and a gateway takes them
MIN_SCALE_BITS, MAX_SCALE_BITS = 28, 40
HEADROOM_BITS = 8  # outputs are normalised to 1, and may grow 2^7 over that
SPECIAL_EXTRA_BITS = 6  # of the special prime over the first: see make_parameters

Joining = Literal["add", "product"]

_OVERHEAD = 2 * HEADROOM_BITS + SPECIAL_EXTRA_BITS


class TooDeep(InputError):
    code = "model_too_deep"
    status = 422
    remedy = "Use fewer layers or a lower activation degree, as the detail says."


class TooWide(InputError):
    code = "model_too_wide"
    status = 422
    remedy = "Reduce the layer's width; a layer has at most as many units as a ciphertext slots."


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A matrix of `outputs` rows and `inputs` columns."""

    name: str
    inputs: int
    outputs: int
    of: int | None = None

    @property
    def depth(self) -> int:
        """Return the levels that it takes."""
        return 1

    @property
    def other(self) -> None:
        """Take one layer only."""


@dataclass(frozen=True, slots=True)
class PolynomialShape:
    """One polynomial of `degree` for each of `width` units."""

    name: str
    width: int
    degree: int
    of: int | None = None

    @property
    def depth(self) -> int:
        """Return the levels that it takes."""
        return polynomial_depth(self.degree)

    @property
    def other(self) -> None:
        """Take one layer only."""


@dataclass(frozen=True, slots=True)
class JoinShape:
    """The sum or the product of two layers of `width` units, slot by slot."""

    name: str
    kind: Joining
    width: int
    other: int
    of: int | None = None

    @property
    def depth(self) -> int:
        """Return the levels that it takes."""
        return int(self.kind == "product")


Shape = LinearShape | PolynomialShape | JoinShape
Layout = Literal["blocks", "columns"]


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """How one linear layer is evaluated, on an input at `level`.

    `feeds`: the level of the product that alone takes its output; see `output_scale`.
    """

    name: str
    level: int
    period_in: int
    period_out: int
    blocks: int
    baby: int
    giant: int
    feeds: int | None = None

    @property
    def block_length(self) -> int:
        """Return the slots after which the input's layout shifts."""
        return max(self.period_in, self.period_out)

    @property
    def shift(self) -> int:
        """Return by how much each block's copy is rotated against the one before."""
        return self.baby * self.giant

    @property
    def folds(self) -> tuple[int, ...]:
        """Return the rotate-and-add steps after the multiplications."""
        span = self.blocks * self.block_length // self.period_out
        return tuple(self.period_out << i for i in range(span.bit_length() - 1))

    @property
    def rotations(self) -> frozenset[int]:
        """Return every rotation step that the layer uses."""
        babies = range(1, self.baby)
        giants = range(self.baby, self.shift, self.baby)
        return frozenset((*babies, *giants, *self.folds))


@dataclass(frozen=True, slots=True)
class PolynomialPlan:
    """How one activation is evaluated, on an input at `level`. `feeds` is that of `LinearPlan`."""

    name: str
    level: int
    period: int
    degree: int
    feeds: int | None = None

    @property
    def depth(self) -> int:
        """Return the levels that it takes."""
        return polynomial_depth(self.degree)


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """A sum or product of two ciphertexts, both dropped to `level` first."""

    name: str
    level: int
    kind: Joining


LayerPlan = LinearPlan | PolynomialPlan | JoinPlan


@dataclass(frozen=True, slots=True)
class Plan:
    """The evaluation of a whole network; it starts at level `depth + 1` and ends at level 1."""

    slots: int
    depth: int
    layers: tuple[LayerPlan, ...]
    sources: tuple[tuple[int, ...], ...]  # of each layer, by number; wiring.INPUT is the input
    layout: Layout = "blocks"

    @property
    def first(self) -> LinearPlan:
        """Return the first layer, whose input the client lays out."""
        layer = self.layers[0]
        if not isinstance(layer, LinearPlan):
            raise TypeError("a plan begins with a linear layer")
        return layer

    @property
    def rotations(self) -> tuple[int, ...]:
        """Return exactly the rotation steps that the network uses, ascending."""
        steps: set[int] = set()
        for layer in self.layers:
            if isinstance(layer, LinearPlan):
                steps |= layer.rotations
        return tuple(sorted(steps))

    @property
    def relinearisation(self) -> bool:
        """Return whether two ciphertexts are ever multiplied."""
        return any(
            x.kind == "product" if isinstance(x, JoinPlan) else x.degree > 1
            for x in self.layers
            if not isinstance(x, LinearPlan)
        )


def polynomial_depth(degree: int) -> int:
    """Return ceil(log2(degree + 1))."""
    return degree.bit_length()


def output_scale(step: LinearPlan | PolynomialPlan, parameters: CkksParameters) -> float:
    """Return the scale of a layer's output: that of the parameters, or what its product divides by."""
    return parameters.scale if step.feeds is None else float(parameters.primes[step.feeds - 1])


def depth_of(shapes: Sequence[Shape]) -> int:
    """Return the levels that the network takes."""
    return max(wiring.spent(shapes), default=0)


def plan_network(shapes: Sequence[Shape], *, slots: int, layout: Layout = "blocks") -> Plan:
    """Plan the evaluation of `shapes` on ciphertexts of `slots` slots. Raises `TooWide`.

    In columns every feature has a ciphertext of its own, whose slots are samples: no layer rotates.
    """
    levels = wiring.levels(shapes)
    sources = wiring.sources(shapes)
    feeds = {
        taken[0]: level
        for shape, taken, level in zip(shapes, sources, levels, strict=True)
        if isinstance(shape, JoinShape) and shape.kind == "product"
    }
    plans: list[LayerPlan] = []
    for number, (shape, level) in enumerate(zip(shapes, levels, strict=True)):
        if isinstance(shape, JoinShape):
            plans.append(JoinPlan(shape.name, level, shape.kind))
            continue
        if layout == "columns":
            plan = _plan_columns(shape, level=level)
        elif isinstance(shape, LinearShape):
            plan = _plan_linear(shape, slots=slots, level=level, first=not plans)
        else:
            plan = PolynomialPlan(shape.name, level, _period(shape.width), shape.degree)
        plans.append(replace(plan, feeds=feeds.get(number)))
    return Plan(slots, depth_of(shapes), tuple(plans), sources, layout)


def choose_parameters(
    shapes: Sequence[Shape], *, minimum_degree: int = 0, layout: Layout = "blocks"
) -> CkksParameters:
    """Return the smallest ring, and in it the finest scale, that the network fits.

    Raises `TooDeep`, naming the layer at which the largest ring is exhausted, or `TooWide`.
    """
    depth = depth_of(shapes)
    widest = 1 if layout == "columns" else max(_block_length(shape) for shape in shapes)
    for degree, budget in MAX_LOG_QP.items():
        scale_bits = min(MAX_SCALE_BITS, _scale_bits(budget, depth))
        if degree >= minimum_degree and scale_bits >= MIN_SCALE_BITS and widest <= degree // 2:
            return make_parameters(
                degree, depth=depth, scale_bits=scale_bits, headroom_bits=HEADROOM_BITS
            )
    largest = max(MAX_LOG_QP)
    if widest > largest // 2:
        name = next(shape.name for shape in shapes if _block_length(shape) == widest)
        raise TooWide(f"layer {name} needs {widest} slots, {largest // 2} is the most")
    raise _too_deep(shapes, MAX_LOG_QP[largest])


def check_keys(plan: Plan, parameters: CkksParameters) -> None:
    """Raise `TooDeep` if the evaluation keys would be larger than clients make them."""
    keys = len(plan.rotations) + plan.relinearisation
    size = keys * parameters.levels * (parameters.levels + 1) * parameters.degree * 8
    if size > MAX_KEY_BYTES:
        linear = [layer for layer in plan.layers if isinstance(layer, LinearPlan)]
        most = max(linear, key=lambda layer: len(layer.rotations))
        raise TooDeep(
            f"the network takes {plan.depth} levels and {keys} keys, together {size >> 20} MiB, "
            f"{MAX_KEY_BYTES >> 20} MiB is the most; layer {most.name} needs most of them: use fewer "
            "levels, narrower layers, or --batch, which needs no rotation keys"
        )


def _scale_bits(budget: int, depth: int) -> int:
    """Share out log2(QP): depth primes of the scale, the first and the special one."""
    return (budget - _OVERHEAD) // (depth + 2)


def _too_deep(shapes: Sequence[Shape], budget: int) -> TooDeep:
    most = (budget - _OVERHEAD) // MIN_SCALE_BITS - 2
    ends = wiring.spent(shapes)
    name = next(shape.name for shape, end in zip(shapes, ends, strict=True) if end > most)
    cubic = [
        replace(shape, degree=min(shape.degree, 3)) if isinstance(shape, PolynomialShape) else shape
        for shape in shapes
    ]
    plain = depth_of(cubic)
    if plain <= most and plain < depth_of(shapes):
        advice = f"with activations of degree 3 it needs {plain} levels and fits"
    elif any(isinstance(shape, JoinShape) and shape.kind == "product" for shape in shapes):
        advice = (
            "use batch normalisation, which takes no level, in place of layer normalisation, or "
            f"remove layers until the longest path takes {most} levels"
        )
    else:
        advice = f"remove layers until linear layers and activations together take {most} levels"
    return TooDeep(
        f"the network takes {depth_of(shapes)} levels, {most} is the most: "
        f"they end at layer {name}; {advice}"
    )


def _plan_linear(shape: LinearShape, *, slots: int, level: int, first: bool) -> LinearPlan:
    period_in, period_out = _period(shape.inputs), _period(shape.outputs)
    length, diagonals = max(period_in, period_out), min(period_in, period_out)
    if length > slots:
        raise TooWide(f"layer {shape.name} needs {length} slots, there are {slots}")
    blocks = min(diagonals, slots // length) if first else 1
    steps = (diagonals // blocks).bit_length() - 1
    baby = 1 << math.ceil(steps / 2)
    return LinearPlan(shape.name, level, period_in, period_out, blocks, baby, (1 << steps) // baby)


def _plan_columns(
    shape: LinearShape | PolynomialShape, *, level: int
) -> LinearPlan | PolynomialPlan:
    if isinstance(shape, PolynomialShape):
        return PolynomialPlan(shape.name, level, 1, shape.degree)
    return LinearPlan(shape.name, level, period_in=1, period_out=1, blocks=1, baby=1, giant=1)


def _block_length(shape: Shape) -> int:
    if isinstance(shape, LinearShape):
        return max(_period(shape.inputs), _period(shape.outputs))
    return _period(shape.width)


def _period(width: int) -> int:
    return 1 << (width - 1).bit_length()
