"""What is kept loaded: the least recently used goes first, bounded by the bytes of the frames."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from tensorguard.moai.backends.base import EvaluationKeys
from tensorguard.moai.spec import ModelSpec

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class KeyShape:
    """What evaluation keys must have for a model. Models of one shape can share them."""

    parameters_id: bytes
    rotations: tuple[int, ...]
    relinearisation: bool

    @classmethod
    def of(cls, spec: ModelSpec) -> KeyShape:
        """Return what `spec` needs."""
        return cls(spec.parameters.id, spec.plan.rotations, spec.plan.relinearisation)


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Whose keys, which keys, and how they were loaded. The tenant is part of the name."""

    tenant: str
    digest: str
    shape: KeyShape


class BoundedCache(Generic[K, V]):
    """Keeps values up to `limit` bytes; the newest entry always stays."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._total = 0

    def get(self, key: K) -> V | None:
        """Return a value, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, *, size: int) -> None:
        """Keep `value`, which stands for `size` bytes."""
        if (old := self._entries.pop(key, None)) is not None:
            self._total -= old[1]
        self._entries[key] = (value, size)
        self._total += size
        while self._total > self._limit and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self._total -= freed

    def __len__(self) -> int:
        return len(self._entries)


KeyCache = BoundedCache[CacheKey, EvaluationKeys]
