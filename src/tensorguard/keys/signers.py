"""Adapters: a provider's key where a library or a format wants a signer."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tensorguard.crypto import canonical, dsse
from tensorguard.crypto.hybrid import ED25519_SIGNATURE, HybridPublicKey, HybridSignature
from tensorguard.keys.provider import (
    P256_COORDINATE,
    Algorithm,
    KeyChanged,
    KeyExists,
    KeyId,
    KeyNotFound,
    KeyProvider,
    Purpose,
    WrongKeyUse,
)

T = TypeVar("T")
ROTATIONS: Final = 3  # of one key, in the time of one signature
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


def _signed(provider: KeyProvider, key: KeyId, version: int, message: bytes) -> bytes:
    signature = provider.sign(key, message)
    if signature.version != version:
        raise KeyChanged(f"the key {key} was rotated to version {signature.version}")
    return signature.value


def _settled(work: Callable[[], T]) -> T:
    """Run `work` again when a rotation came between looking at a key and signing with it."""
    for _ in range(ROTATIONS):
        try:
            return work()
        except KeyChanged:
            continue
    return work()


class ProviderHybridSigner:
    """A `HybridSigner` whose private keys stay with the provider.

    It is for the version that was active when it was made: after a rotation it raises `KeyChanged`
    rather than sign for a public key that it does not show. `seal` makes one per envelope.
    """

    def __init__(self, provider: KeyProvider, key: KeyId, *, purpose: Purpose) -> None:
        if provider.describe(key).purpose is not purpose:
            raise WrongKeyUse(f"the key {key} is not for {purpose}")
        self._provider, self._key = provider, key
        public = provider.public_key(key)
        self._public, self._version = public.hybrid(), public.version

    @property
    def public_key(self) -> HybridPublicKey:
        """The key that verifies what this signer signs."""
        return self._public

    def sign(self, message: bytes) -> HybridSignature:
        """Sign `message` with both keys."""
        value = _signed(self._provider, self._key, self._version, message)
        return HybridSignature(value[:ED25519_SIGNATURE], value[ED25519_SIGNATURE:])


class ProviderECKey(ec.EllipticCurvePrivateKey):
    """A P-256 key of a provider in the shape that `cryptography` signs certificates with.

    Like `ProviderHybridSigner` it is for one version, and raises `KeyChanged` after a rotation.
    """

    def __init__(self, provider: KeyProvider, key: KeyId) -> None:
        self._provider, self._key = provider, key
        public = provider.public_key(key)
        self._public, self._version = public.ec(), public.version

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
        raw = _signed(self._provider, self._key, self._version, bytes(data))
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


def seal(
    provider: KeyProvider, key: KeyId, payload: bytes, *, payload_type: str, purpose: Purpose
) -> bytes:
    """Return a DSSE envelope over `payload`, by whichever version of `key` is active."""
    return _settled(
        lambda: dsse.seal(
            payload,
            payload_type=payload_type,
            signer=ProviderHybridSigner(provider, key, purpose=purpose),
        )
    )


def sign_jwt(provider: KeyProvider, key: KeyId, claims: dict[str, Any], *, kind: str) -> str:
    """Return a compact JWS (RFC 7515) over `claims`, with `typ` set to `kind`."""
    return _settled(lambda: _jwt(provider, key, claims, kind))


def _jwt(provider: KeyProvider, key: KeyId, claims: dict[str, Any], kind: str) -> str:
    public = provider.public_key(key)
    if public.algorithm not in JOSE:
        raise WrongKeyUse(f"the key {key} does not sign tokens")
    header = {"alg": JOSE[public.algorithm], "kid": public.kid, "typ": kind}
    message = b".".join(_segment(canonical.encode(part)) for part in (header, claims))
    value = _signed(provider, key, public.version, message)  # `kid` names the version
    return (message + b"." + _segment(value)).decode()
