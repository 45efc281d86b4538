"""A client's keystore opens in its own place under its own custody, and nowhere else."""

from __future__ import annotations

import base64
import json
import secrets
import stat
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretBytes

from support import moai
from support.mutations import mutations
from tensorguard.crypto import canonical
from tensorguard.crypto.files import UnsafeFile
from tensorguard.errors import TensorGuardError
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import KeyDisabled, KeyProvider, KeyUnusable
from tensorguard.moai.client import ClientKeys
from tensorguard.sdk.keystore import (
    KEY,
    KeystoreBroken,
    KeystorePlain,
    KeystoreSealed,
    KeystoreUnsealed,
    PlainKeystore,
    SealedKeystore,
    keystore,
)
from tensorguard.wire.frames import ParametersMismatch

pytestmark = pytest.mark.invariant("TG-I77")


def custody(folder: Path, master: bytes | None = None) -> KeyProvider:
    secret = SecretBytes(secrets.token_bytes(32) if master is None else master)
    return FileKeyProvider(folder, secret, now=lambda: datetime.now(UTC))


@pytest.fixture
def provider(tmp_path: Path) -> KeyProvider:
    return custody(tmp_path / "custody")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "arm.keys"


@pytest.fixture(scope="module")
def client() -> ClientKeys:
    return moai.tiny().client


def test_sealed_keys_come_back_and_the_file_shows_nothing_of_them(
    provider: KeyProvider, path: Path, client: ClientKeys
) -> None:
    tiny = moai.tiny()
    kept = SealedKeystore(path, provider)
    assert kept.load(client.view) is None
    kept.save(client)
    again = kept.load(client.view)
    assert again is not None
    frame = tiny.model.evaluate(tiny.keys, again.encrypt(tiny.inputs[0]))
    np.testing.assert_allclose(again.decrypt(frame), client.decrypt(frame))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    data, secret = path.read_bytes(), client.to_frame()
    sealed = base64.b64decode(json.loads(data)["sealed"])
    for at in range(0, len(secret) - 16, 64):
        assert secret[at : at + 16] not in sealed
    kept.save(client)
    assert path.read_bytes() != data  # another data key, another nonce


def test_sealed_keys_outlive_a_rotation_and_obey_the_custody(
    provider: KeyProvider, path: Path, client: ClientKeys
) -> None:
    kept = SealedKeystore(path, provider)
    kept.save(client)
    provider.rotate(KEY)
    assert kept.load(client.view) is not None
    provider.disable(KEY)
    with pytest.raises(KeyDisabled):
        kept.load(client.view)


def test_a_wrong_master_opens_nothing(tmp_path: Path, path: Path, client: ClientKeys) -> None:
    SealedKeystore(path, custody(tmp_path / "custody")).save(client)
    before = path.read_bytes()
    with pytest.raises(KeyUnusable):
        SealedKeystore(path, custody(tmp_path / "custody")).load(client.view)
    with pytest.raises(KeystoreBroken):  # a custody that never had such a key
        SealedKeystore(path, custody(tmp_path / "other")).load(client.view)
    stranger = custody(tmp_path / "third")
    SealedKeystore(tmp_path / "elsewhere", stranger).save(client)
    with pytest.raises(KeystoreBroken):  # one that has a key of the same name
        SealedKeystore(path, stranger).load(client.view)
    assert path.read_bytes() == before


def test_a_keystore_moved_to_another_name_is_refused(
    provider: KeyProvider, path: Path, client: ClientKeys
) -> None:
    SealedKeystore(path, provider).save(client)
    moved = path.rename(path.with_name("leg.keys"))
    with pytest.raises(KeystoreBroken, match="another name"):
        SealedKeystore(moved, provider).load(client.view)
    relabelled = {**json.loads(moved.read_bytes()), "name": "leg.keys"}
    moved.write_bytes(canonical.encode(relabelled))
    with pytest.raises(KeystoreBroken, match="does not open"):
        SealedKeystore(moved, provider).load(client.view)


def test_a_keystore_for_other_parameters_is_refused(
    provider: KeyProvider, path: Path, client: ClientKeys
) -> None:
    SealedKeystore(path, provider).save(client)
    other = moai.square().client
    with pytest.raises(ParametersMismatch):
        SealedKeystore(path, provider).load(other.view)
    relabelled = {**json.loads(path.read_bytes()), "parameters": other.parameters.id.hex()}
    path.write_bytes(canonical.encode(relabelled))
    with pytest.raises(KeystoreBroken, match="does not open"):
        SealedKeystore(path, provider).load(other.view)


def test_keys_sealed_for_something_else_do_not_open_here(
    provider: KeyProvider, path: Path, client: ClientKeys
) -> None:
    """The data key of another keystore, put beside this one's ciphertext."""
    SealedKeystore(path, provider).save(client)
    first = json.loads(path.read_bytes())
    SealedKeystore(path, provider).save(client)
    mixed = {**json.loads(path.read_bytes()), "wrapped": first["wrapped"]}
    path.write_bytes(canonical.encode(mixed))
    with pytest.raises(KeystoreBroken):
        SealedKeystore(path, provider).load(client.view)


def test_300_mutations_of_a_keystore_are_all_refused(
    provider: KeyProvider, path: Path, client: ClientKeys
) -> None:
    kept = SealedKeystore(path, provider)
    kept.save(client)
    good = path.read_bytes()
    for index, bad in enumerate(mutations(good, count=300, seed=31)):
        if bad == good:
            continue
        path.write_bytes(bad)
        with pytest.raises(TensorGuardError) as caught:
            kept.load(client.view)
        assert isinstance(caught.value, KeystoreBroken | KeystorePlain | ParametersMismatch), index


def test_a_plain_file_and_a_sealed_one_are_never_mistaken(
    provider: KeyProvider, path: Path, client: ClientKeys
) -> None:
    PlainKeystore(path).save(client)
    with pytest.raises(KeystorePlain):
        SealedKeystore(path, provider).load(client.view)
    SealedKeystore(path, provider).save(client)
    with pytest.raises(KeystoreSealed):
        PlainKeystore(path).load(client.view)


def test_a_plain_file_has_to_be_asked_for_by_name(provider: KeyProvider, path: Path) -> None:
    with pytest.raises(KeystoreUnsealed):
        keystore(path, None, unsafe_plain_keys=False)
    assert isinstance(keystore(path, None, unsafe_plain_keys=True), PlainKeystore)
    assert isinstance(keystore(path, provider, unsafe_plain_keys=True), SealedKeystore)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_keystore_that_others_can_read_is_refused(
    provider: KeyProvider, path: Path, client: ClientKeys, sealed: bool
) -> None:
    kept = SealedKeystore(path, provider) if sealed else PlainKeystore(path)
    kept.save(client)
    path.chmod(0o644)
    with pytest.raises(UnsafeFile):
        kept.load(client.view)
