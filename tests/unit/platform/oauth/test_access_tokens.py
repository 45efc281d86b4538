"""Access tokens: one key, one type, one audience, and the scopes of a device."""

import base64
import json

import pytest

from support.devices import bearer
from tensorguard.keys.signers import sign_jwt
from tensorguard.platform.oauth.access_tokens import (
    issue_access_token,
    jwks,
    signing_key,
    verify_access_token,
)
from tensorguard.platform.principal import DEVICE_SCOPES, PrincipalKind, Scope
from tensorguard.wire.jws import TokenRefused


@pytest.fixture
def state(sqlite_platform):
    return sqlite_platform.state


def issued(state, scopes=DEVICE_SCOPES):
    return issue_access_token(
        state, device_id="device-1", tenant_id="tenant-1", scopes=scopes, now=state.now()
    ).value


def test_a_token_speaks_for_its_device(state):
    principal = verify_access_token(state, issued(state))
    assert (principal.id, principal.device_id) == ("device-1", "device-1")
    assert (principal.kind, principal.tenant_id) == (PrincipalKind.device, "tenant-1")
    assert principal.scopes == DEVICE_SCOPES


def forged(state, *, kind="at+jwt", **changes):
    now = int(state.now().timestamp())
    claims = {
        "iss": "urn:tensorguard:platform",
        "sub": "device-1",
        "aud": "tensorguard-platform",
        "tenant": "tenant-1",
        "kind": "device",
        "scope": "telemetry:write",
        "iat": now,
        "exp": now + 600,
        "jti": "1",
        **changes,
    }
    return sign_jwt(state.keys, signing_key(state.keys), claims, kind=kind)


def test_scopes_that_no_device_has_are_dropped(state):
    token = forged(state, scope="telemetry:write users:write nonsense")
    assert verify_access_token(state, token).scopes == {Scope.telemetry_write}


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "JWT"},
        {"kind": "tg-grant+jwt"},
        {"aud": "tensorguard-serving"},
        {"iss": "https://other.example"},
        {"exp": 2_000_000_000},
        {"iat": 1_999_999_000},
        {"exp": 1},
        {"sub": ""},
        {"sub": None},
        {"tenant": 7},
    ],
    ids=str,
)
def test_other_tokens_of_the_same_key_are_refused(state, changes):
    with pytest.raises(TokenRefused):
        verify_access_token(state, forged(state, **changes))


def test_an_edited_token_is_refused_over_http(sqlite_platform, state):
    head, body, signature = issued(state).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["tenant"] = "tenant-2"
    other = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    refused = sqlite_platform.client.get(
        "/api/v1/packs", headers=bearer(f"{head}.{other}.{signature}")
    )
    assert (refused.status_code, refused.json()["code"]) == (401, "token_refused")


def test_the_key_set_holds_public_members_only(state):
    (key,) = jwks(state.keys)["keys"]
    assert key.keys() == {"alg", "crv", "kid", "kty", "use", "x"}
