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
from tensorguard.wire.jws import MAX_KEYS, KeySet, TokenRefused, UnknownSigner


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


def test_rotating_the_key_ends_no_token_and_retiring_a_version_ends_its_own(sqlite_platform, state):
    first = issued(state)
    state.keys.stage(signing_key(state.keys))
    state.keys.rotate(signing_key(state.keys))
    second = issued(state)
    published = sqlite_platform.client.get("/.well-known/jwks.json").json()["keys"]
    assert [key["kid"] for key in published] == ["token-signing.2", "token-signing.1"]
    for token in (first, second):
        assert verify_access_token(state, token).device_id == "device-1"
    state.keys.retire(signing_key(state.keys), 1)
    assert [key["kid"] for key in jwks(state.keys)["keys"]] == ["token-signing.2"]
    with pytest.raises(UnknownSigner):
        verify_access_token(state, first)
    assert verify_access_token(state, second).device_id == "device-1"


def test_a_pending_version_is_published_and_believed_only_when_it_signs(state):
    key = signing_key(state.keys)
    state.keys.stage(key)
    assert {row["kid"] for row in jwks(state.keys)["keys"]} == {
        "token-signing.1",
        "token-signing.2",
    }
    state.keys.rotate(key)
    assert verify_access_token(state, issued(state)).device_id == "device-1"


def test_more_versions_than_a_gateway_reads_are_published_from_the_newest(state):
    key = signing_key(state.keys)
    for _ in range(MAX_KEYS + 2):
        state.keys.rotate(key)
    published = jwks(state.keys)
    assert len(published["keys"]) == MAX_KEYS
    assert KeySet.from_json(json.dumps(published).encode()).key(f"token-signing.{MAX_KEYS + 3}")
