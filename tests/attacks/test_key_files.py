"""Attacks on the file key provider: every one ends in a refusal, none in a wrong key."""

from __future__ import annotations

import json
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretBytes

from tensorguard.crypto.files import UnsafeFile
from tensorguard.errors import TensorGuardError
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import Algorithm, KeyUnusable, Purpose, key_id

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


def refused(folder: Path, error: type[TensorGuardError] = KeyUnusable) -> None:
    with pytest.raises(error):
        opened(folder).sign(KEY, b"message")


@pytest.mark.invariant("TG-I04")
def test_wrong_master_opens_nothing(folder: Path) -> None:
    with pytest.raises(KeyUnusable):
        opened(folder, SecretBytes(secrets.token_bytes(32))).sign(KEY, b"message")


def test_file_readable_by_others(folder: Path) -> None:
    (folder / f"{KEY}.tgkey").chmod(0o644)
    refused(folder, UnsafeFile)


def test_folder_open_to_others(folder: Path) -> None:
    folder.chmod(0o755)
    with pytest.raises(UnsafeFile):
        opened(folder)


def test_symlink_in_place_of_a_key(folder: Path, tmp_path: Path) -> None:
    path = folder / f"{KEY}.tgkey"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    refused(folder, UnsafeFile)


def test_two_key_files_swapped(folder: Path) -> None:
    a, b = folder / f"{KEY}.tgkey", folder / f"{OTHER}.tgkey"
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)
    refused(folder)


@pytest.mark.parametrize(
    ("member", "value"),
    [("purpose", "token-signing"), ("algorithm", "ES256"), ("generation", 7), ("format", "x")],
)
def test_edited_header(folder: Path, member: str, value: object) -> None:
    path = folder / f"{KEY}.tgkey"
    content = json.loads(path.read_bytes())
    content["header"][member] = value
    path.write_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    refused(folder)


def test_older_file_put_back(folder: Path, tmp_path: Path) -> None:
    """The generation in the index outlives the file that is rolled back."""
    path, index = folder / f"{KEY}.tgkey", folder / "index.tgkeys"
    provider = opened(folder)
    header, materials = provider._load(KEY)
    shutil.copy(path, tmp_path / "old")
    provider._store(path, {**header, "generation": 2}, materials)
    opened(folder).sign(KEY, b"message")
    path.write_bytes((tmp_path / "old").read_bytes())
    assert index.exists()
    refused(folder)


@pytest.mark.parametrize("name", ["index.tgkeys", f"{KEY}.tgkey"])
def test_removed_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder)


def test_every_single_byte_flip_is_refused(folder: Path) -> None:
    path = folder / f"{KEY}.tgkey"
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x20]) + good[place + 1 :])
        with pytest.raises(TensorGuardError):
            opened(folder).sign(KEY, b"message")


def test_truncated_and_empty_files(folder: Path) -> None:
    path = folder / f"{KEY}.tgkey"
    good = path.read_bytes()
    for length in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        refused(folder)


def test_private_bytes_are_in_no_file(folder: Path) -> None:
    _, materials = opened(folder)._load(KEY)
    private = materials[1].private
    for path in folder.iterdir():
        content = path.read_bytes()
        assert private not in content
        assert private.hex().encode() not in content
