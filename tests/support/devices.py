"""Fleets, enrolled devices and their assertions, over the HTTP API of a `Platform`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

import jwt

from support.csrs import csr, p256
from support.platform import Platform
from tensorguard.platform.principal import Role
from tensorguard.wire.oauth import ASSERTION_TYPE, CLIENT_CREDENTIALS

BASE = "http://testserver"
TOKEN_URL = f"{BASE}/oauth/token"


@dataclass
class Enrolled:
    """A device as its owner knows it."""

    id: str
    key: Any
    answer: dict[str, str]


@dataclass
class Fleet:
    """A fleet of one tenant, with an operator who can enrol devices into it."""

    platform: Platform
    tenant: str = "acme"
    operator: dict[str, str] = field(init=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.operator = self.platform.caller(Role.operator, self.tenant)
        body = {"name": f"arms-{uuid.uuid4().hex[:8]}"}
        made = self.platform.client.post("/api/v1/fleets", json=body, headers=self.operator)
        assert made.status_code == 201, made.text
        self.id = made.json()["id"]

    def enrolment(self, **more: object) -> str:
        """Return a fresh enrolment token."""
        made = self.platform.client.post(
            "/api/v1/enrolments", json={"fleet_id": self.id, **more}, headers=self.operator
        )
        assert made.status_code == 201, made.text
        return made.json()["token"]

    def redeem(self, token: str, csr_pem: str, name: str = "arm-1") -> Any:
        """Redeem a token and return the response."""
        body = {"token": token, "csr_pem": csr_pem, "name": name}
        return self.platform.client.post("/api/v1/enrolments/redeem", json=body)

    def enrol(self, key: Any = None, name: str = "arm-1") -> Enrolled:
        """Return a new device."""
        key = key or p256()
        response = self.redeem(self.enrolment(), csr(key), name)
        assert response.status_code == 201, response.text
        return Enrolled(response.json()["device_id"], key, response.json())

    def revoke(self, device: Enrolled) -> Any:
        """Revoke a device and return the response."""
        return self.platform.client.post(
            f"/api/v1/devices/{device.id}/revocation",
            json={"reason": "stolen"},
            headers=self.operator,
        )


def claims(platform: Platform, device_id: str, **changes: Any) -> dict[str, Any]:
    """Return the claims of a good assertion, with changes; None takes a claim out."""
    now = int(platform.clock().timestamp())
    good = {
        "iss": device_id,
        "sub": device_id,
        "aud": TOKEN_URL,
        "iat": now,
        "exp": now + 30,
        "jti": uuid.uuid4().hex,
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def assertion(
    platform: Platform,
    device: Enrolled,
    *,
    key: Any = None,
    algorithm: str | None = None,
    headers: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """Return an assertion of a device, signed by its key unless told otherwise."""
    signer = key or device.key
    name = algorithm or ("ES256" if hasattr(signer, "curve") else "EdDSA")
    return jwt.encode(claims(platform, device.id, **changes), signer, name, headers=headers)


def ask(platform: Platform, signed: str, **more: str) -> Any:
    """Ask for a token with an assertion and return the response."""
    form = {
        "grant_type": CLIENT_CREDENTIALS,
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": signed,
        **more,
    }
    return platform.client.post("/oauth/token", data=form)


def access_token(platform: Platform, device: Enrolled) -> str:
    """Return a device's access token."""
    response = ask(platform, assertion(platform, device))
    assert response.status_code == 200, response.text
    return response.json()["access_token"]


def bearer(token: str) -> dict[str, str]:
    """Return the header of a bearer token."""
    return {"Authorization": f"Bearer {token}"}


def events(platform: Platform, tenant: str = "acme") -> list[tuple[str, str]]:
    """Return (action, subject) of the tenant's trail, in order."""
    from tensorguard.platform.audit.repository import AuditRepository

    tenant_id = platform.tenant(tenant)
    with platform.session() as session:
        rows = AuditRepository(session, tenant_id=tenant_id).page(after=0, limit=1000)
        return [(row.action, row.subject) for row in rows]
