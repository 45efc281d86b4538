"""Which layer takes which: the one before it, or an earlier one by its number; never a later one.

Layers run in order. A layer starts as late as those behind it allow: what it takes may come from a
higher level and is dropped to its own, which costs nothing and makes all that it does cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

INPUT = -1  # the number of the client's input; layers count from 0


class Step(Protocol):
    """What the wiring needs of a layer's shape."""

    @property
    def depth(self) -> int:
        """The levels that it takes."""
        ...

    @property
    def of(self) -> int | None:
        """The number of the layer that it takes; None: the one before."""
        ...

    @property
    def other(self) -> int | None:
        """The number of the second layer that it takes, if it takes two."""
        ...


def sources(steps: Sequence[Step]) -> tuple[tuple[int, ...], ...]:
    """Return what each layer takes."""
    found: list[tuple[int, ...]] = []
    for number, step in enumerate(steps):
        first = number - 1 if step.of is None else step.of
        found.append((first,) if step.other is None else (first, step.other))
    return tuple(found)


def spent(steps: Sequence[Step]) -> list[int]:
    """Return the levels that are used up at the end of each layer."""
    ends: list[int] = []
    for step, taken in zip(steps, sources(steps), strict=True):
        start = max(0 if source == INPUT else ends[source] for source in taken)
        ends.append(start + step.depth)
    return ends


def levels(steps: Sequence[Step]) -> list[int]:
    """Return the level of each layer's input, so that the last layer ends at level 1."""
    needed = [1] * len(steps)  # of each output
    found = [0] * len(steps)
    wired = sources(steps)
    for number in reversed(range(len(steps))):
        found[number] = needed[number] + steps[number].depth
        for source in wired[number]:
            if source != INPUT:
                needed[source] = max(needed[source], found[number])
    return found
