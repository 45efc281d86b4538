"""A CSR contributes one thing, a public key whose owner signed it; whatever else it asks is ignored.

Names and extensions of a request are the requester's wishes: the CA decides them (RFC 2986 section
3 leaves that to it). So the parser returns the key and nothing more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tensorguard.errors import MalformedInput, TooLarge, VerificationError

MAX_CSR: Final = 8192  # bytes of PEM; a P-256 request with a few names has under 1,000
MAX_SPKI: Final = 256  # bytes of DER; a P-256 key has 91, an Ed25519 key 44
BEGIN: Final = "-----BEGIN CERTIFICATE REQUEST-----"
END: Final = "-----END CERTIFICATE REQUEST-----"
DIGESTS: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

DeviceKey = ec.EllipticCurvePublicKey | Ed25519PublicKey


class CsrMalformed(MalformedInput):
    code = "csr_malformed"
    remedy = "Send one PEM certificate request, as `openssl req -new` writes it."


class CsrRefused(VerificationError):
    code = "csr_refused"
    remedy = "Make a P-256 or Ed25519 key and sign the request with it, using SHA-256 or better."


@dataclass(frozen=True, slots=True)
class ProvenKey:
    """A device's public key, whose private half signed the request it came in."""

    key: DeviceKey
    spki: bytes

    @property
    def sha256(self) -> str:
        """Lower-case hex SHA-256 of the SubjectPublicKeyInfo."""
        return hashlib.sha256(self.spki).hexdigest()


def spki(key: DeviceKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo of `key`."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def device_key(key: object) -> DeviceKey:
    """Return `key` if devices may have its kind. Raises `CsrRefused`."""
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise CsrRefused("a device key is P-256 or Ed25519")


def load_spki(der: bytes) -> DeviceKey:
    """Return the device key that `spki` encoded. Raises `CsrRefused` or `CsrMalformed`."""
    if len(der) > MAX_SPKI:
        raise CsrMalformed("the public key is too long")
    try:
        return device_key(serialization.load_der_public_key(der))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CsrMalformed("this is not a public key") from error


def parse(pem: str) -> ProvenKey:
    """Return the public key of a request that its owner signed.

    Raises `TooLarge`, `CsrMalformed`, or `CsrRefused` for a key of another kind, a weak digest or
    a signature that does not hold.
    """
    # (1) bounded, and exactly one PEM block, before any ASN.1 is read
    if len(pem) > MAX_CSR:
        raise TooLarge(f"a certificate request has at most {MAX_CSR} bytes")
    text = pem.strip()
    if not (text.isascii() and text.startswith(BEGIN) and text.endswith(END)):
        raise CsrMalformed("this is not one PEM certificate request")
    if text.count("-----") != 4:  # noqa: PLR2004 - two dashes lines, each with two runs
        raise CsrMalformed("the text holds more than one PEM block")
    try:
        request = x509.load_pem_x509_csr(text.encode())
        # (2) a key that devices may have
        key = device_key(request.public_key())
        # (3) proof of possession: the key signed this request
        digest = request.signature_hash_algorithm
        if digest is not None and not isinstance(digest, DIGESTS):
            raise CsrRefused(f"the request is signed over {digest.name}")
        if not request.is_signature_valid:
            raise CsrRefused("the request is not signed by its key")
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CsrMalformed("the certificate request cannot be read") from error
    return ProvenKey(key, spki(key))
