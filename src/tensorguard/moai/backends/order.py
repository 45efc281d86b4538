"""Runs the layers of a plan in order; a value is let go once its last layer took it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from tensorguard.moai import wiring
from tensorguard.moai.plan import Plan

T = TypeVar("T")


def run(plan: Plan, steps: Sequence[Callable[[Sequence[T]], T]], given: T) -> T:
    """Return what the last of `steps` gives; each takes the values of its layer's sources."""
    waiting = Counter(source for taken in plan.sources for source in taken)
    values = {wiring.INPUT: given}
    result = given
    for number, (taken, step) in enumerate(zip(plan.sources, steps, strict=True)):
        result = step([values[source] for source in taken])
        waiting.subtract(taken)
        for source in taken:
            if not waiting[source]:
                del values[source]
        values[number] = result
    return result
