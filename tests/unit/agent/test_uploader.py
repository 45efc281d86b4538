"""A batch is forgotten when the platform answered for all of it; what it never takes is isolated."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tensorguard.agent import dead
from tensorguard.agent.config import AgentConfig
from tensorguard.agent.link import PlatformLink, require_enrolment
from tensorguard.agent.records import Priority, record
from tensorguard.agent.spool import Batch, Spool
from tensorguard.agent.uploader import FIRST_WAIT, LONGEST_WAIT, Pace, Uploader
from tensorguard.sdk.device import NotEnrolled
from tensorguard.sdk.transport import ServerUnreachable
from tensorguard.settings import Settings
from tensorguard.wire.problems import Problem, RemoteProblem
from tensorguard.wire.telemetry import Answer, Rejection


def problem(status: int, retry_after: int | None = None) -> RemoteProblem:
    made = Problem(status=status, code="told", detail="no", remedy="x", retry_after=retry_after)
    return RemoteProblem(made)


@dataclass
class Platform:
    """Answers batches with a function of their values; remembers what it stored."""

    answer: Callable[[list[float]], Answer | Exception]
    keys: list[str] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)

    def send(self, batch: Batch) -> Answer:
        values = [one["value"] for one in json.loads(batch.body)["samples"]]
        self.keys.append(batch.key)
        told = self.answer(values)
        if isinstance(told, Exception):
            raise told
        bad = {rejection.index for rejection in told.rejected}
        self.stored += [value for index, value in enumerate(values) if index not in bad]
        return told

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool.db", max_bytes=1 << 20) as made:
        made.put([record("angle", n, ts=n) for n in range(10)])
        yield made


def uploader(spool: Spool, platform: Platform, rows: int = 10) -> Uploader:
    return Uploader(spool, lambda: platform, Pace(rows, 1.0), chance=random.Random(1))


def good(values: list[float]) -> Answer:
    return Answer(len(values), 0)


def test_all_is_delivered_and_then_it_waits(spool: Spool) -> None:
    platform = Platform(good)
    sender = uploader(spool, platform, rows=5)
    assert [sender.step() for _ in range(3)] == [0.0, 0.0, 1.0]
    assert platform.stored == list(range(10))
    assert len(set(platform.keys)) == 2
    assert spool.notes()["delivery"][0] == "delivering"


@pytest.mark.invariant("TG-I65")
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 401, 403, 404])
def test_what_may_pass_is_tried_again_with_the_same_key(spool: Spool, status: int) -> None:
    answers: list[Answer | Exception] = [
        problem(status),
        ServerUnreachable("cut"),
        good([0.0] * 10),
    ]
    platform = Platform(lambda _: answers.pop(0))
    sender = uploader(spool, platform)
    first, second = sender.step(), sender.step()
    assert FIRST_WAIT / 2 <= first <= FIRST_WAIT
    assert FIRST_WAIT <= second <= 2 * FIRST_WAIT
    assert spool.waiting() == 10
    assert "cut" in spool.notes()["delivery"][0]
    sender.step()
    assert len(set(platform.keys)) == 1
    assert spool.waiting() == 0


def test_retry_after_is_obeyed_and_waits_are_bounded(spool: Spool) -> None:
    told: list[int | None] = [7, None]
    platform = Platform(lambda _: problem(503, told[0]))
    sender = uploader(spool, platform)
    assert 7 <= sender.step() <= 7 * 1.25
    told[0] = None
    assert max(sender.step() for _ in range(30)) <= LONGEST_WAIT


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_poisonous_sample_is_found_and_the_others_are_stored(spool: Spool, status: int) -> None:
    platform = Platform(lambda values: problem(status) if 7 in values else good(values))
    sender = uploader(spool, platform)
    for _ in range(20):
        sender.step()
    assert sorted(platform.stored) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    (letter,) = dead.letters(spool)
    assert (json.loads(letter.body)["value"], letter.code) == (7, "told")
    assert spool.waiting() == 0


def test_rejected_samples_are_buried_with_the_reason(spool: Spool) -> None:
    told = Answer(7, 1, (Rejection(3, "too old"), Rejection(9, "too new")), 2)
    uploader(spool, Platform(lambda _: told)).step()
    assert [letter.reason for letter in dead.letters(spool)] == ["too old", "too new"]
    assert spool.levels()[Priority.metrics].acknowledged == 8


@pytest.mark.parametrize(
    "told",
    [
        Answer(9, 0),
        Answer(0, 0),
        Answer(11, 0),
        Answer(9, 0, (), 1),
        Answer(8, 0, (Rejection(3, "x"), Rejection(3, "x")), 2),
        Answer(9, 0, (Rejection(10, "x"),), 1),
        Answer(9, 0, (Rejection(-1, "x"),), 1),
    ],
)
def test_an_answer_that_does_not_add_up_acknowledges_nothing(spool: Spool, told: Answer) -> None:
    sender = uploader(spool, Platform(lambda _: told))
    assert sender.step() > 0
    assert spool.waiting() == 10
    assert "answer_incomplete" in spool.notes()["delivery"][0]


def test_a_refusal_of_the_token_endpoint_condemns_no_sample(spool: Spool) -> None:
    def refuse() -> Platform:
        raise problem(400)

    sender = Uploader(spool, refuse, Pace(10, 1.0))
    assert sender.step() > 0
    assert spool.waiting() == 10
    assert [*dead.letters(spool)] == []


def test_an_agent_that_cannot_enrol_says_so_before_it_starts(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled):
        require_enrolment(AgentConfig.of(Settings(agent_dir=tmp_path)))


class Identity:
    """An enrolled device whose first token is stale."""

    def __init__(self) -> None:
        self.tokens = ["stale", "fresh"]
        self.record = type("Record", (), {"platform_url": "https://fleet.example"})

    def access_token(self) -> str:
        return self.tokens[0]

    def forget_tokens(self) -> None:
        self.tokens.pop(0)

    def close(self) -> None:
        """Nothing is open."""


def test_the_link_compresses_keeps_the_key_and_renews_a_refused_token(spool: Spool) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.headers["authorization"] == "Bearer stale":
            return httpx.Response(401)
        return httpx.Response(200, json={"accepted": 50, "duplicates": 0})

    spool.put([record("angle", n, ts=n) for n in range(40)])
    batch = spool.next_batch(rows=100, max_bytes=1 << 20)
    assert batch is not None
    link = PlatformLink(Identity(), transport=httpx.MockTransport(answer))  # type: ignore[arg-type]
    assert link.send(batch).accepted == 50
    link.close()
    assert [request.headers["idempotency-key"] for request in seen] == [batch.key] * 2
    assert seen[1].headers["content-encoding"] == "gzip"
    assert gzip.decompress(seen[1].content) == batch.body


def test_a_lost_connection_is_unreachable_and_not_an_end(spool: Spool) -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("cut", request=request)

    batch = spool.next_batch(rows=100, max_bytes=1 << 20)
    assert batch is not None
    link = PlatformLink(Identity(), transport=httpx.MockTransport(cut))  # type: ignore[arg-type]
    with pytest.raises(ServerUnreachable):
        link.send(batch)
    link.close()
