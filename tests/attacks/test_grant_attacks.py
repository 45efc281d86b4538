"""Serving grants: for the tenant's active packs, by the platform's key, for ten minutes, and no more."""

import base64
import json

import jwt
import pytest

from support.csrs import ed25519, p256
from support.devices import Fleet, access_token, ask, assertion, bearer, events
from support.packs import pack_bytes, trust_folder
from support.platform import running
from tensorguard.errors import MalformedInput
from tensorguard.keys.provider import Algorithm, Purpose, key_id
from tensorguard.keys.signers import sign_jwt
from tensorguard.platform.principal import Role
from tensorguard.wire.grants import AUDIENCE, TYPE, verify_grant
from tensorguard.wire.jws import KeySet, TokenRefused, UnknownSigner

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS = "urn:ietf:params:oauth:token-type:access_token"


@pytest.fixture
def serving(platform_settings, clock, tmp_path):
    """A platform that trusts a signer, with two packs registered in acme."""
    with running(platform_settings, clock, trust_store=trust_folder(tmp_path / "t")) as platform:
        headers = platform.caller(Role.engineer)
        for version in ("1.0", "1.1"):
            assert upload(platform, headers, pack_bytes(version)).status_code == 201
        yield platform


def upload(platform, headers, data):
    return platform.client.post(
        "/api/v1/packs",
        content=data,
        headers={**headers, "content-type": "application/octet-stream"},
    )


def pack_ids(platform, headers):
    items = platform.client.get("/api/v1/packs", headers=headers).json()["items"]
    return {item["pack_id"] for item in items}


def key_set(platform):
    return KeySet.from_json(platform.client.get("/.well-known/jwks.json").content)


def device_grant(platform, device, **more):
    return ask(platform, assertion(platform, device), resource=AUDIENCE, **more)


def exchange(platform, headers, **changes):
    form = {
        "grant_type": EXCHANGE,
        "subject_token": headers["Authorization"].removeprefix("Bearer "),
        "subject_token_type": ACCESS,
        "audience": AUDIENCE,
        **changes,
    }
    return platform.client.post("/oauth/token", data=form)


def test_a_device_gets_a_grant_for_its_tenants_packs(serving):
    device = Fleet(serving).enrol()
    response = device_grant(serving, device)
    assert response.status_code == 200, response.text
    grant = verify_grant(response.json()["access_token"], key_set(serving), serving.clock())
    assert (grant.subject, grant.kind, grant.tenant) == (
        device.id,
        "device",
        device.answer["tenant"],
    )
    assert grant.packs == pack_ids(serving, serving.caller(Role.viewer))
    assert (grant.expires - serving.clock()).total_seconds() == 600
    assert ("token.issued", f"access-token:{grant.token_id}") in events(serving)


def test_a_person_exchanges_a_session_for_a_grant(serving):
    headers = serving.caller(Role.engineer)
    response = exchange(serving, headers)
    assert response.status_code == 200, response.text
    assert response.json()["issued_token_type"] == ACCESS
    grant = verify_grant(response.json()["access_token"], key_set(serving), serving.clock())
    assert grant.kind == "user"
    assert len(grant.packs) == 2


def test_an_api_token_is_exchanged_only_with_the_scope(serving):
    engineer = serving.caller(Role.engineer)
    for scopes, status in ((["serving:infer"], 200), (["packs:read"], 400)):
        made = serving.client.post(
            "/api/v1/tokens",
            json={"name": f"t{status}", "scopes": scopes, "expires_in": 3600},
            headers=engineer,
        )
        assert made.status_code == 201, made.text
        response = exchange(serving, bearer(made.json()["token"]))
        assert response.status_code == status, response.text


@pytest.mark.parametrize("role", [Role.viewer, Role.operator, Role.security])
def test_a_role_without_serving_infer_gets_no_grant(serving, role):
    response = exchange(serving, serving.caller(role))
    assert response.status_code == 400
    assert response.json()["error"] == "invalid_scope"


@pytest.mark.parametrize(
    "changes",
    [
        {"subject_token": "tgs_unknown"},
        {"subject_token": "garbage"},
        {"subject_token": ""},
        {"subject_token": "\0"},
        {"subject_token": "x" * 9000},
        {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"resource": "https://elsewhere.example"},
    ],
    ids=str,
)
def test_a_bad_exchange_is_an_invalid_request(serving, changes):
    response = exchange(serving, serving.caller(Role.engineer), **changes)
    assert response.status_code == 400
    assert response.json()["error"] == "invalid_request"


def test_an_unknown_audience_is_an_invalid_target(serving):
    response = exchange(serving, serving.caller(Role.engineer), audience="tensorguard-platform")
    assert response.json()["error"] == "invalid_target"


def test_a_devices_access_token_is_not_exchanged(serving):
    device = Fleet(serving).enrol()
    response = exchange(serving, bearer(access_token(serving, device)))
    assert response.json()["error"] == "invalid_request"


def test_a_grant_is_no_access_token_and_an_access_token_is_no_grant(serving):
    device = Fleet(serving).enrol()
    grant = device_grant(serving, device).json()["access_token"]
    assert serving.client.get("/api/v1/packs", headers=bearer(grant)).status_code == 401
    with pytest.raises(TokenRefused, match="another kind"):
        verify_grant(access_token(serving, device), key_set(serving), serving.clock())


def test_a_retired_pack_is_in_no_new_grant(serving):
    device = Fleet(serving).enrol()
    engineer = serving.caller(Role.engineer)
    first, second = sorted(pack_ids(serving, engineer))
    serving.client.delete(f"/api/v1/packs/{first}", headers=engineer)
    token = device_grant(serving, device).json()["access_token"]
    assert verify_grant(token, key_set(serving), serving.clock()).packs == {second}
    serving.client.delete(f"/api/v1/packs/{second}", headers=engineer)
    assert device_grant(serving, device).json()["error"] == "invalid_target"


def test_another_tenants_packs_are_in_no_grant(serving):
    device = Fleet(serving, "rival").enrol()
    assert device_grant(serving, device).json()["error"] == "invalid_target"
    rival = serving.caller(Role.engineer, "rival")
    assert upload(serving, rival, pack_bytes("2.0")).status_code == 201
    token = device_grant(serving, device).json()["access_token"]
    grant = verify_grant(token, key_set(serving), serving.clock())
    assert grant.packs == pack_ids(serving, rival)
    assert len(grant.packs) == 1


def test_a_serving_grant_has_one_scope(serving):
    device = Fleet(serving).enrol()
    assert device_grant(serving, device, scope="serving:infer").status_code == 200
    response = device_grant(serving, device, scope="serving:infer packs:read")
    assert response.json()["error"] == "invalid_scope"


# --- the verifier -------------------------------------------------------------------------------


def good_claims(now, **changes):
    claims = {
        "iss": "urn:tensorguard:platform",
        "sub": "device-1",
        "aud": AUDIENCE,
        "tenant": "tenant-1",
        "kind": "device",
        "scope": "serving:infer",
        "packs": ["a" * 64],
        "iat": int(now.timestamp()),
        "exp": int(now.timestamp()) + 600,
        "jti": "1",
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


@pytest.fixture
def key(sqlite_platform):
    keys = sqlite_platform.state.keys
    name = key_id("grants")
    keys.create(name, algorithm=Algorithm.ed25519, purpose=Purpose.token_signing)
    return name


@pytest.fixture
def sign(sqlite_platform, key):
    def signed(*, kind=TYPE, **changes):
        claims = good_claims(sqlite_platform.clock(), **changes)
        return sign_jwt(sqlite_platform.state.keys, key, claims, kind=kind)

    return signed


@pytest.fixture
def known(sqlite_platform, key):
    jwk = sqlite_platform.state.keys.public_key(key).jwk()
    return KeySet.from_json(json.dumps({"keys": [jwk]}).encode())


def test_a_good_grant_verifies(sign, known, clock):
    assert verify_grant(sign(), known, clock()).packs == {"a" * 64}


@pytest.mark.parametrize("missing", [
    "iss", "sub", "aud", "tenant", "kind", "scope", "packs", "iat", "exp", "jti"
])  # fmt: skip
def test_every_claim_is_required(sign, known, clock, missing):
    with pytest.raises(TokenRefused):
        verify_grant(sign(**{missing: None}), known, clock())


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "tensorguard-platform"},
        {"aud": [AUDIENCE, "x"]},
        {"scope": "packs:read"},
        {"scope": ""},
        {"packs": []},
        {"packs": ["../x"]},
        {"packs": [format(number, "064x") for number in range(65)]},
        {"kind": "admin"},
        {"tenant": ""},
        {"exp": 2**40},
        {"exp": "soon"},
        {"exp": 0},
        {"iat": 0},
        {"iat": 1893499300},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_bad_claims_are_refused(sign, known, clock, changes):
    with pytest.raises(TokenRefused):
        verify_grant(sign(**changes), known, clock())


def test_an_expired_grant_is_refused(sign, known, clock):
    token = sign()
    clock.advance(seconds=599)
    verify_grant(token, known, clock())
    clock.advance(seconds=1)
    with pytest.raises(TokenRefused, match="expired"):
        verify_grant(token, known, clock())


def test_another_type_is_refused(sign, known, clock):
    with pytest.raises(TokenRefused, match="another kind"):
        verify_grant(sign(kind="JWT"), known, clock())


def test_an_unknown_key_is_refused_and_said_so(known, clock):
    token = jwt.encode(
        good_claims(clock()), ed25519(), "EdDSA", headers={"typ": TYPE, "kid": "other.1"}
    )
    with pytest.raises(UnknownSigner):
        verify_grant(token, known, clock())


@pytest.mark.parametrize("make", [ed25519, p256])
def test_another_key_under_a_known_id_is_refused(known, key, clock, make):
    signer = make()
    algorithm = "ES256" if hasattr(signer, "curve") else "EdDSA"
    token = jwt.encode(
        good_claims(clock()), signer, algorithm, headers={"typ": TYPE, "kid": f"{key}.1"}
    )
    with pytest.raises(TokenRefused):
        verify_grant(token, known, clock())


def test_alg_none_and_hs256_are_refused(sqlite_platform, known, key, clock):
    public = sqlite_platform.state.keys.public_key(key)
    headers = {"typ": TYPE, "kid": public.kid}
    unsigned = jwt.encode(good_claims(clock()), None, "none", headers=headers)
    secret = base64.urlsafe_b64encode(public.value)
    keyed = jwt.encode(good_claims(clock()), secret, "HS256", headers=headers)
    for token in (unsigned, keyed):
        with pytest.raises(TokenRefused):
            verify_grant(token, known, clock())


@pytest.mark.parametrize("text", ["", "..", "a.b.c", "é.é.é", "x" * 9000, "a.b", "a.b.c.d"])
def test_what_is_no_token_is_refused(known, clock, text):
    with pytest.raises(TokenRefused):
        verify_grant(text, known, clock())


@pytest.mark.parametrize("data", [
    b"", b"{}", b'{"keys":[]}', b"[" * 50_000, b'{"keys":[{"kty":"RSA","kid":"1"}]}',
    b'{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"1","x":"AA"}]}', b" " * 70_000,
    b'{"keys":[{"kty":"EC","crv":"P-256","kid":"1","x":"AA","y":"AA"}]}',
])  # fmt: skip
def test_a_bad_key_set_is_refused(data):
    with pytest.raises(MalformedInput):
        KeySet.from_json(data)
