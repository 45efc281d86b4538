"""What this process knows to be committed: series ids and days. Bounded, and read without a lock.

A series is found by the very bytes that an exporter repeats in each request, so that its labels are
read and checked once.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final

from tensorguard.crypto import canonical
from tensorguard.platform.telemetry.generations import CAPACITY, Generations
from tensorguard.platform.telemetry.layouts import Layouts

MAX_PENDING: Final = 4_000  # of a generation; a few kilobytes each

RawKey = tuple[int, Hashable]  # the context's number, and what tells series apart within it
SeriesKey = tuple[str, bytes]  # tenant, SHA-256 of the identity


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two samples belong to the same series. `labels` is canonical JSON: it is small."""

    name: str
    unit: str
    kind: str
    labels: bytes
    key: bytes

    @classmethod
    def of(cls, name: str, unit: str, kind: str, labels: Mapping[str, str]) -> Identity:
        """Return the identity; its key is the SHA-256 over the canonical form of all four."""
        encoded = canonical.encode(dict(labels))
        head = canonical.encode([name, unit, str(kind)])
        digest = hashlib.sha256(b"".join((head[:-1], b",", encoded, b"]"))).digest()
        return cls(sys.intern(name), sys.intern(unit), kind, encoded, digest)


@dataclass(frozen=True, slots=True)
class Pending:
    """A series whose id is not known here, and the bytes under which to remember it."""

    identity: Identity
    raw: RawKey | None = None


class KnownSeries:
    """Ids of committed series, by their identity and by the bytes that name them.

    `pending` are series on their way: of many requests that bring the same new series at once, one
    reads its labels.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.raw: Generations[RawKey, int] = Generations(capacity)
        self._by_key: Generations[SeriesKey, int] = Generations(capacity)
        self.pending: Generations[RawKey, Pending] = Generations(MAX_PENDING)
        self.layouts = Layouts()
        self._contexts: Generations[Hashable, int] = Generations(capacity)
        self._next = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.raw)

    def context(self, key: Hashable) -> int:
        """Return the number of what surrounds samples: owner, resource, scope, metric."""
        found = self._contexts.get(key)
        if found is None:
            with self._lock:
                self._next += 1
                found = self._next  # never given twice: an evicted context strands its entries
            self._contexts.put(key, found)
        return found

    def find(self, tenant_id: str, keys: Iterable[bytes]) -> dict[bytes, int]:
        """Return the ids that are known."""
        pairs = ((key, self._by_key.get((tenant_id, key))) for key in keys)
        return {key: series_id for key, series_id in pairs if series_id is not None}

    def put(self, tenant_id: str, ids: Mapping[bytes, int]) -> None:
        """Remember ids that were committed."""
        for key, series_id in ids.items():
            self._by_key.put((tenant_id, key), series_id)


class KnownDays:
    """Days whose partition is committed. A day is never forgotten while samples of it are taken."""

    def __init__(self) -> None:
        self._days: frozenset[int] = frozenset()
        self._lock = Lock()

    def missing(self, days: Iterable[int]) -> list[int]:
        """Return the days, in order, that are not known to have a partition."""
        return sorted(set(days) - self._days)

    def put(self, days: Iterable[int]) -> None:
        """Remember days whose partition was committed."""
        with self._lock:
            self._days |= frozenset(days)

    def clear(self) -> None:
        """Forget all days, after the database contradicted one, or some were dropped."""
        with self._lock:
            self._days = frozenset()
