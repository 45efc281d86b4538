"""A device certificate is believed only under its tenant's root: `verify` returns the name or raises.

The chain has exactly two certificates, so the path validation of RFC 5280 section 6 comes down to the
numbered steps here. (The web profile of `cryptography.x509.verification` refuses Ed25519 leaves.)
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from tensorguard.errors import MalformedInput, TooLarge
from tensorguard.identity.csr import CsrRefused, device_key
from tensorguard.identity.profile import CertificateRefused, DeviceName, key_usage

MAX_CERTIFICATE: Final = 8192  # bytes of PEM; ours have about 1,000

KNOWN: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)


class CertificateMalformed(MalformedInput):
    code = "certificate_malformed"
    remedy = "Send one PEM certificate."


def load(pem: str) -> x509.Certificate:
    """Read one PEM certificate, bounded. Raises `TooLarge` or `CertificateMalformed`."""
    if len(pem) > MAX_CERTIFICATE:
        raise TooLarge(f"a certificate has at most {MAX_CERTIFICATE} bytes")
    if pem.count("-----BEGIN ") != 1:
        raise CertificateMalformed("this is not one PEM certificate")
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateMalformed("the certificate cannot be read") from error


def check_root(root: x509.Certificate, *, now: datetime) -> x509.Certificate:
    """Return `root` if it is a fleet root that is valid at `now`. Raises `CertificateRefused`."""
    try:
        root.verify_directly_issued_by(root)
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = root.extensions.get_extension_for_class(x509.KeyUsage).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise CertificateRefused("the root is not a self-signed CA") from error
    if not constraints.ca or constraints.path_length != 0 or usage != key_usage(ca=True):
        raise CertificateRefused("the root is not a CA with path length 0")
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateRefused("the root's key is not a P-256 key")
    _in_time(root, now)
    return root


def verify(leaf: x509.Certificate, root: x509.Certificate, *, now: datetime) -> DeviceName:
    """Return the device that `leaf` names, if `root` stands for it at `now`.

    Raises `CertificateRefused`. Revocation is the caller's question: it has the database.
    """
    # (1) the root is one, and valid now
    check_root(root, now=now)
    # (2) the root issued and signed the leaf
    try:
        leaf.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CertificateRefused("the certificate was not issued by this fleet's CA") from error
    # (3) it is valid now
    _in_time(leaf, now)
    # (4) it has exactly the leaf's extensions, each of which we check
    try:
        extensions = leaf.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        identifier = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise CertificateRefused("the certificate is not a device certificate") from error
    if {item.oid for item in extensions} != KNOWN:
        raise CertificateRefused("the certificate has other extensions than a device certificate")
    # (5) it can neither sign certificates nor be a server
    if constraints.ca or usage != key_usage(ca=False):
        raise CertificateRefused("the certificate is not for signing alone")
    if list(extended) != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise CertificateRefused("the certificate is not for client authentication alone")
    # (6) the issuer's key identifier matches
    if issuer.key_identifier != identifier.digest:
        raise CertificateRefused("the certificate names another issuer key")
    # (7) its key is of a kind that devices have
    try:
        device_key(leaf.public_key())
    except (CsrRefused, ValueError, UnsupportedAlgorithm) as error:
        raise CertificateRefused("the certificate's key is not P-256 or Ed25519") from error
    # (8) it names one device
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1 or len(list(names)) != 1:
        raise CertificateRefused("the certificate does not name one device")
    return DeviceName.from_uri(uris[0])


def _in_time(certificate: x509.Certificate, now: datetime) -> None:
    if now < certificate.not_valid_before_utc:
        raise CertificateRefused("the certificate is not valid yet")
    if now >= certificate.not_valid_after_utc:
        raise CertificateRefused("the certificate has expired")
