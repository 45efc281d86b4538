"""A fleet CA: one P-256 key and one root per tenant; it signs device leaves and nothing else.

The private key stays with the key provider. The root has path length 0, so nothing that it signs can
sign in turn.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tensorguard.errors import ConfigurationError
from tensorguard.identity.chain import check_root
from tensorguard.identity.csr import ProvenKey
from tensorguard.identity.profile import (
    BACKDATE,
    MAX_LEAF_LIFETIME,
    ROOT_LIFETIME,
    DeviceName,
    key_usage,
)
from tensorguard.keys.provider import (
    Algorithm,
    KeyExists,
    KeyId,
    KeyNotFound,
    KeyProvider,
    Purpose,
    WrongKeyUse,
    key_id,
)
from tensorguard.keys.signers import ProviderECKey

TENANT_HASH = 16  # hex digits: 64 bits keep tenants apart, and the key id short


class FleetCaUnusable(ConfigurationError):
    code = "fleet_ca"
    remedy = "Restore the key provider's fleet CA key; the root that devices trust belongs to it."


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just signed."""

    serial: str
    pem: str
    not_before: datetime
    not_after: datetime


def ca_key_id(tenant_id: str) -> KeyId:
    """Return the id of a tenant's CA key."""
    return key_id(f"fleet-ca-{hashlib.sha256(tenant_id.encode()).hexdigest()[:TENANT_HASH]}")


def ensure_key(provider: KeyProvider, key: KeyId, algorithm: Algorithm, purpose: Purpose) -> KeyId:
    """Return `key`, made if it was absent, also when two callers make it at once."""
    try:
        info = provider.describe(key)
    except KeyNotFound:
        try:
            info = provider.create(key, algorithm=algorithm, purpose=purpose)
        except KeyExists:
            info = provider.describe(key)
    if info.purpose is not purpose or info.algorithm is not algorithm:
        raise WrongKeyUse(f"the key {key} is {info.algorithm} for {info.purpose}")
    return key


def make_root(provider: KeyProvider, tenant_id: str, *, now: datetime) -> Issued:
    """Make the tenant's CA key if it is absent, and sign a root for it."""
    key = ensure_key(provider, ca_key_id(tenant_id), Algorithm.es256, Purpose.fleet_ca)
    signer = ProviderECKey(provider, key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"TensorGuard fleet CA {key[-8:]}")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
    builder = (
        _builder(not_before=now - BACKDATE, not_after=now + ROOT_LIFETIME)
        .subject_name(name)
        .issuer_name(name)
        .public_key(signer.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{tenant_id}")]),
            critical=False,
        )
    )
    return _issued(builder.sign(signer, hashes.SHA256()))


class FleetCa:
    """Signs device certificates of one tenant. Raises `FleetCaUnusable` if key and root differ."""

    def __init__(self, provider: KeyProvider, tenant_id: str, root: x509.Certificate) -> None:
        self._tenant_id = tenant_id
        self._root = root
        key = ca_key_id(tenant_id)
        if provider.describe(key).purpose is not Purpose.fleet_ca:
            raise WrongKeyUse(f"the key {key} is not for {Purpose.fleet_ca}")
        self._signer = ProviderECKey(provider, key)
        if root.public_key() != self._signer.public_key():
            raise FleetCaUnusable("the fleet CA's key is not the one of its root")

    def issue(
        self,
        proven: ProvenKey,
        device_id: str,
        *,
        now: datetime,
        lifetime: timedelta = MAX_LEAF_LIFETIME,
    ) -> Issued:
        """Sign a leaf for a key whose possession was proven. Never outlives the root."""
        check_root(self._root, now=now)
        name = DeviceName(self._tenant_id, device_id)
        not_before = now - BACKDATE
        latest = min(not_before + min(lifetime, MAX_LEAF_LIFETIME), self._root.not_valid_after_utc)
        issuer = self._root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            _builder(not_before=not_before, not_after=latest)
            .subject_name(
                x509.Name([])
            )  # the name is in the SAN, hence critical (RFC 5280, 4.2.1.6)
            .issuer_name(self._root.subject)
            .public_key(proven.key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name.uri)]),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(proven.key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer),
                critical=False,
            )
        )
        return _issued(builder.sign(self._signer, hashes.SHA256()))


def _builder(*, not_before: datetime, not_after: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before.replace(microsecond=0))
        .not_valid_after(not_after.replace(microsecond=0))
    )


def _issued(certificate: x509.Certificate) -> Issued:
    return Issued(
        serial=serial_text(certificate),
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def serial_text(certificate: x509.Certificate) -> str:
    """Return the serial number as 40 lower-case hex digits."""
    return f"{certificate.serial_number:040x}"
