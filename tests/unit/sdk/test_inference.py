"""What the SDK does when the gateway says no, is slow, lies, or forgot."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from support.serving import network, pack_bytes, sample
from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import MalformedInput, TooLarge
from tensorguard.moai import pack
from tensorguard.moai.backends.base import open_backend
from tensorguard.moai.client import InputOutOfRange, ViewUntrustworthy
from tensorguard.sdk import (
    InferenceClient,
    InsecureUrl,
    ModelChanged,
    PackNotPinned,
    RemoteProblem,
    ServerUnreachable,
)
from tensorguard.sdk.batch import percentiles, predict
from tensorguard.sdk.inputs import InputUnusable, read_rows, write_rows
from tensorguard.sdk.transport import ATTEMPTS, MAX_ANSWER
from tensorguard.wire.frames import ParametersMismatch
from tensorguard.wire.serving import ModelList, Timings, read_server_timing, summary

URL = "http://127.0.0.1:9"
Handler = Callable[[httpx.Request], httpx.Response]


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"status": status, "code": code, "detail": "no", "remedy": "Do it.", "request_id": "r"}
    return httpx.Response(status, content=json.dumps(body), headers=headers)


class Gateway:
    """A gateway without HTTP: real model, real keys, and answers that a test puts in front."""

    def __init__(self) -> None:
        signer = SoftwareHybridSigner.generate()
        data = pack_bytes(signer, network(1), name="m")
        trust = TrustStore.from_keys({"s": signer.public_key})
        verified = pack.verify(pack.read(data, limit=1 << 20), trust)
        self.model = open_backend("tenseal").load(verified)
        self.view = self.model.spec.view()
        self.keys: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.first: list[httpx.Response | Exception] = []  # answered before anything else
        self.waits: list[float] = []
        self.deadlines: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.seen.append((request.method, path))
        self.tokens.append(request.headers["authorization"])
        if self.first:
            answer = self.first.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if path == "/v1/models":
            return httpx.Response(200, content=msgspec.json.encode(self.list()))
        if path == "/v1/models/m":
            return httpx.Response(200, content=self.view.to_json())
        if path.startswith("/v1/evaluation-keys/"):
            return self.key_store(request, path.rsplit("/", 1)[1])
        return self.infer(request)

    def list(self) -> ModelList:
        return ModelList(models=(summary(self.view),))

    def key_store(self, request: httpx.Request, digest: str) -> httpx.Response:
        if request.method == "PUT":
            assert hashlib.sha256(request.content).hexdigest() == digest
            self.keys[digest] = request.content
            return httpx.Response(201)
        return (
            httpx.Response(200) if digest in self.keys else problem(404, "evaluation_keys_unknown")
        )

    def infer(self, request: httpx.Request) -> httpx.Response:
        frame = self.keys.get(request.headers["tg-evaluation-keys"])
        if frame is None:
            return problem(404, "evaluation_keys_unknown")
        assert request.headers["tg-pack-id"] == self.view.pack_id
        if "tg-deadline" in request.headers:
            self.deadlines.append(request.headers["tg-deadline"])
        result = self.model.evaluate(self.model.load_keys(frame), request.content)
        headers = {
            "TG-Pack-Id": self.view.pack_id,
            "Server-Timing": "queue;dur=1.5, evaluate;dur=20.25",
        }
        return httpx.Response(200, content=result, headers=headers)

    def client(self, **options: object) -> InferenceClient:
        return InferenceClient(
            URL,
            lambda: f"t{len(self.seen)}",
            http=httpx.MockTransport(self),
            sleep=self.waits.append,
            **options,
        )


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_a_prediction_is_the_models_and_its_time_is_accounted_for(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert client.models() == gateway.list().models
        model = client.open("m", pack_id=gateway.view.pack_id)
        values = model.predict(sample(1))
    assert np.abs(values - network(1).raw(sample(1)[None])[0]).max() < 1e-3
    timing = model.last_timing
    assert timing is not None
    assert (timing.queue_ms, timing.evaluate_ms, timing.server_ms) == (1.5, 20.25, 21.75)
    assert timing.bytes_up > 0
    assert timing.total_ms == timing.client_ms + timing.request_ms


def test_evaluation_keys_are_uploaded_once_per_key_file(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "arm.keys"
    for _ in range(3):
        with gateway.client(keys_path=path, unsafe_plain_keys=True) as client:
            client.open("m").predict(sample(1))
    assert [method for method, _ in gateway.seen].count("PUT") == 1
    assert len(gateway.keys) == 1
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_new_secret_key_never_uses_old_evaluation_keys(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "arm.keys"
    with gateway.client(keys_path=path, unsafe_plain_keys=True) as client:
        client.open("m")
        path.unlink()
        values = client.open("m").predict(sample(1))
    assert len(gateway.keys) == 2
    assert np.abs(values - network(1).raw(sample(1)[None])[0]).max() < 1e-3


def test_a_key_file_for_other_parameters_is_refused(gateway: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "arm.keys"
    with gateway.client(keys_path=path, unsafe_plain_keys=True) as client:
        client.open("m")
        data = bytearray(path.read_bytes())
        data[8] ^= 1
        path.write_bytes(data)
        with pytest.raises(ParametersMismatch):
            client.open("m")


def test_a_deadline_is_sent_and_a_missed_one_is_not_tried_again(gateway: Gateway) -> None:
    with gateway.client(deadline=0.2) as client:
        model = client.open("m")
        model.predict(sample(1))
        assert gateway.deadlines == ["200"]
        gateway.first = [problem(504, "deadline_missed", **{"Retry-After": "5"})]
        with pytest.raises(RemoteProblem) as caught:
            model.predict(sample(1))
    assert caught.value.code == "deadline_missed"
    assert gateway.waits == []


def test_lost_evaluation_keys_are_uploaded_again(gateway: Gateway) -> None:
    with gateway.client() as client:
        model = client.open("m")
        gateway.keys.clear()
        model.predict(sample(1))
        assert len(gateway.keys) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_busy_is_retried_after_the_time_that_the_gateway_names(
    gateway: Gateway, status: int
) -> None:
    with gateway.client() as client:
        gateway.first = [problem(status, "busy", **{"Retry-After": "3"})] * 2
        assert client.models()
    assert gateway.waits == [3, 3]


def test_retries_are_bounded_in_number_and_time(gateway: Gateway) -> None:
    with gateway.client() as client:
        gateway.first = [problem(503, "busy", **{"Retry-After": "1"})] * 100
        with pytest.raises(RemoteProblem) as caught:
            client.models()
        assert caught.value.code == "busy"
        assert len(gateway.seen) == ATTEMPTS
        gateway.first = [problem(503, "busy", **{"Retry-After": "86400"})] * 2
        with pytest.raises(RemoteProblem):
            client.models()
        assert len(gateway.seen) == ATTEMPTS + 1


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422, 500, 504])
def test_what_would_fail_again_is_not_retried(gateway: Gateway, status: int) -> None:
    with gateway.client() as client:
        gateway.first = [problem(status, "some_code")]
        with pytest.raises(RemoteProblem) as caught:
            client.models()
    error = caught.value
    assert (error.status, error.code, error.remedy, str(error)) == (
        status,
        "some_code",
        "Do it.",
        "no",
    )
    assert len(gateway.seen) == 1
    assert gateway.waits == []


def test_a_refused_token_is_renewed_once(gateway: Gateway) -> None:
    with gateway.client() as client:
        gateway.first = [problem(401, "token_refused")]
        assert client.models()
        assert gateway.tokens == ["Bearer t0", "Bearer t1"]
        gateway.first = [problem(401, "token_refused")] * 9
        with pytest.raises(RemoteProblem):
            client.models()
        assert len(gateway.seen) == 4


def test_a_lost_connection_is_tried_again_and_a_timeout_is_not(gateway: Gateway) -> None:
    with gateway.client() as client:
        gateway.first = [httpx.ConnectError("no"), httpx.RemoteProtocolError("gone")]
        assert client.models()
        gateway.first = [httpx.ReadTimeout("slow")]
        with pytest.raises(ServerUnreachable):
            client.models()
        gateway.first = [httpx.ConnectError("no")] * 100
        with pytest.raises(ServerUnreachable):
            client.models()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(502, content=b"<html>proxy</html>"),
        httpx.Response(500, content=b""),
        httpx.Response(500, content=b"[" * 70_000),
        httpx.Response(302, headers={"Location": "https://elsewhere.example"}),
        httpx.Response(418, content=b'{"status":"x"}'),
    ],
)
def test_an_answer_that_is_no_problem_document_is_told_as_such(
    gateway: Gateway, answer: httpx.Response
) -> None:
    with gateway.client() as client:
        gateway.first = [answer]
        with pytest.raises(RemoteProblem) as caught:
            client.models()
    assert caught.value.code == "unexpected_answer"
    assert caught.value.status == answer.status_code


def test_text_of_a_server_reaches_a_terminal_without_control_characters(gateway: Gateway) -> None:
    body = {"status": 400, "code": "c", "detail": "\x1b[2J" + "x" * 9000, "remedy": "r\r\n"}
    with gateway.client() as client:
        gateway.first = [httpx.Response(400, content=json.dumps(body))]
        with pytest.raises(RemoteProblem) as caught:
            client.models()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 2000
    assert caught.value.remedy.isprintable()


def test_an_endless_answer_is_cut_off(gateway: Gateway) -> None:
    with gateway.client() as client:
        gateway.first = [httpx.Response(200, content=bytes(MAX_ANSWER + 1))]
        with pytest.raises(TooLarge):
            client.models()


def test_a_view_outside_the_security_table_gets_no_keys(gateway: Gateway) -> None:
    gateway.view = msgspec.structs.replace(gateway.view, parameters_id="0" * 64)
    with gateway.client() as client, pytest.raises(ViewUntrustworthy):
        client.open("m")


def test_a_pinned_pack_is_checked_before_any_key_is_made(gateway: Gateway, tmp_path: Path) -> None:
    with (
        gateway.client(keys_path=tmp_path / "k", unsafe_plain_keys=True) as client,
        pytest.raises(PackNotPinned),
    ):
        client.open("m", pack_id="0" * 64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", ["pack_changed", "model_unknown"])
def test_a_model_that_changed_is_not_used_silently(gateway: Gateway, code: str) -> None:
    with gateway.client() as client:
        model = client.open("m")
        gateway.first = [problem(409, code)]
        with pytest.raises(ModelChanged):
            model.predict(sample(1))
        gateway.first = [httpx.Response(200, content=b"x", headers={"TG-Pack-Id": "0" * 64})]
        with pytest.raises(ModelChanged):
            model.predict(sample(1))


def test_a_damaged_result_is_refused(gateway: Gateway) -> None:
    with gateway.client() as client:
        model = client.open("m")
        headers = {"TG-Pack-Id": gateway.view.pack_id}
        gateway.first = [httpx.Response(200, content=b"damaged", headers=headers)]
        with pytest.raises(MalformedInput):
            model.predict(sample(1))
    assert model.last_timing is None


def test_an_input_out_of_range_never_leaves_the_client(gateway: Gateway) -> None:
    with gateway.client() as client:
        model = client.open("m")
        before = len(gateway.seen)
        with pytest.raises(InputOutOfRange):
            model.predict(np.full(4, 1e6))
        assert len(gateway.seen) == before
        model.predict(np.full(4, 1e6), out_of_range="clip")


@pytest.mark.parametrize(
    "url", ["http://gateway.example", "ftp://127.0.0.1", "gateway", "http://10.0.0.1:80", ""]
)
def test_a_token_is_not_sent_without_tls(url: str) -> None:
    with pytest.raises(InsecureUrl):
        InferenceClient(url, lambda: "t")


def test_times_that_the_gateway_does_not_tell_are_unknown() -> None:
    assert read_server_timing("queue;dur=1, evaluate;dur=2.5") == Timings(
        queue_ms=1, evaluate_ms=2.5
    )
    for value in ("", "queue;dur=1", "queue;dur=x, evaluate;dur=2", "a,b," * 1000):
        assert read_server_timing(value) is None
    assert percentiles([1.0, None]) is None
    assert percentiles([]) is None
    assert percentiles([1.0, 3.0]) == {"p50": 2.0, "p99": 2.98}


def test_a_batch_reports_every_row(gateway: Gateway) -> None:
    rows = np.array([sample(1), sample(2)])
    done: list[int] = []
    with gateway.client() as client:
        model = client.open("m")
        report = predict(model, rows, out_of_range="refuse", progress=done.append)
        with pytest.raises(MalformedInput):
            predict(model, rows[:, :3], out_of_range="refuse", progress=done.append)
    assert done == [1, 2]
    assert np.abs(report.outputs - network(1).raw(rows)).max() < 1e-3
    assert report.to_dict()["n"] == 2
    assert any("p99" in line for line in report.lines())


@pytest.mark.parametrize("suffix", [".npy", ".json", ".csv"])
def test_rows_survive_a_file(tmp_path: Path, suffix: str) -> None:
    rows = np.array([[1.0, -2.5], [1e-9, 3.0]])
    write_rows(tmp_path / f"x{suffix}", rows)
    assert np.array_equal(read_rows(tmp_path / f"x{suffix}"), rows)


BAD_INPUTS = {
    "x.json": b"[1, 2",
    "deep.json": b"[" * 100_000,
    "text.json": b'["a"]',
    "ragged.json": b"[[1,2],[3]]",
    "empty.json": b"[]",
    "nan.csv": b"1,nan",
    "words.csv": b"a,b",
    "cut.npy": b"\x93NUMPY\x01",
    "pickle.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "x.txt": b"1",
}


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("name", BAD_INPUTS)
def test_a_file_without_rows_of_numbers_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD_INPUTS[name])
    with pytest.raises(InputUnusable):
        read_rows(path)
