"""Rings over HTTP: made, rotated, retired, disabled, destroyed; by security alone, recorded always."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest

from support.platform import Platform
from tensorguard.crypto.hybrid import HybridPublicKey
from tensorguard.keys.provider import Algorithm, PublicKey, key_id
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.principal import Role

KEYS = "/api/v1/keys"


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@pytest.fixture
def security(sqlite_platform: Platform) -> dict[str, str]:
    return sqlite_platform.caller(Role.security)


def made(
    platform: Platform, headers: dict[str, str], name: str = "release", **more: Any
) -> dict[str, Any]:
    body = {"name": name, "purpose": "pack-signing", "algorithm": "Ed25519", **more}
    response = platform.client.post(KEYS, json=body, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()


def post(
    platform: Platform, headers: dict[str, str], path: str, body: object = None
) -> httpx.Response:
    return platform.client.post(f"{KEYS}/{path}", json=body, headers=headers)


def states(platform: Platform, headers: dict[str, str], name: str = "release") -> dict[int, str]:
    shown = platform.client.get(f"{KEYS}/{name}", headers=headers).json()
    return {row["version"]: row["state"] for row in shown["versions"]}


def actions(platform: Platform, tenant: str) -> list[tuple[str, str]]:
    with platform.session() as session:
        rows = AuditRepository(session, tenant_id=platform.tenant(tenant)).page(after=0, limit=500)
        return [(row.action, row.actor) for row in rows]


def test_the_life_of_a_key(platform: Platform) -> None:
    headers = platform.caller(Role.security)
    assert made(platform, headers)["state"] == "active"
    assert post(platform, headers, "release/stage").status_code == 200
    assert states(platform, headers) == {1: "active", 2: "pending"}
    assert post(platform, headers, "release/rotate").json()["version"] == 2
    assert states(platform, headers) == {1: "decrypt-only", 2: "active"}
    assert post(platform, headers, "release/versions/2/retire").json()["code"] == "key_transition"
    assert post(platform, headers, "release/versions/1/retire").status_code == 200
    destroy = "release/versions/1/destroy"
    assert post(platform, headers, destroy, {"delay_seconds": 3600}).status_code == 200
    assert post(platform, headers, "release/versions/1/cancel-destruction").status_code == 200
    assert post(platform, headers, destroy, {"delay_seconds": 3600}).status_code == 200
    platform.clock.advance(hours=2)
    headers = platform.caller(Role.security)
    listed = platform.client.get(KEYS, headers=headers).json()["items"]
    assert [row["name"] for row in listed] == ["release"]
    assert post(platform, headers, "release/disable").json()["disabled"] is True
    refused = post(platform, headers, "release/sign", {"message": b64(b"m")})
    assert (refused.status_code, refused.json()["code"]) == (409, "key_disabled")
    assert post(platform, headers, "release/enable").json()["disabled"] is False
    assert post(platform, headers, "release/sign", {"message": b64(b"m")}).status_code == 200
    recorded = [action for action, _ in actions(platform, "acme") if action.startswith("key.")]
    assert recorded == [
        "key.created",
        "key.staged",
        "key.rotated",
        "key.retired",
        "key.destruction_scheduled",
        "key.destruction_cancelled",
        "key.destruction_scheduled",
        "key.disabled",
        "key.enabled",
        "key.signed",
    ]


def test_signatures_verify_by_the_published_keys_over_rotations(
    sqlite_platform: Platform, security: dict[str, str]
) -> None:
    made(sqlite_platform, security)
    made(sqlite_platform, security, "both", algorithm="Ed25519+ML-DSA-65")
    signed = []
    for _ in range(3):
        for name in ("release", "both"):
            answer = post(sqlite_platform, security, f"{name}/sign", {"message": b64(b"a pack")})
            signed.append((name, answer.json()))
            post(sqlite_platform, security, f"{name}/rotate")
    post(sqlite_platform, security, "release/versions/1/retire")
    published = {
        name: sqlite_platform.client.get(f"{KEYS}/{name}/public-keys", headers=security).json()
        for name in ("release", "both")
    }
    assert [key["kid"].rpartition(".")[2] for key in published["release"]["keys"]] == list("4321")
    assert published["both"]["keys"] == []
    for name, answer in signed:
        row = next(v for v in published[name]["versions"] if v["kid"] == answer["kid"])
        if row["jwk"]:
            x = row["jwk"]["x"]
            value = base64.urlsafe_b64decode(x + "=" * (-len(x) % 4))
        else:
            _, trusted = HybridPublicKey.from_json(
                json.dumps(row["trust"], sort_keys=True, separators=(",", ":")).encode()
            )
            value = trusted.ed25519 + trusted.ml_dsa_65
        public = PublicKey(key_id("x"), row["version"], Algorithm(row["algorithm"]), value)
        public.verify(b"a pack", base64.b64decode(answer["signature"]))
        body = {
            "message": b64(b"a pack"),
            "signature": answer["signature"],
            "version": answer["version"],
        }
        assert post(sqlite_platform, security, f"{name}/verify", body).json() == {
            "version": answer["version"]
        }
        body["message"] = b64(b"another")
        refused = post(sqlite_platform, security, f"{name}/verify", body)
        assert (refused.status_code, refused.json()["code"]) == (422, "signature_invalid")


def test_data_keys_open_until_their_version_is_retired(
    sqlite_platform: Platform, security: dict[str, str]
) -> None:
    made(sqlite_platform, security, "rest", purpose="data-at-rest", algorithm=None)
    fresh = post(sqlite_platform, security, "rest/data-keys").json()
    post(sqlite_platform, security, "rest/rotate")
    opened = post(sqlite_platform, security, "rest/unwrap", {"wrapped": fresh["wrapped"]})
    assert opened.json() == {"plaintext": fresh["plaintext"]}
    post(sqlite_platform, security, "rest/versions/1/retire")
    refused = post(sqlite_platform, security, "rest/unwrap", {"wrapped": fresh["wrapped"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "key_retired")


@pytest.mark.invariant("TG-I08")
def test_a_tenant_has_its_own_keys_only(sqlite_platform: Platform) -> None:
    acme, rival = (sqlite_platform.caller(Role.security, name) for name in ("acme", "rival"))
    made(sqlite_platform, acme, "rest", purpose="data-at-rest", algorithm=None)
    fresh = post(sqlite_platform, acme, "rest/data-keys").json()
    assert sqlite_platform.client.get(KEYS, headers=rival).json()["items"] == []
    body = {"wrapped": fresh["wrapped"]}
    assert post(sqlite_platform, rival, "rest/unwrap", body).status_code == 404
    made(sqlite_platform, rival, "rest", purpose="data-at-rest", algorithm=None)
    refused = post(sqlite_platform, rival, "rest/unwrap", body)
    assert (refused.status_code, refused.json()["code"]) == (422, "wrong_context")


@pytest.mark.parametrize("role", [Role.viewer, Role.operator, Role.engineer, Role.admin])
@pytest.mark.invariant("TG-I20")
def test_security_alone_changes_and_uses_keys(sqlite_platform: Platform, role: Role) -> None:
    made(sqlite_platform, sqlite_platform.caller(Role.security))
    headers = sqlite_platform.caller(role)
    client = sqlite_platform.client
    body = {"name": "x", "purpose": "pack-signing"}
    assert client.post(KEYS, json=body, headers=headers).status_code == 403
    policy = client.put(f"{KEYS}/release/policy", json={}, headers=headers)
    assert policy.status_code == 403
    for path in ("rotate", "stage", "disable", "enable", "versions/1/retire", "data-keys"):
        assert post(sqlite_platform, headers, f"release/{path}").status_code == 403, path
    sign = post(sqlite_platform, headers, "release/sign", {"message": b64(b"m")})
    assert sign.status_code == 403
    secret = client.put("/api/v1/secrets/x", json={"value": "v"}, headers=headers)
    assert secret.status_code == 403
    assert states(sqlite_platform, sqlite_platform.caller(Role.security)) == {1: "active"}


def test_the_platforms_rings_belong_to_its_tenant_and_are_not_used_by_hand(
    sqlite_platform: Platform,
) -> None:
    headers = sqlite_platform.caller(Role.security, "platform")
    listed = sqlite_platform.client.get(KEYS, headers=headers).json()["items"]
    assert [row["name"] for row in listed] == ["audit-head", "data-at-rest", "token-signing"]
    assert all(row["managed"] for row in listed)
    for name, use, body in (
        ("token-signing", "sign", {"message": b64(b"m")}),
        ("audit-head", "sign", {"message": b64(b"m")}),
        ("data-at-rest", "data-keys", None),
    ):
        refused = post(sqlite_platform, headers, f"{name}/{use}", body)
        assert (refused.status_code, refused.json()["code"]) == (403, "key_managed")
    assert post(sqlite_platform, headers, "token-signing/rotate").json()["version"] == 2
    post(sqlite_platform, headers, "audit-head/rotate")
    post(sqlite_platform, headers, "audit-head/versions/1/retire")
    kept = post(sqlite_platform, headers, "audit-head/versions/1/destroy", {})
    assert (kept.status_code, kept.json()["code"]) == (409, "key_version_needed")
    assert (
        sqlite_platform.client.get(KEYS, headers=sqlite_platform.caller(Role.security)).json()[
            "items"
        ]
        == []
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "token-signing", "purpose": "pack-signing"}, 400),
        ({"name": "fleet-ca", "purpose": "pack-signing"}, 400),
        ({"name": "../x", "purpose": "pack-signing"}, 400),
        ({"name": "x" * 41, "purpose": "pack-signing"}, 422),
        ({"name": "x", "purpose": "fleet-ca"}, 400),
        ({"name": "x", "purpose": "audit-head"}, 400),
        ({"name": "x", "purpose": "pack-signing", "algorithm": "AES-256-GCM"}, 400),
        ({"name": "x", "purpose": "data-at-rest", "algorithm": "ES256"}, 400),
        ({"name": "x", "purpose": "pack-signing", "period": 5}, 422),
        ({"name": "x", "purpose": "pack-signing", "extra": 5}, 422),
    ],
    ids=str,
)
def test_keys_that_cannot_be_made(
    sqlite_platform: Platform, security: dict[str, str], body: dict[str, object], status: int
) -> None:
    refused = sqlite_platform.client.post(KEYS, json=body, headers=security)
    assert refused.status_code in {status, 400 if status == 422 else status}, refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert sqlite_platform.client.get(KEYS, headers=security).json()["items"] == []


def test_a_repeated_rotation_happens_once(
    sqlite_platform: Platform, security: dict[str, str]
) -> None:
    made(sqlite_platform, security)
    headers = {**security, "Idempotency-Key": "rotate-1"}
    first, again = (post(sqlite_platform, headers, "release/rotate") for _ in range(2))
    assert first.json() == again.json()
    assert states(sqlite_platform, security) == {1: "decrypt-only", 2: "active"}
    taken = sqlite_platform.client.post(
        KEYS, json={"name": "release", "purpose": "pack-signing"}, headers=security
    )
    assert (taken.status_code, taken.json()["code"]) == (409, "keyring_exists")


def test_unknown_keys_and_versions_are_404(
    sqlite_platform: Platform, security: dict[str, str]
) -> None:
    made(sqlite_platform, security)
    assert post(sqlite_platform, security, "nothing/rotate").status_code == 404
    assert post(sqlite_platform, security, "release/versions/9/retire").status_code == 404
    assert sqlite_platform.client.get(f"{KEYS}/nothing", headers=security).status_code == 404
