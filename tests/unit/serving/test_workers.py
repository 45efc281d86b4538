"""The pool with real processes: what one request does to its worker harms no other request."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from support import fake_worker
from support.serving import Site, alive, network, pack_bytes, pack_id
from tensorguard.serving.messages import WorkerGone
from tensorguard.serving.pool import Death, EvaluationTimedOut, Job, QueueFull
from tensorguard.serving.workers import Limits, LocalPool
from tensorguard.wire.problems import RemoteProblem

PROGRAM = (sys.executable, "-E", "-P", str(Path(fake_worker.__file__)))
MIB = 1 << 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pack(site: Site) -> bytes:
    return pack_bytes(site.signer, network(1), name="m")


class Bench:
    """A started pool with one pack, and what it reported."""

    def __init__(self, pool: LocalPool, pack: str, deaths: Counter[Death]) -> None:
        self.pool, self.pack, self.deaths = pool, pack, deaths
        self.fetched = 0

    async def run(self, body: bytes, *, tenant: str = "t", digest: str = "d" * 64) -> bytes:
        async def fetch() -> bytes:
            self.fetched += 1
            return b"keys of " + tenant.encode()

        answer = await self.pool.evaluate(Job(self.pack, tenant, digest, body, fetch))
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
def started(site: Site, pack: bytes) -> Callable[..., Any]:
    @asynccontextmanager
    async def start(**changes: float) -> AsyncIterator[Bench]:
        deaths: Counter[Death] = Counter()
        values = {
            "workers": 1,
            "queue": 4,
            "seconds": 20.0,
            "memory_bytes": 1024 * MIB,
            "pack_bytes": MIB,
            "reply_bytes": MIB,
            "cache_bytes": MIB,
        } | changes
        pool = LocalPool(
            PROGRAM,
            limits=Limits(**values),
            trust_store=site.trust,
            on_death=lambda cause: deaths.update([cause]),
        )
        await pool.start()
        try:
            await pool.load(pack_id(pack), pack)
            yield Bench(pool, pack_id(pack), deaths)
        finally:
            pids = pool.pids
            await pool.stop()
            assert not any(alive(pid) for pid in pids)

    return start


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
            before = bench.pool.pids
            with pytest.raises(RemoteProblem) as caught:
                await bench.run(b"bad")
            assert (caught.value.code, caught.value.status) == ("malformed", 400)
            with pytest.raises(RemoteProblem, match="no keys"):
                await bench.pool.check_keys(bench.pack, "t", "e" * 64, b"bad keys")
            await bench.run(b"good")
            assert bench.pool.pids == before
            assert not bench.deaths

    run(work())


@pytest.mark.parametrize("what", [b"crash", b"bug"])
@pytest.mark.invariant("TG-I15")
def test_a_worker_that_dies_takes_one_request_with_it(started: Any, what: bytes) -> None:
    async def work() -> None:
        async with started() as bench:
            (before,) = bench.pool.pids
            with pytest.raises(WorkerGone) as caught:
                await bench.run(what)
            assert caught.value.status == 503
            assert b"after" in await bench.run(b"after")  # by the next worker, with the pack loaded
            assert bench.pool.pids != (before,)
            assert not alive(before)
            assert bench.deaths == {Death.crash: 1}

    run(work())


@pytest.mark.parametrize("what", [b"sleep 60", b"spin 60"])
def test_work_past_its_deadline_is_killed(started: Any, what: bytes) -> None:
    async def work() -> None:
        async with started(seconds=0.5) as bench:
            (before,) = bench.pool.pids
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
            assert files.count("socket:") == 1

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
            (before,) = bench.pool.pids
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


def test_a_pool_whose_workers_do_not_start_raises(site: Site) -> None:
    async def work() -> None:
        pool = LocalPool(
            (sys.executable, "-c", "raise SystemExit(1)"),
            limits=Limits(
                workers=2,
                queue=1,
                seconds=1,
                memory_bytes=1024 * MIB,
                pack_bytes=1,
                reply_bytes=1,
                cache_bytes=1,
            ),
            trust_store=site.trust,
            on_death=lambda _: None,
        )
        with pytest.raises(WorkerGone):
            await pool.start()
        assert pool.pids == ()

    run(work())


PARENT = """
import asyncio, os, signal, sys
from pathlib import Path
from tensorguard.serving.workers import Limits, LocalPool

async def main():
    limits = Limits(workers=2, queue=1, seconds=30, memory_bytes=1 << 30, pack_bytes=1 << 20,
                    reply_bytes=1 << 20, cache_bytes=1 << 20)
    pool = LocalPool((sys.executable, "-E", "-P", sys.argv[1]), limits=limits,
                     trust_store=Path(sys.argv[2]), on_death=lambda _: None)
    await pool.start()
    print(*pool.pids, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_workers_end_with_a_gateway_that_is_killed(site: Site) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(Path(fake_worker.__file__)), str(site.trust)],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.kill()
        parent.wait()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
