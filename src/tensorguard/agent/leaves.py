"""The numbers in a message, each with the path of its field: what becomes a series.

Booleans are 0 and 1, elements of a list are numbered from 0. Text, bytes, lists of over `MAX_LIST`
elements, numbers that are not finite and what is nested too deep are not series; they are counted.
"""

from __future__ import annotations

import array
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

MAX_LIST: Final = 256  # elements; a longer one is an image or a scan, not a set of series
MAX_DEPTH: Final = 16
MAX_LEAVES: Final = 4096  # of one message

Leaf = tuple[str, float]
Fields = Callable[[object], Mapping[str, object] | None]


def leaves(message: object, topic: str, fields: Fields) -> tuple[list[Leaf], int]:
    """Return (series name, value) of each number in a message, and how many values were left out.

    `fields` returns the named members of an object that has some, or None.
    """
    found: list[Leaf] = []
    skipped = 0
    for name, value in _walk(message, topic, fields, MAX_DEPTH):
        number = _number(value)
        if number is None or len(found) >= MAX_LEAVES:
            skipped += 1
        else:
            found.append((name, number))
    return found, skipped


def _walk(
    value: object, name: str, fields: Fields, depth: int
) -> Iterator[tuple[str, object | None]]:
    if isinstance(value, str | bytes | bytearray | memoryview) or value is None:
        return
    if isinstance(value, bool | int | float):
        yield name, value
        return
    if isinstance(value, list | tuple | array.array):
        members = {str(number): one for number, one in enumerate(value[: MAX_LIST + 1])}
        if len(members) > MAX_LIST:
            yield name, None
            return
    else:
        found = value if isinstance(value, dict) else fields(value)
        if found is None:
            return
        members = {str(key): one for key, one in found.items()}
    if depth == 0:
        yield name, None
        return
    for key, member in members.items():
        yield from _walk(member, f"{name}.{key}", fields, depth - 1)


def _number(value: object) -> float | None:
    if not isinstance(value, bool | int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
