"""The data-key cache is bounded in time, uses and size, and forgets by overwriting."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretBytes

from support.keys import CONTEXT, Clock
from tensorguard.keys.cache import DataKeyCache
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import (
    Algorithm,
    KeyId,
    KeyRetired,
    Purpose,
    WrapContext,
    WrongContext,
    key_id,
)

KEK = key_id("kek")


class Counting(FileKeyProvider):
    """A file provider that counts what it is asked."""

    calls = 0

    def unwrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        self.calls += 1
        return super().unwrap(key, wrapped, context)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(tmp_path: Path, clock: Clock) -> Counting:
    provider = Counting(tmp_path / "keys", SecretBytes(secrets.token_bytes(32)), now=clock)
    provider.create(KEK, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    return provider


def test_a_hit_asks_nobody(provider: Counting, clock: Clock) -> None:
    cache = DataKeyCache(provider, monotonic=clock.monotonic)
    made = provider.data_key(KEK, CONTEXT)
    assert {cache.unwrap(KEK, made.wrapped, CONTEXT) for _ in range(100)} == {made.plaintext}
    assert provider.calls == 1


def test_age_and_uses_are_bounded(provider: Counting, clock: Clock) -> None:
    cache = DataKeyCache(
        provider, max_age=timedelta(seconds=60), max_uses=10, monotonic=clock.monotonic
    )
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    for _ in range(30):
        cache.unwrap(KEK, wrapped, CONTEXT)
    assert provider.calls == 3
    cache.forget()
    cache.unwrap(KEK, wrapped, CONTEXT)
    clock.turn(timedelta(seconds=61))
    cache.unwrap(KEK, wrapped, CONTEXT)
    assert provider.calls == 5


def test_the_number_of_keys_is_bounded(provider: Counting) -> None:
    cache = DataKeyCache(provider, max_keys=5)
    blobs = [provider.wrap(KEK, b"k" * 32, CONTEXT) for _ in range(20)]
    for blob in blobs:
        cache.unwrap(KEK, blob, CONTEXT)
    assert len(cache) == 5
    calls = provider.calls
    cache.unwrap(KEK, blobs[-1], CONTEXT)
    assert provider.calls == calls
    cache.unwrap(KEK, blobs[0], CONTEXT)
    assert provider.calls == calls + 1


def test_another_context_is_no_hit(provider: Counting) -> None:
    cache = DataKeyCache(provider)
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    cache.unwrap(KEK, wrapped, CONTEXT)
    with pytest.raises(WrongContext):
        cache.unwrap(KEK, wrapped, WrapContext(CONTEXT.purpose, "evil"))
    assert len(cache) == 1


def test_what_is_forgotten_is_overwritten_and_a_retired_key_refused(provider: Counting) -> None:
    cache = DataKeyCache(provider)
    wrapped = provider.wrap(KEK, b"k" * 32, CONTEXT)
    cache.unwrap(KEK, wrapped, CONTEXT)
    (entry,) = cache._entries.values()
    provider.rotate(KEK)
    provider.retire(KEK, 1)
    assert cache.unwrap(KEK, wrapped, CONTEXT) == b"k" * 32
    cache.forget(KEK)
    assert entry.data_key == bytes(32)
    with pytest.raises(KeyRetired):
        cache.unwrap(KEK, wrapped, CONTEXT)


def test_threads_get_the_right_key(provider: Counting) -> None:
    cache = DataKeyCache(provider, max_uses=7, max_keys=3)
    made = [provider.data_key(KEK, CONTEXT) for _ in range(6)]

    def work(offset: int) -> None:
        for count in range(300):
            key = made[(count + offset) % len(made)]
            assert cache.unwrap(KEK, key.wrapped, CONTEXT) == key.plaintext

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize("bounds", [{"max_age": timedelta(0)}, {"max_uses": 0}, {"max_keys": 0}])
def test_an_unbounded_cache_is_refused(provider: Counting, bounds: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a cache needs"):
        DataKeyCache(provider, **bounds)
