"""Series ids that this process has seen committed: bounded, and safe to use from many threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from threading import Lock

from tensorguard.platform.telemetry.points import Identity

CAPACITY = 20_000  # series; about a kilobyte each


class SeriesCache:
    """The least recently used id makes room. Only committed series may be put here."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._ids: OrderedDict[tuple[str, Identity], int] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, tenant_id: str, identities: Iterable[Identity]) -> dict[Identity, int]:
        """Return the ids that are known."""
        found: dict[Identity, int] = {}
        with self._lock:
            for identity in identities:
                key = (tenant_id, identity)
                series_id = self._ids.get(key)
                if series_id is not None:
                    self._ids.move_to_end(key)
                    found[identity] = series_id
        return found

    def put(self, tenant_id: str, ids: Mapping[Identity, int]) -> None:
        """Remember ids that were committed."""
        with self._lock:
            for identity, series_id in ids.items():
                self._ids[tenant_id, identity] = series_id
                self._ids.move_to_end((tenant_id, identity))
            while len(self._ids) > self._capacity:
                self._ids.popitem(last=False)


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
        """Forget all days, after the database contradicted one."""
        with self._lock:
            self._days = frozenset()
