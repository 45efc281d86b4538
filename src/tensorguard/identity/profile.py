"""What our certificates say: a leaf names one device of one tenant, and its name is a SPIFFE id.

Each tenant has a CA of its own, hence a trust domain of its own: the root is `spiffe://<tenant>` and
a device `spiffe://<tenant>/device/<id>` (SPIFFE X.509-SVID, sections 2 to 4). Verifiers that know SPIFFE
can use the certificates as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cryptography import x509

from tensorguard.errors import VerificationError

ROOT_LIFETIME: Final = timedelta(days=3650)
MAX_LEAF_LIFETIME: Final = timedelta(
    days=47
)  # CA/Browser Forum ballot SC-081: what ACME has from 2029
BACKDATE: Final = timedelta(minutes=5)  # robots' clocks lag

_ID = r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?"  # a label of a trust domain; our ids are UUIDs
_DEVICE_URI = re.compile(rf"spiffe://({_ID})/device/({_ID})")


class CertificateRefused(VerificationError):
    code = "certificate_refused"
    remedy = "Enrol the device again; its certificate is not one that this fleet's CA stands for."


@dataclass(frozen=True, slots=True)
class DeviceName:
    """The device that a certificate names."""

    tenant_id: str
    device_id: str

    @property
    def uri(self) -> str:
        """The SPIFFE id."""
        return f"spiffe://{self.tenant_id}/device/{self.device_id}"

    @classmethod
    def from_uri(cls, uri: str) -> DeviceName:
        """Read a SPIFFE id of ours. Raises `CertificateRefused`."""
        match = _DEVICE_URI.fullmatch(uri)
        if match is None:
            raise CertificateRefused("the certificate does not name a device")
        return cls(match[1], match[2])


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return the only uses: a CA signs certificates and CRLs, a device signs."""
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
