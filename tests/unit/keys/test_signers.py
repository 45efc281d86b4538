"""A signature always belongs to the public key that is shown with it, also while keys rotate."""

from __future__ import annotations

import base64
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretBytes

from tensorguard.crypto import dsse
from tensorguard.crypto.trust import TrustStore
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import Algorithm, KeyChanged, Purpose, WrongKeyUse, key_id
from tensorguard.keys.signers import (
    ProviderECKey,
    ProviderHybridSigner,
    ensure,
    seal,
    sign_jwt,
)

KEY = key_id("key")


@pytest.fixture
def provider(tmp_path: Path) -> FileKeyProvider:
    return FileKeyProvider(
        tmp_path / "keys", SecretBytes(secrets.token_bytes(32)), now=lambda: datetime.now(UTC)
    )


def segment(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_every_token_verifies_under_the_kid_that_it_names(provider: FileKeyProvider) -> None:
    ensure(provider, KEY, Algorithm.ed25519, Purpose.token_signing)
    done, rotated = Event(), Event()

    def rotate() -> None:
        while not done.is_set():
            provider.rotate(KEY)
            rotated.set()

    def sign() -> list[str]:
        tokens = [sign_jwt(provider, KEY, {"n": 0}, kind="at+jwt")]
        assert rotated.wait(60)  # a busy machine may run one thread for long
        return tokens + [sign_jwt(provider, KEY, {"n": n}, kind="at+jwt") for n in range(1, 150)]

    with ThreadPoolExecutor(3) as pool:
        signing = [pool.submit(sign) for _ in range(2)]
        rotating = pool.submit(rotate)
        tokens = [token for job in signing for token in job.result()]
        done.set()
        rotating.result()
    kids = set()
    for token in tokens:
        message, _, signature = token.rpartition(".")
        kid = json.loads(segment(message.partition(".")[0]))["kid"]
        name, _, version = kid.rpartition(".")
        provider.public_key(key_id(name), int(version)).verify(message.encode(), segment(signature))
        kids.add(kid)
    assert len(kids) > 1


def test_a_signer_of_an_older_version_refuses(provider: FileKeyProvider) -> None:
    ensure(provider, KEY, Algorithm.hybrid, Purpose.pack_signing)
    signer = ProviderHybridSigner(provider, KEY, purpose=Purpose.pack_signing)
    signer.public_key.verify(b"m", signer.sign(b"m"))
    provider.rotate(KEY)
    with pytest.raises(KeyChanged):
        signer.sign(b"m")
    authority = key_id("authority")
    ensure(provider, authority, Algorithm.es256, Purpose.fleet_ca)
    key = ProviderECKey(provider, authority)
    key.public_key().verify(
        key.sign(b"m", ec.ECDSA(hashes.SHA256())), b"m", ec.ECDSA(hashes.SHA256())
    )
    provider.rotate(authority)
    with pytest.raises(KeyChanged):
        key.sign(b"m", ec.ECDSA(hashes.SHA256()))


def test_an_envelope_is_sealed_by_the_active_version(provider: FileKeyProvider) -> None:
    ensure(provider, KEY, Algorithm.hybrid, Purpose.audit_head)
    first = provider.public_key(KEY).hybrid()
    old = seal(provider, KEY, b"{}", payload_type="text/x", purpose=Purpose.audit_head)
    provider.rotate(KEY)
    new = seal(provider, KEY, b"{}", payload_type="text/x", purpose=Purpose.audit_head)
    second = provider.public_key(KEY).hybrid()
    for envelope, public in ((old, first), (new, second)):
        trust = TrustStore.from_keys({"signer": public})
        dsse.open_envelope(envelope, payload_type="text/x", trust=trust, limit=100)
    with pytest.raises(WrongKeyUse):
        seal(provider, KEY, b"{}", payload_type="text/x", purpose=Purpose.pack_signing)


def test_ensure_makes_a_key_once_and_refuses_another_use(provider: FileKeyProvider) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda _: ensure(provider, KEY, Algorithm.es256, Purpose.fleet_ca), range(8))
        )
    assert set(made) == {KEY}
    for algorithm, purpose in (
        (Algorithm.ed25519, Purpose.fleet_ca),
        (Algorithm.es256, Purpose.token_signing),
    ):
        with pytest.raises(WrongKeyUse):
            ensure(provider, KEY, algorithm, purpose)
