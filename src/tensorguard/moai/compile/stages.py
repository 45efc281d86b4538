"""What a lowering found: activations, sums and products of affine values, as a network's layers.

An affine value that several stages take becomes a layer of its own, once; what only one takes is
multiplied into that one. Stages that the output does not depend on are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tensorguard.moai.compile.affine import Affine, Factor, check_size
from tensorguard.moai.compile.network import Activation, Dense, Join, NetworkLayer
from tensorguard.moai.plan import Joining

INPUT = "input"


@dataclass(frozen=True, eq=False)
class Activated:
    """An activation of an affine value."""

    value: Affine
    activation: Activation

    @property
    def takes(self) -> tuple[Affine, ...]:
        """Return the values that it takes."""
        return (self.value,)


@dataclass(frozen=True, eq=False)
class Joined:
    """The sum or the product of two affine values of one shape."""

    kind: Joining
    left: Affine
    right: Affine

    @property
    def takes(self) -> tuple[Affine, ...]:
        """Return the values that it takes."""
        return (self.left, self.right)


Stage = Activated | Joined


def network_layers(
    stages: Sequence[Stage], output: Affine, *, features: int
) -> tuple[NetworkLayer, ...]:
    """Return the layers of the stages that `output` needs, and its own. Stages count from 1."""
    needed = _needed(stages, output)
    layers = _Layers([value for k in needed for value in stages[k - 1].takes] + [output])
    joined = any(
        value.stage == 0 and not value.factors
        for k in needed
        if isinstance(stages[k - 1], Joined)
        for value in stages[k - 1].takes
    )
    if joined or layers.starts > 1:
        layers.identity(features)
    for k in needed:
        layers.stage(k, stages[k - 1])
    layers.dense("output", output, None)
    return tuple(layers.made)


def _needed(stages: Sequence[Stage], output: Affine) -> list[int]:
    found: set[int] = set()
    waiting = [output.stage]
    while waiting:
        number = waiting.pop()
        if number and number not in found:
            found.add(number)
            waiting += [value.stage for value in stages[number - 1].takes]
    return sorted(found)


class _Layers:
    """Makes layers in order; `taken` are all values that stages and the output take."""

    def __init__(self, taken: Sequence[Affine]) -> None:
        self.made: list[NetworkLayer] = []
        first = [value for value in taken if value.stage == 0]
        plain = sum(not value.factors for value in first)
        self.starts = plain + len({id(value) for value in first if value.factors})
        self._uses = Counter(id(value) for value in taken if value.factors)
        self._names: dict[int, str | None] = {0: None}  # by stage
        self._own: dict[int, str] = {}  # by the identity of a value with a layer of its own

    def identity(self, features: int) -> None:
        """Begin with a layer that changes nothing: the input is the first layer's alone."""
        check_size(features, features)
        self.made.append(Dense(INPUT, np.eye(features), np.zeros(features), None))
        self._names[0] = INPUT

    def stage(self, number: int, stage: Stage) -> None:
        """Add the layers of one stage."""
        name = f"stage{number}"
        if isinstance(stage, Activated):
            self.dense(name, stage.value, stage.activation)
        else:
            left, right = (self._layer(f"{name}.{k}", value) for k, value in enumerate(stage.takes))
            self.made.append(Join(name, stage.kind, right, left))
        self._names[number] = name

    def dense(self, name: str, value: Affine, activation: Activation | None) -> None:
        """Add the layers up to an activation, or to the output."""
        shared = self._uses[id(value)] > 1
        source = self._layer(f"{name}.value", value) if shared else self._names[value.stage]
        factors = () if shared else value.factors
        if not factors:
            check_size(value.width, value.width)
            factors = ((np.eye(value.width), np.zeros(value.width)),)
        self._chain(name, factors, source, activation)

    def _layer(self, name: str, value: Affine) -> str:
        """Return the name of the layer that gives just this value."""
        if not value.factors:
            return str(self._names[value.stage])
        if id(value) not in self._own:
            self._chain(name, value.factors, self._names[value.stage], None)
            self._own[id(value)] = name
        return self._own[id(value)]

    def _chain(
        self,
        name: str,
        factors: Sequence[Factor],
        source: str | None,
        activation: Activation | None,
    ) -> None:
        for k, (weight, bias) in enumerate(factors, 1):
            last = k == len(factors)
            step = name if last else f"{name}.factor{k}"
            self.made.append(Dense(step, weight, bias, activation if last else None, source))
            source = step
