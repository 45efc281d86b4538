"""Evaluation keys on disk: whose they are, how much room they take, and when they go."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorguard.errors import MalformedInput, TooLarge
from tensorguard.serving.keystore import DigestMismatch, KeyStore, KeysUnknown
from tensorguard.wire.frames import Kind, build_frame, frame_digest

IDENTITY = bytes(range(32))


class Clock:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        self.time += 1
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(tmp_path: Path, clock: Clock) -> Callable[..., KeyStore]:
    def start(**changes: int) -> KeyStore:
        limits = {"total_bytes": 10_000, "tenant_keys": 8, "keep_seconds": 1000} | changes
        return KeyStore(tmp_path / "keys", now=clock, **limits)

    return start


def frame(number: int, size: int = 1000) -> tuple[str, bytes]:
    """Return a frame of about `size` bytes, with its digest."""
    items = [number.to_bytes(4, "big") * (size // 4)]
    data = build_frame(Kind.evaluation_keys, IDENTITY, items, key_id=bytes(16))
    return frame_digest(data), data


def holds(store: KeyStore, tenant: str, digest: str) -> bool:
    try:
        store.find(tenant, digest)
    except KeysUnknown:
        return False
    return True


def test_keys_are_found_and_read_back_also_after_a_restart(open_store: Callable) -> None:
    digest, data = frame(1)
    assert open_store().put("t", digest, data)
    store = open_store()
    assert not store.put("t", digest, data)
    found = store.find("t", digest)
    assert (found.size, found.parameters_id) == (len(data), IDENTITY)
    assert store.read("t", digest) == data


def test_keys_of_another_tenant_are_unknown_even_with_the_same_bytes(open_store: Callable) -> None:
    store, (digest, data) = open_store(), frame(1)
    store.put("a", digest, data)
    for use in (store.find, store.read, store.delete):
        with pytest.raises(KeysUnknown):
            use("b", digest)
    assert store.put("b", digest, data)
    store.delete("b", digest)
    assert holds(store, "a", digest)


def test_files_are_private_and_named_by_no_tenant(open_store: Callable, tmp_path: Path) -> None:
    digest, data = frame(1)
    open_store().put("../../etc", digest, data)
    (path,) = (tmp_path / "keys").glob("*/*")
    assert path.name == digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert ".." not in path.parent.name


def test_a_digest_that_is_not_of_the_bytes_stores_nothing(open_store: Callable) -> None:
    store, (digest, _), (_, other) = open_store(), frame(1), frame(2)
    with pytest.raises(DigestMismatch):
        store.put("t", digest, other)
    assert not holds(store, "t", digest)


@pytest.mark.parametrize("digest", ["", "..", "a/b", "A" * 64, "0" * 63, "0" * 65, "/" + "0" * 63])
def test_a_name_that_is_no_digest_reaches_no_file(open_store: Callable, digest: str) -> None:
    with pytest.raises(MalformedInput):
        open_store().find("t", digest)


def test_the_least_recently_used_goes_first(open_store: Callable, clock: Clock) -> None:
    store = open_store(tenant_keys=2)
    (a, first), (b, second), (c, third) = frame(1), frame(2), frame(3)
    store.put("t", a, first)
    store.put("t", b, second)
    clock.time += 100
    store.find("t", a)
    store.put("t", c, third)
    assert [holds(store, "t", digest) for digest in (a, b, c)] == [True, False, True]


def test_a_greedy_tenant_pushes_out_its_own_keys_only(open_store: Callable) -> None:
    store, (mine, data) = open_store(total_bytes=5000), frame(0)
    store.put("modest", mine, data)
    greedy = [frame(number) for number in range(1, 9)]
    for digest, body in greedy:
        store.put("greedy", digest, body)
    assert holds(store, "modest", mine)
    assert not holds(store, "greedy", greedy[0][0])
    assert holds(store, "greedy", greedy[-1][0])
    assert store.sweep() <= 5000


def test_a_frame_larger_than_the_store_is_refused_and_pushes_nothing_out(
    open_store: Callable,
) -> None:
    store, (small, data), (large, huge) = open_store(total_bytes=2000), frame(1), frame(2, 4000)
    store.put("t", small, data)
    with pytest.raises(TooLarge):
        store.put("t", large, huge)
    assert holds(store, "t", small)


def test_keys_that_nobody_used_expire(open_store: Callable, clock: Clock) -> None:
    store, (digest, data) = open_store(), frame(1)
    store.put("t", digest, data)
    assert store.sweep() == len(data)
    clock.time += 2000
    assert not holds(store, "t", digest)
    assert store.sweep() == 0
    with pytest.raises(KeysUnknown):
        store.read("t", digest)


def test_a_frame_that_was_damaged_on_disk_is_unknown(open_store: Callable, tmp_path: Path) -> None:
    store, (digest, data) = open_store(), frame(1)
    store.put("t", digest, data)
    (path,) = (tmp_path / "keys").glob("*/*")
    path.write_bytes(data[:-1] + b"\xff")
    with pytest.raises(KeysUnknown):
        store.read("t", digest)
    assert store.put("t", digest, data)
