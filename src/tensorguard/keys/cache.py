"""Unwrapped data keys are remembered for a bounded time, number of uses and number of keys.

A hit costs no call to the custody; so a key that is disabled or retired there is refused here at the
latest `max_age` later, at once after `forget`. What leaves the cache is overwritten: best effort, for
Python may have copied it, and callers hold copies of their own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from tensorguard.keys.provider import KeyId, KeyProvider, WrapContext

MAX_AGE: Final = timedelta(minutes=5)
MAX_USES, MAX_KEYS = 10_000, 1_000
_Name = tuple[KeyId, bytes, str, str]


@dataclass(slots=True)
class _Entry:
    data_key: bytearray
    until: float
    uses: int


class DataKeyCache:
    """A provider's `unwrap` with a memory. Safe for threads."""

    def __init__(
        self,
        provider: KeyProvider,
        *,
        max_age: timedelta = MAX_AGE,
        max_uses: int = MAX_USES,
        max_keys: int = MAX_KEYS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_age <= timedelta(0) or min(max_uses, max_keys) < 1:
            raise ValueError("a cache needs an age, a number of uses and a number of keys")
        self._provider, self._monotonic = provider, monotonic
        self._age, self._uses, self._keys = max_age.total_seconds(), max_uses, max_keys
        self._entries: OrderedDict[_Name, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def unwrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        """Return the data key, from memory or from the provider. Raises what the provider raises."""
        name = (key, wrapped, context.purpose, context.tenant)
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and entry.uses < self._uses and self._monotonic() < entry.until:
                entry.uses += 1
                self._entries.move_to_end(name)
                return bytes(entry.data_key)
            self._drop(name)
        asked = self._monotonic()
        data_key = self._provider.unwrap(key, wrapped, context)
        with self._lock:
            self._drop(name)
            self._entries[name] = _Entry(bytearray(data_key), asked + self._age, 1)
            while len(self._entries) > self._keys:
                self._drop(next(iter(self._entries)))
        return data_key

    def forget(self, key: KeyId | None = None) -> None:
        """Drop what was unwrapped by `key`, or everything: after a key was disabled or retired."""
        with self._lock:
            for name in [n for n in self._entries if key is None or n[0] == key]:
                self._drop(name)

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, name: _Name) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            entry.data_key[:] = bytes(len(entry.data_key))
