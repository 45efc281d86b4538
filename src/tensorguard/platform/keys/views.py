"""What the API says about keys, and what it takes. Bytes are base64."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

from tensorguard.crypto import canonical
from tensorguard.crypto.hybrid import MAX_PUBLIC_KEY_FILE
from tensorguard.keys.provider import (
    MAX_WRAPPED,
    Algorithm,
    KeyInfo,
    KeyState,
    PublicKey,
    Purpose,
)
from tensorguard.platform.keys.policy import LONGEST, SHORTEST, Policy
from tensorguard.platform.keys.service import Ring

MAX_MESSAGE: Final = 256 * 1024  # bytes to sign at a time
MAX_SIGNATURE: Final = 4096  # bytes; a hybrid one has 3,373
Span = Annotated[int, Field(ge=int(SHORTEST.total_seconds()), le=int(LONGEST.total_seconds()))]
RingName = Annotated[str, Field(min_length=1, max_length=40)]
VersionNumber = Annotated[int, Field(ge=1, lt=2**31)]
Bytes = Annotated[Base64Bytes, Field(max_length=MAX_MESSAGE)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PolicyBody(_Body):
    """Seconds; null is never."""

    period: Span | None = None
    overlap: Span | None = None

    def policy(self) -> Policy:
        """Return the policy."""
        return Policy(_span(self.period), _span(self.overlap))


class NewKeyBody(PolicyBody):
    """A key to be made; by default with the usual algorithm of its purpose."""

    name: RingName
    purpose: Purpose
    algorithm: Algorithm | None = None


class DestructionBody(_Body):
    """When a retired version is destroyed. AWS KMS wants 7 to 30 days."""

    delay_seconds: Annotated[int, Field(ge=0, le=365 * 86_400)] = 7 * 86_400


class MessageBody(_Body):
    """What is to be signed."""

    message: Bytes


class SignatureBody(MessageBody):
    """A message and the signature that a version is said to have made."""

    signature: Annotated[Base64Bytes, Field(max_length=MAX_SIGNATURE)]
    version: VersionNumber


class WrappedBody(_Body):
    """A data key that was wrapped."""

    wrapped: Annotated[Base64Bytes, Field(max_length=MAX_WRAPPED)]


class VersionView(BaseModel):
    """One version of a key."""

    version: int
    state: KeyState
    created: datetime
    destroy_at: datetime | None

    @classmethod
    def of(cls, info: KeyInfo) -> VersionView:
        """Render a version."""
        return cls(
            version=info.version,
            state=info.state,
            created=info.created,
            destroy_at=info.destroy_at,
        )


class KeyView(BaseModel):
    """A key without its secrets. `key_id` is its name in the custody."""

    name: str
    key_id: str
    purpose: Purpose
    algorithm: Algorithm
    managed: bool
    version: int
    state: KeyState
    disabled: bool
    period: int | None
    overlap: int | None
    created: datetime
    versions: list[VersionView]

    @classmethod
    def of(cls, ring: Ring) -> KeyView:
        """Render a ring."""
        return cls(
            name=ring.row.name,
            key_id=ring.row.key_id,
            purpose=Purpose(ring.row.purpose),
            algorithm=Algorithm(ring.row.algorithm),
            managed=ring.row.managed,
            version=ring.current.version,
            state=ring.current.state,
            disabled=ring.current.disabled,
            period=ring.row.period,
            overlap=ring.row.overlap,
            created=ring.row.created,
            versions=[VersionView.of(info) for info in ring.versions],
        )


class PublicKeyView(BaseModel):
    """A public key: `jwk` for Ed25519 and P-256, `trust` (a *.pub.json) for hybrid keys."""

    version: int
    state: KeyState
    kid: str
    algorithm: Algorithm
    jwk: dict[str, str] | None
    trust: dict[str, Any] | None

    @classmethod
    def of(cls, info: KeyInfo, public: PublicKey) -> PublicKeyView:
        """Render a public key."""
        hybrid = public.algorithm is Algorithm.hybrid
        return cls(
            version=info.version,
            state=info.state,
            kid=public.kid,
            algorithm=public.algorithm,
            jwk=None if hybrid else public.jwk(),
            trust=trust_document(public) if hybrid else None,
        )


class PublicKeysView(BaseModel):
    """Every version that is not destroyed, newest first; `keys` alone is a JWK set."""

    keys: list[dict[str, str]]
    versions: list[PublicKeyView]


class SignatureView(BaseModel):
    """A signature and what made it. ES256 is r ‖ s; hybrid is Ed25519 ‖ ML-DSA-65."""

    kid: str
    version: int
    algorithm: Algorithm
    signature: str


class VerifiedView(BaseModel):
    """The version whose signature holds."""

    version: int


class DataKeyView(BaseModel):
    """A data key: use `plaintext` now, store `wrapped`."""

    plaintext: str
    wrapped: str


class PlaintextView(BaseModel):
    """An opened data key."""

    plaintext: str


def trust_document(public: PublicKey) -> dict[str, Any]:
    """Return the JSON value of a hybrid key's trust-store file."""
    encoded = public.hybrid().to_json(name=public.kid)
    document: dict[str, Any] = canonical.decode(encoded, limit=MAX_PUBLIC_KEY_FILE)
    return document


def _span(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
