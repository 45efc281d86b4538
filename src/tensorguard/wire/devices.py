"""Messages about fleets, enrolment, devices and certificates."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

MAX_CSR: Final = 8192  # characters of PEM
MAX_ENROLMENT_SECONDS: Final = 24 * 3600
MIN_ENROLMENT_SECONDS: Final = 60
DEFAULT_ENROLMENT_SECONDS: Final = 3600

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Id = Annotated[str, Field(pattern=r"^[0-9a-z-]{1,64}$")]
Pem = Annotated[str, Field(min_length=1, max_length=MAX_CSR)]


class Message(BaseModel):
    """Immutable; an unknown member is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True)


class NewFleet(Message):
    """A fleet to make."""

    name: Name


class FleetView(Message):
    """A fleet."""

    id: str
    name: str
    created: datetime


class NewEnrolment(Message):
    """A one-time enrolment token to make, for a fleet."""

    fleet_id: Id
    expires_in: Annotated[int, Field(ge=MIN_ENROLMENT_SECONDS, le=MAX_ENROLMENT_SECONDS)] = (
        DEFAULT_ENROLMENT_SECONDS
    )


class EnrolmentView(Message):
    """An enrolment token, shown this once: a repeated answer carries null in its place."""

    id: str
    fleet_id: str
    token: str | None
    expires: datetime


class Redemption(Message):
    """What a device sends to enrol."""

    token: Annotated[str, Field(min_length=1, max_length=128)]
    csr_pem: Pem
    name: Name


class Enrolled(Message):
    """What an enrolled device keeps."""

    device_id: Id
    tenant: Id
    fleet_id: Id
    certificate_pem: Pem
    ca_pem: Pem
    token_endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://\S+$")]


class DeviceView(Message):
    """A device. `key_sha256` is the digest of its SubjectPublicKeyInfo."""

    id: str
    fleet_id: str
    name: str
    created: datetime
    revoked: datetime | None
    revocation_reason: str | None
    key_sha256: str


class NewRevocation(Message):
    """Why a device is revoked."""

    reason: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""


class CertificateView(Message):
    """A certificate that the fleet CA issued."""

    serial: str
    device_id: str
    not_before: datetime
    not_after: datetime
    revoked: datetime | None
    pem: str


class FleetCaView(Message):
    """A tenant's root; certificates may chain to the ones that it replaced until they expire."""

    tenant: str
    pem: str
    sha256: str
    not_after: datetime
    replaced_pems: tuple[str, ...] = ()
