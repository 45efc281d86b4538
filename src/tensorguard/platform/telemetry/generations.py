"""A bounded map that forgets by generations, read without a lock.

What was not asked for while one generation filled up goes with the older one.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

CAPACITY: Final = 20_000  # entries of a generation; about half a kilobyte each

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Generations(Generic[K, V]):
    """A bounded map. A race between two threads can only lose an entry, which is then found anew."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, key: K) -> V | None:
        """Return what is known, and keep it for longer."""
        found = self.young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Remember."""
        if len(self.young) >= self._capacity:
            self._old, self.young = self.young, {}
        self.young[key] = value

    def drop(self, key: K) -> None:
        """Forget one entry."""
        self.young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.young, self._old = {}, {}
