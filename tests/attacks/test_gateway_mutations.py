"""Seeded damage against the running gateway: no 5xx, no worker's death uncounted, memory bounded.

In `make ci` 500 of each kind; `make soak` sends 5,000.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.callers import Caller, make_caller
from support.moai import installed_backends
from support.mutations import damaged
from support.serving import Gateway, Shared, sample, shared_gateway, until

SOAK = os.environ.get("TG_TEST_SOAK") == "1"
COUNT = 5000 if SOAK else 500
FILES = 250  # packs in the folder at one time
MAY_GROW = 96 << 20  # bytes of the gateway's memory: some bodies in flight and what malloc keeps
LOOK_EVERY = 25  # requests between looks at the processes

pytestmark = [pytest.mark.xdist_group("gateway"), pytest.mark.timeout(1800 if SOAK else 300)]


@dataclass
class Watch:
    """What the kernel says of a gateway's processes, beside what its metrics say."""

    gateway: Gateway
    ended: int = 0  # workers that were there and are no longer
    statuses: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.workers = set(self.gateway.workers())
        self.deaths = self.gateway.deaths()
        self.first = self.highest = self.resident()

    def resident(self) -> int:
        """Return the bytes of memory that the gateway's own process holds."""
        status = Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        line = next(row for row in status.splitlines() if row.startswith("VmRSS:"))
        return int(line.split()[1]) << 10

    def saw(self, status: int) -> None:
        """Count an answer; now and then look at the processes."""
        self.statuses[status] += 1
        if self.statuses.total() % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        now = set(self.gateway.workers())
        self.ended += len(self.workers - now)
        self.workers = now
        self.highest = max(self.highest, self.resident())

    def check(self, what: str) -> None:
        """Check every promise, and say what was seen."""
        self.look()
        counted = self.gateway.deaths() - self.deaths
        print(
            f"\n{what}: {self.statuses.total()} mutations, answers "
            f"{dict(sorted(self.statuses.items()))}; workers that ended: {self.ended} seen, "
            f"{counted:g} counted; gateway memory {self.first >> 20} MiB at first, "
            f"{self.highest >> 20} MiB at most, {self.resident() >> 20} MiB now"
        )
        assert not [status for status in self.statuses if status >= 500]
        assert counted == self.ended
        assert self.highest - self.first < MAY_GROW


@pytest.fixture(scope="module", params=installed_backends())
def shared(request: pytest.FixtureRequest) -> Shared:
    return shared_gateway(request.param)


@pytest.fixture
def mallory(shared: Shared) -> Iterator[Caller]:
    made = make_caller(shared, "mallory")
    made.works()  # the worker has the keys, and both processes their usual memory
    yield made
    made.http.close()


@pytest.mark.invariant("TG-I75")
def test_mutations_of_a_ciphertext(mallory: Caller, request: pytest.FixtureRequest) -> None:
    good = mallory.keys.encrypt(sample(3))
    watch = Watch(mallory.shared.gateway)
    for data in damaged(good, count=COUNT, seed=20):
        watch.saw(mallory.infer(data).status_code)
    watch.check(request.node.name)
    assert watch.statuses[200] < COUNT // 5  # in-range damage cannot be told from a ciphertext
    mallory.works()


@pytest.mark.invariant("TG-I75")
def test_mutations_of_evaluation_keys(mallory: Caller, request: pytest.FixtureRequest) -> None:
    good = mallory.keys.encrypt(sample(3))
    watch = Watch(mallory.shared.gateway)
    kept = 0
    for data in damaged(mallory.frame, count=COUNT, seed=21):
        response = mallory.upload(data)
        watch.saw(response.status_code)
        digest = hashlib.sha256(data).hexdigest()
        if response.status_code in {200, 201}:  # damaged, but still keys: they give wrong answers
            kept += 1
            answer = mallory.infer(good, digest=digest)
            assert answer.status_code == 200 or answer.json()["code"] == "wrong_key"
        else:
            assert 400 <= response.status_code < 500, response.text
            assert mallory.http.get(f"/v1/evaluation-keys/{digest}").status_code == 404
    watch.check(request.node.name)
    assert kept < COUNT // 5
    assert mallory.upload(mallory.frame).status_code in {200, 201}
    mallory.works()


@pytest.mark.invariant("TG-I75")
def test_mutations_of_a_pack(mallory: Caller, request: pytest.FixtureRequest) -> None:
    """A folder full of damaged packs: each is refused, and the good ones are served meanwhile."""
    gateway = mallory.shared.gateway
    folder = gateway.site.packs
    good = (folder / "linear-1.0.moai").read_bytes()
    watch = Watch(gateway)
    bad = [data for data in damaged(good, count=COUNT, seed=22) if data != good]
    for first in range(0, len(bad), FILES):
        before = gateway.metric("tensorguard_serving_packs_refused_total")
        paths = []
        for number, data in enumerate(bad[first : first + FILES]):
            hidden = folder / f".mutation-{first + number}"
            hidden.write_bytes(data)
            paths.append(hidden.rename(folder / f"mutation-{first + number}.moai"))
        expected = before + len(paths)
        until(
            lambda expected=expected: (
                gateway.metric("tensorguard_serving_packs_refused_total") >= expected
            ),
            seconds=60,
        )
        assert gateway.metric("tensorguard_serving_packs") == 2
        watch.statuses.update({422: len(paths)})
        watch.look()
        mallory.works()
        for path in paths:
            path.unlink()
    watch.check(request.node.name)
    mallory.works()
