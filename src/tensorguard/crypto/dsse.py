"""DSSE envelopes: what is signed is the payload together with its type, and both halves must hold.

Format: Dead Simple Signing Envelope v1 (secure-systems-lab/dsse), as canonical JSON. The two entries
of `signatures` carry the signer's key id with `:ed25519` and `:ml-dsa-65`, in that order.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from tensorguard.crypto import canonical
from tensorguard.crypto.hybrid import (
    ED25519_SIGNATURE,
    ML_DSA_65_SIGNATURE,
    HybridSignature,
    HybridSigner,
    unbase64,
)
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import MalformedInput, VerificationError

HALVES = ("ed25519", "ml-dsa-65")
KEY_ID_LENGTH = 64  # hex digits of SHA-256


@dataclass(frozen=True, slots=True)
class Opened:
    """A payload whose envelope verified, and who signed it."""

    payload: bytes
    signer_name: str
    key_id: str


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed (DSSE v1, PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, *, payload_type: str, signer: HybridSigner) -> bytes:
    """Return the canonical envelope over `payload`."""
    key_id = signer.public_key.key_id
    signature = signer.sign(pre_authentication_encoding(payload_type, payload))
    return canonical.encode(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [
                {"keyid": f"{key_id}:{half}", "sig": base64.b64encode(value).decode()}
                for half, value in zip(
                    HALVES, (signature.ed25519, signature.ml_dsa_65), strict=True
                )
            ],
        }
    )


def _members(value: object, names: set[str]) -> dict[str, object]:
    if not isinstance(value, dict) or value.keys() != names:
        raise MalformedInput(f"an envelope object has exactly the members {sorted(names)}")
    return value


def open_envelope(envelope: bytes, *, payload_type: str, trust: TrustStore, limit: int) -> Opened:
    """Return the verified payload of `envelope`, at most `limit` bytes.

    Raises `MalformedInput` (not an envelope), `UntrustedSigner` or `SignatureInvalid`.
    """
    # (1) the envelope is bounded, canonical JSON with exactly the members of the format
    value = _members(
        canonical.decode(envelope, limit=2 * limit + 16_384),
        {"payload", "payloadType", "signatures"},
    )
    # (2) it says that it holds the type that the caller expects
    if value["payloadType"] != payload_type:
        raise VerificationError(f"the envelope does not hold {payload_type}")
    # (3) both halves are there, by one and the same signer
    entries = value["signatures"]
    if not isinstance(entries, list) or len(entries) != len(HALVES):
        raise MalformedInput("an envelope carries exactly two signatures")
    first, second = (_members(entry, {"keyid", "sig"}) for entry in entries)
    key_id = str(first["keyid"])[:KEY_ID_LENGTH]
    if [first["keyid"], second["keyid"]] != [f"{key_id}:{half}" for half in HALVES]:
        raise MalformedInput("the two signatures do not name one signer and both algorithms")
    signature = HybridSignature(
        unbase64(first["sig"], size=ED25519_SIGNATURE),
        unbase64(second["sig"], size=ML_DSA_65_SIGNATURE),
    )
    # (4) the signer is trusted, and (5) both signatures hold over type and payload
    signer = trust.signer(key_id)
    payload = unbase64(value["payload"], limit=limit)
    signer.public_key.verify(pre_authentication_encoding(payload_type, payload), signature)
    return Opened(payload, signer.name, key_id)
