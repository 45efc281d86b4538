"""The pool with real processes, here and on Ray: what one request does harms no other request.

Each test runs for workers of this machine and for workers on the nodes of a Ray cluster.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support import fake_worker
from support.production import free_port, process_environment
from support.ray_nodes import cluster
from support.serving import Site, alive, network, pack_bytes, pack_id, until
from tensorguard.serving.links import Launcher
from tensorguard.serving.local_workers import LocalLauncher
from tensorguard.serving.messages import WorkerGone
from tensorguard.serving.pool import DeadlineMissed, Death, EvaluationTimedOut, Job, QueueFull
from tensorguard.serving.slots import Limits
from tensorguard.serving.workers import WorkerPool
from tensorguard.wire.problems import RemoteProblem

PROGRAM = ("-E", "-P", str(Path(fake_worker.__file__)))
MIB = 1 << 20

pytestmark = pytest.mark.xdist_group("pools")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pack(site: Site) -> bytes:
    return pack_bytes(site.signer, network(1), name="m")


@dataclass
class Place:
    """Where workers run: how to get there from this process, and from another one."""

    launcher: Callable[..., Launcher]
    variables: dict[str, str]
    expression: str


@pytest.fixture(scope="module", params=["local", "ray"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "local":
        expression = "local_workers.LocalLauncher(program)"
        yield Place(LocalLauncher, {}, expression)
        return
    with cluster(free_port(), 1, 1) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.variables.items():
            patch.setenv(name, value)
        from tensorguard.serving import ray_workers

        class Joined(ray_workers.RayLauncher):
            """This process joins once for all tests."""

            async def open(self) -> None:
                pass

            async def close(self) -> None:
                pass

        ray_workers.join(running.address)
        expression = f"ray_workers.RayLauncher({running.address!r}, program, cores=1)"
        yield Place(
            lambda program: Joined(running.address, program, cores=1), running.variables, expression
        )
        ray_workers.ray.shutdown()


class Bench:
    """A started pool with one pack, and what it reported."""

    def __init__(self, pool: WorkerPool, pack: str, deaths: Counter[Death]) -> None:
        self.pool, self.pack, self.deaths = pool, pack, deaths
        self.fetched = 0

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(int(name.rpartition(":")[2]) for name in self.pool.names)

    async def run(
        self,
        body: bytes,
        *,
        tenant: str = "t",
        digest: str = "d" * 64,
        within: float | None = None,
    ) -> bytes:
        async def fetch() -> bytes:
            self.fetched += 1
            return b"keys of " + tenant.encode()

        deadline = None if within is None else time.perf_counter() + within
        answer = await self.pool.evaluate(Job(self.pack, tenant, digest, body, fetch, deadline))
        assert answer.queue_seconds >= 0
        assert answer.evaluate_seconds >= 0
        return answer.ciphertext

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it did not happen within 20 s")


@pytest.fixture
def started(place: Place, site: Site, pack: bytes) -> Callable[..., Any]:
    @asynccontextmanager
    async def start(**changes: float) -> AsyncIterator[Bench]:
        deaths: Counter[Death] = Counter()
        pool = WorkerPool(
            place.launcher(PROGRAM),
            limits=limits(**changes),
            trust_store=site.trust,
            on_death=lambda cause: deaths.update([cause]),
        )
        await pool.start()
        bench = Bench(pool, pack_id(pack), deaths)
        try:
            await pool.load(bench.pack, pack)
            yield bench
        finally:
            pids = bench.pids
            await pool.stop()
            until(lambda: not any(alive(pid) for pid in pids), seconds=10)

    return start


def limits(**changes: float) -> Limits:
    values = {
        "workers": 1,
        "queue": 4,
        "seconds": 20.0,
        "memory_bytes": 1024 * MIB,
        "pack_bytes": MIB,
        "reply_bytes": MIB,
        "cache_bytes": MIB,
    }
    return Limits(**(values | changes))


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_evaluation_keys_are_sent_once_and_then_kept_by_tenant_and_digest(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            assert b"keys of t:hello" in await bench.run(b"hello")
            assert b"keys of t:again" in await bench.run(b"again")
            assert bench.fetched == 1
            assert b"keys of u:" in await bench.run(b"x", tenant="u")
            assert bench.fetched == 2

    run(work())


def test_keys_over_the_cache_bound_are_asked_for_again(started: Any) -> None:
    async def work() -> None:
        async with started(cache_bytes=10) as bench:
            for tenant in "abab":
                await bench.run(b"x", tenant=tenant)
            assert bench.fetched == 4

    run(work())


def test_refused_input_is_relayed_and_the_worker_goes_on(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            before = bench.pids
            with pytest.raises(RemoteProblem) as caught:
                await bench.run(b"bad")
            assert (caught.value.code, caught.value.status) == ("malformed", 400)
            with pytest.raises(RemoteProblem, match="no keys"):
                await bench.pool.check_keys(bench.pack, "t", "e" * 64, b"bad keys")
            await bench.run(b"good")
            assert bench.pids == before
            assert not bench.deaths

    run(work())


@pytest.mark.parametrize("what", [b"crash", b"bug"])
@pytest.mark.invariant("TG-I15")
def test_a_worker_that_dies_takes_one_request_with_it(started: Any, what: bytes) -> None:
    async def work() -> None:
        async with started() as bench:
            (before,) = bench.pids
            with pytest.raises(WorkerGone) as caught:
                await bench.run(what)
            assert caught.value.status == 503
            assert b"after" in await bench.run(b"after")  # by the next worker, with the pack loaded
            assert bench.pids != (before,)
            assert not alive(before)
            assert bench.deaths == {Death.crash: 1}

    run(work())


@pytest.mark.parametrize("what", [b"sleep 60", b"spin 60"])
def test_work_past_its_deadline_is_killed(started: Any, what: bytes) -> None:
    async def work() -> None:
        async with started(seconds=0.5) as bench:
            (before,) = bench.pids
            began = time.monotonic()
            with pytest.raises(EvaluationTimedOut) as caught:
                await bench.run(what)
            assert time.monotonic() - began < 5
            assert caught.value.status == 504
            await bench.until(lambda: bench.deaths == {Death.deadline: 1})
            assert not alive(before)
            await bench.until(lambda: bench.pool.status().alive == 1)
            await bench.run(b"after")

    run(work())


def test_memory_beyond_the_cap_ends_the_worker_only(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            assert await bench.run(b"eat %d" % (8 * MIB)) == b"\0"
            with pytest.raises(WorkerGone):
                await bench.run(b"eat %d" % (2048 * MIB))
            await bench.run(b"after")
            assert bench.deaths == {Death.crash: 1}

    run(work())


def test_a_worker_inherits_no_secret_and_dumps_no_core(
    started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TG_SECRET_KEY", "s" * 64)

    async def work() -> None:
        async with started() as bench:
            names = await bench.run(b"environment")
            assert b"TG_" not in names
            assert b"HOME" not in names
            limits = (await bench.run(b"limits")).decode()
            core = next(line for line in limits.splitlines() if line.startswith("Max core"))
            space = next(line for line in limits.splitlines() if line.startswith("Max address"))
            assert core.split()[4:6] == ["0", "0"]
            assert space.split()[3] == str(1024 * MIB)

    run(work())


def test_a_worker_holds_its_pipe_and_no_other_socket(started: Any) -> None:
    async def work() -> None:
        async with started(workers=2) as bench:
            files = (await bench.run(b"files")).decode()
            assert len(set(re.findall(r"socket:\[\d+\]", files))) == 1

    run(work())


def test_the_queue_is_bounded_and_first_come_is_first_served(started: Any) -> None:
    async def work() -> None:
        async with started(queue=2) as bench:
            await bench.run(b"warm")
            order: list[bytes] = []

            async def one(body: bytes) -> None:
                await bench.run(body)
                order.append(body)

            tasks = [asyncio.create_task(one(b"sleep 0.5"))]
            await asyncio.sleep(0.1)
            tasks += [asyncio.create_task(one(body)) for body in (b"first", b"second")]
            await bench.until(lambda: bench.pool.status().waiting == 2)
            with pytest.raises(QueueFull) as caught:
                await bench.run(b"third")
            assert (caught.value.status, caught.value.retry_after) == (503, 2)
            await asyncio.gather(*tasks)
            assert order == [b"sleep 0.5", b"first", b"second"]
            assert bench.pool.status().waiting == 0

    run(work())


def test_a_request_that_is_cancelled_while_it_waits_takes_no_worker(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            await bench.run(b"warm")
            slow = asyncio.create_task(bench.run(b"sleep 0.3"))
            await asyncio.sleep(0.05)
            waiting = asyncio.create_task(bench.run(b"x"))
            await bench.until(lambda: bench.pool.status().waiting == 1)
            waiting.cancel()
            await asyncio.gather(slow, waiting, return_exceptions=True)
            await bench.run(b"after")
            assert not bench.deaths

    run(work())


def test_workers_run_side_by_side_and_keys_prefer_the_worker_that_has_them(started: Any) -> None:
    async def work() -> None:
        async with started(workers=2) as bench:
            answers = await asyncio.gather(*(bench.run(b"sleep 0.2", tenant=t) for t in "ab"))
            assert len({answer.split(b":")[0] for answer in answers}) == 2
            for _ in range(3):
                again = [await bench.run(b"x", tenant=t) for t in "ab"]
                assert [a.split(b":")[0] for a in again] == [a.split(b":")[0] for a in answers]
            assert bench.fetched == 2

    run(work())


def test_an_idle_worker_that_is_killed_is_replaced(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            (before,) = bench.pids
            os.kill(before, signal.SIGKILL)
            await bench.until(lambda: bench.deaths == {Death.crash: 1})
            await bench.run(b"after")

    run(work())


def test_a_pack_that_does_not_verify_in_the_worker_is_not_loaded(started: Any, site: Site) -> None:
    async def work() -> None:
        async with started() as bench:
            stranger = Site(site.home / "stranger").signer
            foreign = pack_bytes(stranger, network(1), name="foreign")
            with pytest.raises(RemoteProblem) as caught:
                await bench.pool.load(pack_id(foreign), foreign)
            assert caught.value.code == "untrusted_signer"
            refused = pack_bytes(site.signer, network(1), name="refused")
            with pytest.raises(RemoteProblem, match="does not like"):
                await bench.pool.load(pack_id(refused), refused)
            with pytest.raises(RemoteProblem) as caught:
                await bench.pool.load("0" * 64, pack_bytes(site.signer, network(2), name="n"))
            assert caught.value.code == "worker_pack_mismatch"
            await bench.run(b"after")
            assert not bench.deaths

    run(work())


def test_a_dropped_pack_is_not_evaluated(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            await bench.pool.drop(bench.pack)
            with pytest.raises(RemoteProblem) as caught:
                await bench.run(b"x")
            assert caught.value.code == "pack_not_loaded"

    run(work())


def test_what_waits_for_a_pack_is_answered_before_the_pack_goes(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            await bench.run(b"warm")
            first = asyncio.create_task(bench.run(b"sleep 0.3"))
            await asyncio.sleep(0.05)
            second = asyncio.create_task(bench.run(b"second"))
            await bench.until(lambda: bench.pool.status().waiting == 1)
            await bench.pool.drop(bench.pack)
            assert b"sleep" in await first
            assert b"second" in await second
            with pytest.raises(RemoteProblem) as caught:
                await bench.run(b"x")
            assert caught.value.code == "pack_not_loaded"

    run(work())


def test_a_deadline_that_cannot_be_met_is_refused_before_any_work(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            for _ in range(3):
                await bench.run(b"sleep 0.3")
            began = time.monotonic()
            with pytest.raises(DeadlineMissed) as caught:
                await bench.run(b"x", within=0.05)  # an evaluation is known to take longer
            assert time.monotonic() - began < 0.05
            assert caught.value.status == 504
            busy = asyncio.create_task(bench.run(b"sleep 1"))
            await asyncio.sleep(0.1)
            with pytest.raises(DeadlineMissed):  # its time passes while it waits
                await bench.run(b"x", within=0.6)
            assert time.monotonic() - began < 1
            assert not busy.done()
            assert b":x" in await bench.run(b"x", within=10)
            await busy
            assert not bench.deaths

    run(work())


def test_a_deadline_that_passes_during_the_work_kills_no_worker(started: Any) -> None:
    async def work() -> None:
        async with started() as bench:
            assert b"sleep" in await bench.run(b"sleep 0.5", within=0.2)  # nothing was known yet
            assert not bench.deaths

    run(work())


def test_evaluation_keys_stay_where_every_worker_can_fetch_them(started: Any) -> None:
    async def work() -> None:
        async with started(workers=2, shared_bytes=MIB) as bench:
            answers = await asyncio.gather(*(bench.run(b"sleep 0.2") for _ in range(2)))
            assert len({answer.split(b":")[0] for answer in answers}) == 2
            os.kill(bench.pids[0], signal.SIGKILL)
            await bench.until(lambda: bench.deaths == {Death.crash: 1})
            await bench.until(lambda: bench.pool.status().alive == 2)
            await asyncio.gather(*(bench.run(b"sleep 0.2") for _ in range(2)))
            assert bench.fetched <= 2  # both may have asked at the same moment, none after that

    run(work())


def test_a_pool_whose_workers_do_not_start_raises(place: Place, site: Site) -> None:
    async def work() -> None:
        pool = WorkerPool(
            place.launcher(("-c", "raise SystemExit(1)")),
            limits=limits(workers=2),
            trust_store=site.trust,
            on_death=lambda _: None,
        )
        with pytest.raises(WorkerGone):
            await pool.start()
        assert pool.names == ()

    run(work())


PARENT = """
import asyncio, sys
from pathlib import Path
from tensorguard.serving.slots import Limits
from tensorguard.serving.workers import WorkerPool

async def main():
    limits = Limits(workers=2, queue=1, seconds=30, memory_bytes=1 << 30, pack_bytes=1 << 20,
                    reply_bytes=1 << 20, cache_bytes=1 << 20)
    program = ("-E", "-P", sys.argv[1])
    pool = WorkerPool(LAUNCHER, limits=limits, trust_store=Path(sys.argv[2]), on_death=lambda _: None)
    await pool.start()
    print(*(name.rpartition(":")[2] for name in pool.names), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_workers_end_with_a_gateway_that_is_killed(place: Place, site: Site) -> None:
    module = place.expression.partition(".")[0]
    program = f"from tensorguard.serving import {module}" + PARENT.replace(
        "LAUNCHER", place.expression
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(fake_worker.__file__)), str(site.trust)],
        stdout=subprocess.PIPE,
        env=process_environment(place.variables),
    )
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.kill()
        parent.wait()
    until(lambda: not any(alive(pid) for pid in pids), seconds=20)
