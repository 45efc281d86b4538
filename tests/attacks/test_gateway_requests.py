"""Attacks on the running gateway: every one is refused with a remedy, and it goes on serving."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tenseal
from tenseal import sealapi

from support.callers import KEYS, OCTETS, Caller, framed, make_caller, refused
from support.moai import installed_backends
from support.serving import Issuer, Shared, network, sample, shared_gateway
from tensorguard.moai.client import ClientKeys
from tensorguard.moai.seal import Seal, dump
from tensorguard.wire.frames import Kind, build_frame
from tensorguard.wire.models import ModelView

pytestmark = pytest.mark.xdist_group("gateway")


@pytest.fixture(scope="module", params=installed_backends())
def shared(request: pytest.FixtureRequest) -> Shared:
    return shared_gateway(request.param)


@pytest.fixture(scope="module")
def caller(shared: Shared) -> Iterator[Caller]:
    made = make_caller(shared, "tenant-a")
    yield made
    made.http.close()


# --- ciphertexts ------------------------------------------------------------------------------


CIPHERTEXTS: dict[str, tuple[Callable[[Caller], bytes], int]] = {
    "empty": (lambda _: b"", 400),
    "one byte": (lambda _: b"\0", 400),
    "header only": (lambda c: c.keys.encrypt(sample(1))[:52], 400),
    "truncated": (lambda c: c.keys.encrypt(sample(1))[:-1], 400),
    "extended": (lambda c: c.keys.encrypt(sample(1)) + b"\0", 400),
    "twice": (lambda c: c.keys.encrypt(sample(1)) * 2, 400),
    "text": (lambda _: b"hello" * 1000, 400),
    "evaluation keys": (lambda c: c.frame, 400),
    "no items": (lambda c: framed(c, Kind.ciphertext, [b""]), 400),
    "two items": (lambda c: framed(c, Kind.ciphertext, [b"a", b"b"]), 400),
    "other parameters": (lambda c: framed(c, Kind.ciphertext, [b"x" * 100], bytes(32)), 422),
}


@pytest.mark.parametrize("kind", CIPHERTEXTS)
def test_a_bad_ciphertext_is_refused(caller: Caller, kind: str) -> None:
    make, status = CIPHERTEXTS[kind]
    refused(caller.infer(make(caller)), status)
    caller.works()


def test_an_oversized_ciphertext_is_refused_before_it_is_read(caller: Caller) -> None:
    refused(caller.infer(bytes(33 << 20)), 413, "too_large")
    caller.works()


def test_an_oversized_body_without_a_length_is_cut_off(caller: Caller) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 20)

    response = caller.http.post(
        "/v1/models/linear/infer", content=endless(), headers=OCTETS | {KEYS: caller.digest}
    )
    refused(response, 413)
    caller.works()


def test_a_ciphertext_for_another_model_is_refused(caller: Caller) -> None:
    view = ModelView.from_json(caller.http.get("/v1/models/squared").content)
    keys = ClientKeys.generate(view)
    other = keys.encrypt(sample(1))
    refused(caller.infer(other), 422, "parameters_mismatch")
    refused(caller.infer(other, model="squared"), 422, "parameters_mismatch")  # keys of linear
    relabelled = framed(caller, Kind.ciphertext, [other[76:]])
    assert 400 <= caller.infer(relabelled).status_code < 500
    caller.works()


def test_a_transparent_ciphertext_is_refused(caller: Caller) -> None:
    seal = Seal(caller.keys.parameters)
    ciphertext = sealapi.Ciphertext(seal.context)
    ciphertext.resize(seal.context, 2)
    frame = framed(caller, Kind.ciphertext, [dump(ciphertext)])
    refused(caller.infer(frame), 400)
    caller.works()


@pytest.mark.invariant("TG-I17")
def test_a_ciphertext_of_another_secret_key_is_refused(caller: Caller) -> None:
    stranger = ClientKeys.generate(caller.view)
    refused(caller.infer(stranger.encrypt(sample(1))), 422, "wrong_key")
    caller.works()


def test_a_forged_key_id_tells_its_sender_nothing(caller: Caller) -> None:
    """Whoever lies about the key id gets noise under both keys."""
    stranger = ClientKeys.generate(caller.view)
    forged = framed(caller, Kind.ciphertext, [stranger.encrypt(sample(1))[76:]])
    answer = caller.infer(forged)
    assert answer.status_code == 200
    expected = network(1).raw(sample(1)[None])[0]
    honest = build_frame(
        Kind.ciphertext, stranger.parameters.id, [answer.content[76:]], key_id=stranger.key_id
    )
    for keys, frame in ((stranger, honest), (caller.keys, answer.content)):
        assert np.abs(keys.decrypt(frame) - expected).max() > 10
    caller.works()


def test_a_model_with_a_product_gives_the_right_answer(caller: Caller) -> None:
    view = ModelView.from_json(caller.http.get("/v1/models/squared").content)
    keys = ClientKeys.generate(view)
    frame = keys.evaluation_keys()
    assert caller.upload(frame).status_code == 201
    digest = hashlib.sha256(frame).hexdigest()
    answer = caller.infer(keys.encrypt(sample(2)), digest=digest, model="squared")
    assert answer.status_code == 200, answer.text
    expected = network(2, squared=True).raw(sample(2)[None])[0]
    assert np.abs(keys.decrypt(answer.content) - expected).max() < 1e-3
    caller.works()


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "600001", "9" * 40, "\u0661", "soon"])
def test_a_deadline_that_is_no_number_of_milliseconds_is_refused(caller: Caller, text: str) -> None:
    headers = OCTETS | {KEYS: caller.digest, "TG-Deadline": text.encode()}
    body = caller.keys.encrypt(sample(1))
    refused(
        caller.http.post("/v1/models/linear/infer", content=body, headers=headers), 400, "malformed"
    )


@pytest.mark.invariant("TG-I78")
def test_a_deadline_that_cannot_be_met_is_refused_and_counted(caller: Caller) -> None:
    gateway = caller.shared.gateway
    body = caller.keys.encrypt(sample(1))
    for _ in range(3):
        caller.works()
    line = 'tensorguard_serving_requests_total{model="linear",outcome="deadline_missed"}'
    answers = [
        caller.http.post(
            "/v1/models/linear/infer",
            content=body,
            headers=OCTETS | {KEYS: caller.digest, "TG-Deadline": milliseconds},
        )
        for milliseconds in ("1", "600000")
    ]
    refused(answers[0], 504, "deadline_missed")
    assert int(answers[0].headers["retry-after"]) > 0
    assert answers[1].status_code == 200
    assert gateway.metric(line) >= 1
    assert gateway.metric('tensorguard_serving_queue_seconds_count{model="linear"}') >= 4
    for direction in ("in", "out"):
        name = "tensorguard_serving_ciphertext_bytes_total"
        assert gateway.metric(f'{name}{{direction="{direction}",model="linear"}}') > 10_000
    caller.works()


# --- evaluation keys ----------------------------------------------------------------------------


def tenseal_context(*, secret: bool) -> bytes:
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[40, 30, 40])
    context.generate_galois_keys()
    return context.serialize(save_secret_key=secret)


def secret_of(caller: Caller) -> bytes:
    """Return the SEAL serialisation of a client's secret key."""
    return dump(sealapi.KeyGenerator(Seal(caller.keys.parameters).context).secret_key())


def own_secret_frame(caller: Caller) -> bytes:
    return framed(caller, Kind.client_secret_keys, [secret_of(caller)])


SECRETS: dict[str, Callable[[Caller], bytes]] = {
    "our frame of secret keys": own_secret_frame,
    "a SEAL secret key called evaluation keys": lambda c: framed(
        c, Kind.evaluation_keys, [secret_of(c)]
    ),
    "a SEAL secret key as the second item": lambda c: framed(
        c, Kind.evaluation_keys, [c.frame[76:], secret_of(c)]
    ),
    "a TenSEAL context with its secret key": lambda _: tenseal_context(secret=True),
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.invariant("TG-I14")
def test_an_upload_with_a_secret_key_is_refused_and_not_kept(caller: Caller, kind: str) -> None:
    data = SECRETS[kind](caller)
    refused(caller.upload(data), 422, "secret_key_in_upload")
    digest = hashlib.sha256(data).hexdigest()
    assert caller.http.get(f"/v1/evaluation-keys/{digest}").status_code == 404
    files = caller.shared.gateway.site.home.rglob("*")
    assert not [path for path in files if path.name == digest]
    caller.works()


def test_a_bare_seal_secret_key_is_refused(caller: Caller) -> None:
    assert 400 <= caller.upload(secret_of(caller)).status_code < 500
    caller.works()


EVALUATION_KEYS: dict[str, tuple[Callable[[Caller], bytes], int]] = {
    "empty": (lambda _: b"", 400),
    "truncated": (lambda c: c.frame[:-1], 400),
    "extended": (lambda c: c.frame + b"\0", 400),
    "ciphertext": (lambda c: c.keys.encrypt(sample(1)), 400),
    "other parameters": (lambda c: framed(c, Kind.evaluation_keys, [b"x"], bytes(32)), 422),
    "TenSEAL context": (lambda _: tenseal_context(secret=False), 400),
    "garbage inside": (
        lambda c: framed(c, Kind.evaluation_keys, [bytes(1000)]),
        400,
    ),
    "ciphertext inside": (
        lambda c: framed(c, Kind.evaluation_keys, [c.keys.encrypt(sample(1))[76:]]),
        400,
    ),
}


@pytest.mark.parametrize("kind", EVALUATION_KEYS)
def test_bad_evaluation_keys_are_refused_and_not_kept(caller: Caller, kind: str) -> None:
    make, status = EVALUATION_KEYS[kind]
    data = make(caller)
    refused(caller.upload(data), status)
    digest = hashlib.sha256(data).hexdigest()
    refused(caller.http.get(f"/v1/evaluation-keys/{digest}"), 404, "evaluation_keys_unknown")
    caller.works()


def test_evaluation_keys_for_too_few_rotations_are_refused(caller: Caller) -> None:
    seal = Seal(caller.keys.parameters)
    element = caller.keys.parameters.galois_element(caller.view.rotations[0])
    keys = sealapi.KeyGenerator(seal.context).create_galois_keys([element])
    frame = framed(caller, Kind.evaluation_keys, [dump(keys)])
    refused(caller.upload(frame), 400, "malformed")


def test_evaluation_keys_of_other_parameters_under_a_models_id_are_refused(
    caller: Caller,
) -> None:
    """The header claims the model's parameters; the keys inside were made for others."""
    view = ModelView.from_json(caller.http.get("/v1/models/squared").content)
    assert view.parameters_id != caller.view.parameters_id
    whole = ClientKeys.generate(view).evaluation_keys()[76:]
    for item in (whole, whole[: len(caller.frame) - 76]):
        data = framed(caller, Kind.evaluation_keys, [item])
        assert caller.upload(data).status_code in {400, 413}
        digest = hashlib.sha256(data).hexdigest()
        refused(caller.http.get(f"/v1/evaluation-keys/{digest}"), 404, "evaluation_keys_unknown")
    caller.works()


def test_a_digest_that_is_not_of_the_body_stores_nothing(caller: Caller) -> None:
    url = f"/v1/evaluation-keys/{'0' * 64}"
    refused(caller.http.put(url, content=caller.frame, headers=OCTETS), 422, "digest_mismatch")
    refused(caller.http.get(url), 404)


@pytest.mark.parametrize("name", ["x", "A" * 64, "..%2f..%2fetc", "0" * 63])
def test_a_path_that_is_no_digest_is_refused(caller: Caller, name: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = caller.http.request(method, f"/v1/evaluation-keys/{name}", headers=OCTETS)
        assert response.status_code in {400, 404}


def test_an_oversized_upload_is_refused_by_its_length(caller: Caller) -> None:
    address = caller.http.base_url
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.putrequest("PUT", f"/v1/evaluation-keys/{'1' * 64}")
    connection.putheader("Authorization", caller.http.headers["authorization"])
    connection.putheader("Content-Length", str(513 << 20))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["code"] == "too_large"
    connection.close()
    caller.works()


# --- whose ------------------------------------------------------------------------------------------


def test_unknown_evaluation_keys_are_not_found(caller: Caller) -> None:
    body = caller.keys.encrypt(sample(1))
    refused(caller.infer(body, digest="0" * 64), 404, "evaluation_keys_unknown")
    refused(caller.infer(body, digest="nonsense"), 400, "malformed")
    bare = caller.http.post("/v1/models/linear/infer", content=body, headers=OCTETS)
    refused(bare, 400, "malformed")


@pytest.mark.invariant("TG-I08")
def test_evaluation_keys_of_another_tenant_are_not_found(caller: Caller, shared: Shared) -> None:
    with shared.gateway.client(shared.grant(tenant="tenant-b")) as stranger:
        url = f"/v1/evaluation-keys/{caller.digest}"
        refused(stranger.get(url), 404, "evaluation_keys_unknown")
        refused(stranger.delete(url), 404, "evaluation_keys_unknown")
        assert stranger.head(url).status_code == 404
        response = stranger.post(
            "/v1/models/linear/infer",
            content=caller.keys.encrypt(sample(1)),
            headers=OCTETS | {KEYS: caller.digest},
        )
        refused(response, 404, "evaluation_keys_unknown")
    assert caller.http.head(f"/v1/evaluation-keys/{caller.digest}").status_code == 200
    caller.works()


def test_a_pack_that_the_grant_does_not_name_is_not_found(caller: Caller, shared: Shared) -> None:
    token = shared.gateway.site.issuer.grant(shared.squared)
    with shared.gateway.client(token) as http:
        assert [m["name"] for m in http.get("/v1/models").json()["models"]] == ["squared"]
        refused(http.get("/v1/models/linear"), 404, "model_unknown")
        response = http.post(
            "/v1/models/linear/infer",
            content=caller.keys.encrypt(sample(1)),
            headers=OCTETS | {KEYS: caller.digest},
        )
        refused(response, 404, "model_unknown")
        body = {"model": "linear", "evaluation_keys": caller.digest, "ciphertext": ""}
        refused(http.post("/v1/infer", json=body), 404, "model_unknown")
        digest = hashlib.sha256(caller.frame).hexdigest()
        upload = http.put(f"/v1/evaluation-keys/{digest}", content=caller.frame, headers=OCTETS)
        refused(upload, 422, "no_model_for_keys")


def tokens(shared: Shared) -> dict[str, str | None]:
    issuer = shared.gateway.site.issuer
    pack = shared.linear
    forged = Issuer(kid=issuer.kid).grant(pack)
    return {
        "none": None,
        "empty": "",
        "nonsense": "abc",
        "expired": issuer.grant(pack, exp=1_700_000_000, iat=1_699_999_900),
        "wrong audience": issuer.grant(pack, aud="tensorguard-platform"),
        "wrong scope": issuer.grant(pack, scope="packs:read"),
        "without expiry": issuer.grant(pack, exp=None),
        "too long": issuer.grant(pack, exp=1 << 36),
        "no packs": issuer.grant(),
        "forged": forged,
        "unknown key": Issuer(kid="k9").grant(pack),
        "cut": issuer.grant(pack)[:-10],
        "unsigned": issuer.grant(pack).rsplit(".", 1)[0] + ".",
    }


KINDS = (
    *("none", "empty", "nonsense", "expired", "wrong audience", "wrong scope", "without expiry"),
    *("too long", "no packs", "forged", "unknown key", "cut", "unsigned"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_good_grant_every_route_is_closed(shared: Shared, kind: str) -> None:
    token = tokens(shared)[kind]
    headers = {} if token is None else {"Authorization": f"Bearer {token}".strip()}
    with shared.gateway.client() as http:
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/models/linear"),
            ("PUT", f"/v1/evaluation-keys/{'0' * 64}"),
            ("GET", f"/v1/evaluation-keys/{'0' * 64}"),
            ("DELETE", f"/v1/evaluation-keys/{'0' * 64}"),
            ("POST", "/v1/models/linear/infer"),
            ("POST", "/v1/infer"),
        ):
            response = http.request(method, path, headers=headers)
            refused(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"


# --- JSON ---------------------------------------------------------------------------------------------


def test_the_json_form_gives_the_same_answer(caller: Caller, shared: Shared) -> None:
    body = {
        "model": "linear",
        "evaluation_keys": caller.digest,
        "ciphertext": base64.b64encode(caller.keys.encrypt(sample(4))).decode(),
    }
    answer = caller.http.post("/v1/infer", json=body)
    assert answer.status_code == 200, answer.text
    values = caller.keys.decrypt(base64.b64decode(answer.json()["ciphertext"]))
    assert np.abs(values - network(1).raw(sample(4)[None])[0]).max() < 1e-3
    assert answer.json()["pack_id"] == shared.linear
    assert answer.json()["timings"]["evaluate_ms"] > 0


BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "array": b"[]",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"model":"\xff"}',
    "missing members": b'{"model":"linear"}',
    "unknown member": b'{"model":"linear","evaluation_keys":"%s","ciphertext":"","x":1}'
    % (b"0" * 64),
    "no base64": b'{"model":"linear","evaluation_keys":"%s","ciphertext":"*"}' % (b"0" * 64),
    "number for text": b'{"model":1,"evaluation_keys":"%s","ciphertext":""}' % (b"0" * 64),
    "name of another form": b'{"model":"../x","evaluation_keys":"%s","ciphertext":""}'
    % (b"0" * 64),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_bad_json_body_is_refused(caller: Caller, kind: str) -> None:
    headers = {"Content-Type": "application/json"}
    refused(caller.http.post("/v1/infer", content=BODIES[kind], headers=headers), 400, "malformed")
    caller.works()


def test_bodies_of_another_kind_are_refused(caller: Caller) -> None:
    url = "/v1/models/linear/infer"
    body = caller.keys.encrypt(sample(1))
    for headers in ({}, {"Content-Type": "text/plain"}, OCTETS | {"Content-Encoding": "gzip"}):
        response = caller.http.post(url, content=body, headers=headers | {KEYS: caller.digest})
        refused(response, 415, "unsupported_media")
    refused(caller.http.post("/v1/infer", content=b"{}", headers=OCTETS), 415)


def test_a_client_that_pinned_another_pack_is_told(caller: Caller, shared: Shared) -> None:
    headers = OCTETS | {KEYS: caller.digest, "TG-Pack-Id": shared.squared}
    response = caller.http.post(
        "/v1/models/linear/infer", content=caller.keys.encrypt(sample(1)), headers=headers
    )
    refused(response, 409, "pack_changed")


def test_logs_hold_neither_tokens_nor_ciphertexts(caller: Caller, shared: Shared) -> None:
    token = shared.grant()
    with shared.gateway.client(token) as http:
        http.get("/v1/models")
        http.get(f"/v1/models/{token}")
    caller.works()
    log = shared.gateway.log.read_text()
    assert token not in log
    assert token.split(".")[2] not in log
    rows = [json.loads(line) for line in log.splitlines()]
    assert max(len(json.dumps(row)) for row in rows) < 4000
