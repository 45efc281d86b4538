"""The telemetry client: nothing lost without a word, nothing counted twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest

from support.platform import Platform
from support.telemetry import at, device, stored
from tensorguard.sdk.telemetry import ATTEMPTS, NotDelivered, QueueFull, TelemetryClient
from tensorguard.sdk.transport import InsecureUrl
from tensorguard.wire.problems import RemoteProblem
from tensorguard.wire.telemetry import Answer, Batch


class Server:
    """Answers by a script; remembers what came."""

    def __init__(self, *script: int | Exception | dict[str, str]) -> None:
        self.script = list(script)
        self.keys: list[str] = []
        self.batches: list[Batch] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers["idempotency-key"])
        step = self.script.pop(0) if self.script else 200
        if isinstance(step, Exception):
            raise step
        if isinstance(step, dict):
            return httpx.Response(int(step.pop("status")), headers=step)
        if step != 200:
            return httpx.Response(step, json={"code": "x", "detail": "no", "remedy": "wait"})
        batch = msgspec.json.decode(request.content, type=Batch)
        self.batches.append(batch)
        return httpx.Response(200, content=msgspec.json.encode(Answer(len(batch.samples), 0)))

    def client(self, **options: object) -> TelemetryClient:
        options.setdefault("now_ns", lambda: 7)
        return TelemetryClient(
            "https://platform.example",
            lambda: "token",
            transport=httpx.MockTransport(self),
            sleep=self.waits.append,
            **options,
        )


def test_samples_are_batched_and_counted() -> None:
    server = Server()
    with server.client(batch_size=4) as client:
        for i in range(10):
            client.record("a", i, labels={"joint": "0"}, unit="rad")
        assert client.counts.acknowledged == 8
        assert client.queued == 2
    counts = client.counts
    assert (counts.recorded, counts.sent, counts.acknowledged, counts.rejected) == (10, 10, 10, 0)
    assert [len(batch.samples) for batch in server.batches] == [4, 4, 2]
    sample = server.batches[0].samples[1]
    assert (sample.name, sample.value, sample.ts, sample.unit) == ("a", 1.0, 7, "rad")
    assert len(set(server.keys)) == 3


@pytest.mark.parametrize(
    "failure", [429, 502, 503, 504, httpx.ConnectError("x"), httpx.ReadTimeout("x")]
)
def test_what_may_pass_is_retried_with_the_same_key(failure: int | Exception) -> None:
    server = Server(failure, failure, 200)
    with server.client() as client:
        client.record("a", 1)
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1
    assert client.counts.sent == client.counts.acknowledged == 1
    assert len(server.waits) == 2
    assert server.waits[0] < 0.3
    assert server.waits[1] < 0.6


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 415, 422, 500])
def test_nothing_else_is_retried(status: int) -> None:
    server = Server(status)
    client = server.client()
    client.record("a", 1)
    with pytest.raises(RemoteProblem) as refused:
        client.flush()
    assert refused.value.status == status
    assert len(server.keys) == 1
    lost = status in {400, 413, 415, 422}
    assert client.counts.refused == int(lost)
    assert client.queued == int(not lost)  # what may be taken later stays
    client.close()
    assert client.counts.acknowledged == int(not lost)


def test_a_refused_token_is_fetched_anew_once() -> None:
    server = Server(401)
    with server.client() as client:
        client.record("a", 1)
    assert client.counts.acknowledged == 1
    assert server.waits == [0.0]
    server = Server(401, 401)
    client = server.client()
    client.record("a", 1)
    with pytest.raises(RemoteProblem):
        client.flush()
    assert client.queued == 1
    client.close()


def test_retry_after_is_obeyed_within_bounds() -> None:
    server = Server(
        {"status": "503", "retry-after": "7"}, {"status": "429", "retry-after": "9999999"}
    )
    with server.client() as client:
        client.record("a", 1)
    assert server.waits == [7.0, 30.0]


def test_what_could_not_be_delivered_stays_queued_under_its_key() -> None:
    server = Server(*[503] * ATTEMPTS)
    client = server.client()
    client.record("a", 1)
    with pytest.raises(NotDelivered):
        client.flush()
    assert client.queued == 1
    client.record("a", 2)
    client.close()
    assert client.counts.sent == client.counts.acknowledged == 2
    assert len(server.keys) == ATTEMPTS + 2
    assert len(set(server.keys)) == 2


def test_a_full_queue_refuses_instead_of_dropping() -> None:
    client = Server(*[503] * ATTEMPTS).client(max_queued=2)
    client.record("a", 1)
    client.record("a", 2)
    with pytest.raises(QueueFull):
        client.record("a", 3)
    assert client.counts.recorded == 2
    with pytest.raises(NotDelivered):
        client.close()


def test_an_answer_that_is_none_is_no_acknowledgement() -> None:
    client = TelemetryClient(
        "https://platform.example",
        lambda: "token",
        transport=httpx.MockTransport(lambda _: httpx.Response(200, text="<html>hello</html>")),
        sleep=lambda _: None,
    )
    client.record("a", 1)
    with pytest.raises(NotDelivered):
        client.close()
    assert client.counts.acknowledged == 0
    assert client.queued == 1


def test_a_token_goes_nowhere_without_tls() -> None:
    with pytest.raises(InsecureUrl):
        TelemetryClient("http://platform.example", lambda: "token")


class Bridge(httpx.BaseTransport):
    """Carries requests to a platform under test; cuts the answer of every third one."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.calls = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        cut = self.calls % 3 == 0
        answer = self.platform.client.post(
            request.url.path, content=request.read(), headers=dict(request.headers)
        )
        if cut:
            raise httpx.RemoteProtocolError("cut")
        return httpx.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


def test_every_sample_is_stored_once_though_answers_are_lost(platform: Platform) -> None:
    bearer = device(platform)["Authorization"].removeprefix("Bearer ")
    base = at(platform.clock(), -3600)
    client = TelemetryClient(
        "https://platform.example",
        lambda: bearer,
        batch_size=50,
        transport=Bridge(platform),
        sleep=lambda _: None,
    )

    def robot(joint: int) -> None:
        for i in range(250):
            client.record("joint.angle", i, ts=base + i, labels={"joint": str(joint)})

    with client, ThreadPoolExecutor(4) as pool:
        list(pool.map(robot, range(4)))
    counts = client.counts
    assert counts.recorded == counts.sent == counts.acknowledged == 1000
    assert stored(platform)["sample"] == 1000
    assert stored(platform)["batch"] == 20
