"""Attacks on the file key provider: every one ends in a refusal, none in a wrong key."""

from __future__ import annotations

import base64
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretBytes

from tensorguard.crypto.files import UnsafeFile
from tensorguard.errors import TensorGuardError
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import (
    Algorithm,
    KeyDisabled,
    KeyProviderUnusable,
    KeyUnusable,
    Purpose,
    key_id,
)

MASTER = SecretBytes(secrets.token_bytes(32))
KEY, OTHER = key_id("pack-signer"), key_id("other")


def opened(folder: Path, master: SecretBytes = MASTER) -> FileKeyProvider:
    return FileKeyProvider(folder, master, now=lambda: datetime.now(UTC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    provider = opened(tmp_path / "keys")
    for key in (KEY, OTHER):
        provider.create(key, algorithm=Algorithm.ed25519, purpose=Purpose.pack_signing)
    return tmp_path / "keys"


def inside(folder: Path) -> Path:
    """The folder of the epoch in force."""
    return folder / json.loads((folder / "current.tgkeys").read_bytes())["epoch"]


def refused(folder: Path, error: type[TensorGuardError] = KeyUnusable) -> None:
    with pytest.raises(error):
        opened(folder).sign(KEY, b"message")


@pytest.mark.invariant("TG-I04")
def test_wrong_master_opens_nothing(folder: Path) -> None:
    with pytest.raises(KeyUnusable):
        opened(folder, SecretBytes(secrets.token_bytes(32))).sign(KEY, b"message")


def test_file_readable_by_others(folder: Path) -> None:
    (inside(folder) / f"{KEY}.tgkey").chmod(0o644)
    refused(folder, UnsafeFile)


def test_folder_open_to_others(folder: Path) -> None:
    folder.chmod(0o755)
    with pytest.raises(UnsafeFile):
        opened(folder)


def test_symlink_in_place_of_a_key(folder: Path, tmp_path: Path) -> None:
    path = inside(folder) / f"{KEY}.tgkey"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    refused(folder, UnsafeFile)


def test_two_key_files_swapped(folder: Path) -> None:
    a, b = inside(folder) / f"{KEY}.tgkey", inside(folder) / f"{OTHER}.tgkey"
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)
    refused(folder)


@pytest.mark.parametrize(
    ("member", "value"),
    [("purpose", "token-signing"), ("algorithm", "ES256"), ("generation", 7), ("format", "x")],
)
def test_edited_header(folder: Path, member: str, value: object) -> None:
    path = inside(folder) / f"{KEY}.tgkey"
    content = json.loads(path.read_bytes())
    content["header"][member] = value
    path.write_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    refused(folder)


def test_older_file_put_back(folder: Path) -> None:
    """The generation in the index outlives the file that is rolled back."""
    path = inside(folder) / f"{KEY}.tgkey"
    old = path.read_bytes()
    opened(folder).rotate(KEY)
    opened(folder).sign(KEY, b"message")
    path.write_bytes(old)
    refused(folder)


def test_older_index_and_older_file_put_back_over_two_changes(folder: Path) -> None:
    """A crash can leave a file one generation ahead of its index, never two."""
    index = inside(folder) / "index.tgkeys"
    old = index.read_bytes()
    opened(folder).rotate(KEY)
    opened(folder).rotate(KEY)
    index.write_bytes(old)
    refused(folder)


@pytest.mark.parametrize("name", ["index.tgkeys", f"{KEY}.tgkey"])
def test_removed_file(folder: Path, name: str) -> None:
    (inside(folder) / name).unlink()
    refused(folder)


def test_removed_pointer(folder: Path) -> None:
    (folder / "current.tgkeys").unlink()
    refused(folder)


def test_symlink_in_place_of_the_epoch(folder: Path, tmp_path: Path) -> None:
    epoch = inside(folder)
    epoch.rename(tmp_path / "moved")
    epoch.symlink_to(tmp_path / "moved")
    refused(folder, UnsafeFile)


def test_journal_that_names_another_folder_removes_nothing(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    for name in ("..", "../kept", "x/../..", inside(folder).name):
        journal = {"format": "tensorguard-key-1", "from": name, "to": inside(folder).name}
        path = folder / "rewrap.tgkeys"
        path.write_bytes(json.dumps(journal, sort_keys=True, separators=(",", ":")).encode())
        path.chmod(0o600)
        with pytest.raises(KeyUnusable):
            opened(folder).rotate(KEY)
        assert kept.exists()
        assert inside(folder).exists()


def test_missing_short_or_long_master(tmp_path: Path) -> None:
    for length in (0, 16, 31, 33, 64):
        with pytest.raises(KeyProviderUnusable):
            opened(tmp_path / "keys", SecretBytes(secrets.token_bytes(length)))


def test_changes_of_another_process_are_noticed(folder: Path) -> None:
    """An opened key is looked at again; a file that someone opened to others is refused then."""
    clock = [0.0]
    provider = FileKeyProvider(
        folder, MASTER, now=lambda: datetime.now(UTC), monotonic=lambda: clock[0]
    )
    assert provider.sign(KEY, b"message").version == 1
    opened(folder).rotate(KEY)
    clock[0] += 1
    assert provider.sign(KEY, b"message").version == 2
    opened(folder).disable(KEY)
    clock[0] += 1
    with pytest.raises(KeyDisabled):
        provider.sign(KEY, b"message")
    (inside(folder) / f"{KEY}.tgkey").unlink()
    clock[0] += 1
    with pytest.raises(KeyUnusable):
        provider.sign(KEY, b"message")


def test_every_single_byte_flip_is_refused(folder: Path) -> None:
    path = inside(folder) / f"{KEY}.tgkey"
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x20]) + good[place + 1 :])
        with pytest.raises(TensorGuardError):
            opened(folder).sign(KEY, b"message")


def test_truncated_and_empty_files(folder: Path) -> None:
    path = inside(folder) / f"{KEY}.tgkey"
    good = path.read_bytes()
    for length in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        refused(folder)


def test_private_bytes_are_in_no_file(folder: Path) -> None:
    private = opened(folder)._folder.read(KEY)[3][1]
    for path in (p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert private not in content
        assert private.hex().encode() not in content
        assert base64.b64encode(private) not in content
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("weak", [bytes(32), bytes(range(32)), b"a" * 32, b"ab" * 16, b"short"])
def test_weak_new_master(folder: Path, weak: bytes) -> None:
    with pytest.raises(KeyProviderUnusable):
        opened(folder).master_rewrap(SecretBytes(weak))
    opened(folder).sign(KEY, b"message")


def test_a_process_that_knows_both_masters_works_on_through_a_rewrap(folder: Path) -> None:
    new = SecretBytes(secrets.token_bytes(32))
    running = FileKeyProvider(folder, MASTER, next_master=new, now=lambda: datetime.now(UTC))
    before = running.sign(KEY, b"message")
    assert opened(folder).master_rewrap(new) == 2
    assert running.rotate(KEY).version == 2
    running.verify(KEY, b"message", before)
    refused(folder)
