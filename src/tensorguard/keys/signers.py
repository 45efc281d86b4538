"""Adapters: a provider's key where a library or a format wants a signer."""

from __future__ import annotations

import base64
import copy
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tensorguard.crypto import canonical
from tensorguard.crypto.hybrid import ED25519_SIGNATURE, HybridPublicKey, HybridSignature
from tensorguard.keys.provider import (
    P256_COORDINATE,
    Algorithm,
    KeyExists,
    KeyId,
    KeyNotFound,
    KeyProvider,
    Purpose,
    WrongKeyUse,
)

JOSE = {Algorithm.ed25519: "EdDSA", Algorithm.es256: "ES256"}


def ensure(provider: KeyProvider, key: KeyId, algorithm: Algorithm, purpose: Purpose) -> KeyId:
    """Return `key`, made if it was absent. Raises `WrongKeyUse` if it is for something else."""
    try:
        info = provider.describe(key)
    except KeyNotFound:
        try:
            info = provider.create(key, algorithm=algorithm, purpose=purpose)
        except KeyExists:  # another process made it in the meantime
            info = provider.describe(key)
    if info.purpose is not purpose or info.algorithm is not algorithm:
        raise WrongKeyUse(f"the key {key} is {info.algorithm} for {info.purpose}")
    return key


class ProviderHybridSigner:
    """A `HybridSigner` whose private keys stay with the provider."""

    def __init__(self, provider: KeyProvider, key: KeyId, *, purpose: Purpose) -> None:
        if provider.describe(key).purpose is not purpose:
            raise WrongKeyUse(f"the key {key} is not for {purpose}")
        self._provider, self._key = provider, key
        self._public = provider.public_key(key).hybrid()

    @property
    def public_key(self) -> HybridPublicKey:
        """The key that verifies what this signer signs."""
        return self._public

    def sign(self, message: bytes) -> HybridSignature:
        """Sign `message` with both keys."""
        value = self._provider.sign(self._key, message).value
        return HybridSignature(value[:ED25519_SIGNATURE], value[ED25519_SIGNATURE:])


class ProviderECKey(ec.EllipticCurvePrivateKey):
    """A P-256 key of a provider in the shape that `cryptography` signs certificates with."""

    def __init__(self, provider: KeyProvider, key: KeyId) -> None:
        self._provider, self._key = provider, key
        self._public = provider.public_key(key).ec()

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """256 bits."""
        return self._public.key_size

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Sign with ECDSA over SHA-256 and return DER."""
        if not isinstance(signature_algorithm.algorithm, hashes.SHA256):
            raise WrongKeyUse("this key signs with SHA-256 only")
        raw = self._provider.sign(self._key, bytes(data)).value
        r, s = raw[:P256_COORDINATE], raw[P256_COORDINATE:]
        return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Refuse: the key signs and does nothing else."""
        raise WrongKeyUse("this key does not agree on keys")

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """Refuse: private bytes never leave the provider."""
        raise WrongKeyUse("private bytes never leave the key provider")

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002 - the library's own name
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        """Refuse: private bytes never leave the provider."""
        raise WrongKeyUse("private bytes never leave the key provider")

    def __copy__(self) -> ProviderECKey:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ProviderECKey:
        return copy.copy(self)


def _segment(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def sign_jwt(provider: KeyProvider, key: KeyId, claims: dict[str, Any], *, kind: str) -> str:
    """Return a compact JWS (RFC 7515) over `claims`, with `typ` set to `kind`."""
    public = provider.public_key(key)
    if public.algorithm not in JOSE:
        raise WrongKeyUse(f"the key {key} does not sign tokens")
    header = {"alg": JOSE[public.algorithm], "kid": public.kid, "typ": kind}
    message = b".".join(_segment(canonical.encode(part)) for part in (header, claims))
    return (message + b"." + _segment(provider.sign(key, message).value)).decode()
