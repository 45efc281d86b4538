"""The token endpoint believes one thing: a fresh assertion, for us, by the enrolled key, once."""

import base64
import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import serialization

from support.csrs import ed25519, p256
from support.devices import BASE, Fleet, access_token, ask, assertion, bearer, claims, events
from tensorguard.platform.db.tables.devices import UsedAssertion
from tensorguard.wire.jws import KeySet, read_header, verify


@pytest.fixture
def fleet(sqlite_platform):
    return Fleet(sqlite_platform)


@pytest.fixture
def device(fleet):
    return fleet.enrol()


def refused(response, *, error="invalid_client", status=401):
    assert response.status_code == status, response.text
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (body["error"], body["status"]) == (error, status)
    assert body["remedy"]
    assert "access_token" not in body
    return body


@pytest.mark.parametrize("make", [p256, ed25519])
def test_a_fresh_assertion_gets_a_token_that_works(platform, make):
    fleet = Fleet(platform)
    device = fleet.enrol(make())
    response = ask(platform, assertion(platform, device))
    assert response.status_code == 200
    body = response.json()
    assert body["token_type"] == "Bearer"
    assert body["expires_in"] == 600
    assert body["scope"] == "packs:read serving:infer telemetry:write"
    assert response.headers["cache-control"] == "no-store"
    packs = platform.client.get("/api/v1/packs", headers=bearer(body["access_token"]))
    assert packs.status_code == 200
    keys = KeySet.from_json(platform.client.get("/.well-known/jwks.json").content)
    token = body["access_token"]
    content = json.loads(verify(token, keys.key(read_header(token).kid), kinds={"at+jwt"}))
    now = int(platform.clock().timestamp())
    assert content == {
        "aud": "tensorguard-platform",
        "exp": now + 600,
        "iat": now,
        "iss": "urn:tensorguard:platform",
        "jti": content["jti"],
        "kind": "device",
        "scope": body["scope"],
        "sub": device.id,
        "tenant": device.answer["tenant"],
    }
    assert events(platform)[-1] == ("token.issued", f"access-token:{content['jti']}")


def test_an_assertion_used_twice_is_refused(platform):
    device = Fleet(platform).enrol()
    signed = assertion(platform, device)
    assert ask(platform, signed).status_code == 200
    body = refused(ask(platform, signed))
    assert "used before" in body["detail"]


@pytest.mark.invariant("TG-I12")
def test_an_assertion_sent_ten_times_at_once_gets_one_token(platform):
    device = Fleet(platform).enrol()
    signed = assertion(platform, device)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: ask(platform, signed), range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 9


def test_a_jti_signed_again_is_refused_while_the_first_could_be_valid(platform):
    device = Fleet(platform).enrol()
    assert ask(platform, assertion(platform, device, jti="nonce-0001")).status_code == 200
    refused(ask(platform, assertion(platform, device, jti="nonce-0001")))


def test_a_jti_belongs_to_its_device(platform):
    fleet = Fleet(platform)
    for _ in range(2):
        assert ask(platform, assertion(platform, fleet.enrol(), jti="nonce-0001")).is_success


def test_used_assertions_are_forgotten_after_they_expired(platform):
    device = Fleet(platform).enrol()
    for _ in range(5):
        access_token(platform, device)
        platform.clock.advance(seconds=61)
    with platform.session() as session:
        assert session.query(UsedAssertion).count() == 1


@dataclass(frozen=True)
class Later:
    """A time in seconds from now."""

    seconds: float


BAD_CLAIMS = {
    "another audience": {"aud": "https://elsewhere.example/oauth/token"},
    "the platform's audience name": {"aud": "tensorguard-platform"},
    "two audiences": {"aud": [f"{BASE}/oauth/token", "https://elsewhere.example"]},
    "no audience": {"aud": None},
    "expired": {"exp": Later(0)},
    "long expired": {"exp": Later(-10_000), "iat": Later(-10_020)},
    "too long a life": {"exp": Later(61)},
    "for ever": {"exp": 2**60},
    "negative": {"exp": -1},
    "fractions": {"exp": Later(10.5)},
    "no exp": {"exp": None},
    "not yet": {"nbf": Later(31)},
    "issued in the future": {"iat": Later(31)},
    "issued long ago": {"iat": Later(-301)},
    "no jti": {"jti": None},
    "short jti": {"jti": "1"},
    "long jti": {"jti": "1" * 129},
    "a number as jti": {"jti": 12345678},
    "another issuer": {"iss": "00000000-0000-4000-8000-000000000000"},
    "no subject": {"sub": None},
    "an odd subject": {"iss": "\0", "sub": "\0"},
    "an unknown subject": {"iss": "0" * 36, "sub": "0" * 36},
}


@pytest.mark.parametrize("kind", BAD_CLAIMS)
def test_bad_claims_are_refused(sqlite_platform, device, kind):
    now = int(sqlite_platform.clock().timestamp())
    before = events(sqlite_platform)
    changes = {
        name: now + value.seconds if isinstance(value, Later) else value
        for name, value in BAD_CLAIMS[kind].items()
    }
    refused(ask(sqlite_platform, assertion(sqlite_platform, device, **changes)))
    assert events(sqlite_platform) == before


def test_an_unknown_subject_is_refused_on_both_databases(platform):
    device = Fleet(platform).enrol()
    for subject in ("0" * 36, "\0", "é", "'", "x" * 64):
        refused(ask(platform, assertion(platform, device, iss=subject, sub=subject)))


@pytest.mark.parametrize("audience", [BASE, f"{BASE}/oauth/token", "urn:tensorguard:platform"])
def test_the_issuer_and_the_endpoint_are_audiences(sqlite_platform, device, audience):
    assert ask(sqlite_platform, assertion(sqlite_platform, device, aud=audience)).is_success
    assert ask(sqlite_platform, assertion(sqlite_platform, device, aud=[audience])).is_success


def segment(value):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.mark.parametrize("name", ["none", "None", "NONE", ""])
def test_alg_none_is_refused(sqlite_platform, device, name):
    body = segment(claims(sqlite_platform, device.id))
    refused(ask(sqlite_platform, f"{segment({'alg': name})}.{body}."))


@pytest.mark.parametrize("encoding", ["pem", "der", "raw"])
def test_hs256_with_the_public_key_as_secret_is_refused(sqlite_platform, device, encoding):
    public = device.key.public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, info),
        "der": public.public_bytes(serialization.Encoding.DER, info),
        "raw": public.public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        ),
    }[encoding]
    message = f"{segment({'alg': 'HS256'})}.{segment(claims(sqlite_platform, device.id))}"
    tag = hmac.digest(secret, message.encode(), hashlib.sha256)
    refused(ask(sqlite_platform, f"{message}.{segment(tag)}"))


def test_another_algorithm_than_the_keys_is_refused(sqlite_platform, device):
    refused(ask(sqlite_platform, assertion(sqlite_platform, device, key=ed25519())))


def test_another_devices_key_is_refused(sqlite_platform, fleet, device):
    other = fleet.enrol()
    refused(ask(sqlite_platform, assertion(sqlite_platform, device, key=other.key)))


@pytest.mark.parametrize(
    "header",
    [
        {"jku": "https://evil.example/jwks.json"},
        {"jwk": {"kty": "EC"}},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"crit": ["exp"]},
        {"b64": False, "crit": ["b64"]},
        {"zip": "DEF"},
        {"kid": "x" * 200},
        {"typ": "at+jwt"},
        {"typ": "tg-grant+jwt"},
    ],
    ids="+".join,
)
def test_headers_that_say_more_are_refused(sqlite_platform, device, header):
    refused(ask(sqlite_platform, assertion(sqlite_platform, device, headers=header)))


@pytest.mark.parametrize(
    "text", ["", ".", "..", "...", "a.b.c", "e30.e30.", "é.é.é", "A" * 10_000, "a" * 5000 + ".b.c"]
)
def test_what_is_no_jws_is_refused(sqlite_platform, device, text):
    refused(ask(sqlite_platform, text))


def test_every_edited_byte_is_refused(sqlite_platform, device):
    good = assertion(sqlite_platform, device)
    end = good.rindex(".") + 80  # the last characters of base64 may carry unused bits
    for position in range(0, end, 7):
        other = "A" if good[position] != "A" else "B"
        refused(ask(sqlite_platform, good[:position] + other + good[position + 1 :]))
    assert ask(sqlite_platform, good).status_code == 200


def test_an_expired_certificate_gets_no_token(platform):
    device = Fleet(platform).enrol()
    platform.clock.advance(days=46, hours=23)
    assert ask(platform, assertion(platform, device)).status_code == 200
    platform.clock.advance(hours=1)
    body = refused(ask(platform, assertion(platform, device)))
    assert "expired" in body["detail"]


def test_an_access_token_is_no_assertion(sqlite_platform, device):
    refused(ask(sqlite_platform, access_token(sqlite_platform, device)))


FORMS = {
    "json": ({"content": b"{}", "headers": {"content-type": "application/json"}}, 400),
    "no type": ({"content": b"grant_type=client_credentials"}, 400),
    "nothing": ({"data": {}}, 400),
    "twice": (
        {
            "content": b"grant_type=client_credentials&grant_type=client_credentials",
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
        400,
    ),
    "huge": ({"data": {"grant_type": "x" * 40_000}}, 400),
    "many": ({"data": {f"p{number}": "1" for number in range(40)}}, 400),
    "not utf-8": (
        {
            "content": b"grant_type=%ff%fe",
            "headers": {"content-type": "application/x-www-form-urlencoded"},
        },
        400,
    ),
}


@pytest.mark.parametrize("kind", FORMS)
def test_bad_forms_are_invalid_requests(sqlite_platform, kind):
    request, status = FORMS[kind]
    refused(
        sqlite_platform.client.post("/oauth/token", **request),
        error="invalid_request",
        status=status,
    )


@pytest.mark.parametrize("grant", ["password", "authorization_code", "refresh_token", "implicit"])
def test_other_grant_types_are_unsupported(sqlite_platform, grant):
    response = sqlite_platform.client.post("/oauth/token", data={"grant_type": grant})
    refused(response, error="unsupported_grant_type", status=400)


def test_a_client_without_an_assertion_is_refused(sqlite_platform, device):
    form = {"grant_type": "client_credentials", "client_id": device.id, "client_secret": "x"}
    refused(sqlite_platform.client.post("/oauth/token", data=form))


def test_a_client_id_that_is_not_the_subject_is_refused(sqlite_platform, fleet, device):
    other = fleet.enrol()
    refused(ask(sqlite_platform, assertion(sqlite_platform, device), client_id=other.id))


def test_a_device_narrows_its_scope_and_never_widens_it(sqlite_platform, device):
    narrow = ask(sqlite_platform, assertion(sqlite_platform, device), scope="telemetry:write")
    assert narrow.json()["scope"] == "telemetry:write"
    for scope in ("users:write", "telemetry:write keys:write", " ", "x" * 300):
        response = ask(sqlite_platform, assertion(sqlite_platform, device), scope=scope)
        refused(response, error="invalid_scope", status=400)
    packs = sqlite_platform.client.get(
        "/api/v1/packs", headers=bearer(narrow.json()["access_token"])
    )
    assert packs.status_code == 403


def test_an_unknown_resource_is_an_invalid_target(sqlite_platform, device):
    response = ask(
        sqlite_platform, assertion(sqlite_platform, device), resource="https://x.example"
    )
    refused(response, error="invalid_target", status=400)
