"""A gateway whose workers are on two Ray nodes, one of which is lost in the middle of the load."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support.callers import Caller, make_caller
from support.production import free_port
from support.ray_nodes import Cluster, cluster
from support.serving import Gateway, Shared, Site, gateway, network, sample, until
from tensorguard.serving.local_workers import worker_arguments
from tensorguard.serving.messages import Start

pytestmark = pytest.mark.xdist_group("ray")
REQUESTS, CALLERS = 200, 8
LOST_AFTER = 60  # requests
EXPECTED = np.array([network(1).raw(sample(seed)[None])[0] for seed in range(REQUESTS)])


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(free_port(), 1, 1) as running:
        yield running


@pytest.fixture
def served(nodes: Cluster, tmp_path: Path) -> Iterator[Gateway]:
    site = Site(tmp_path / "home")
    site.add("linear", network(1))
    with gateway(
        site,
        **nodes.variables,
        TG_SERVING_POOL="ray",
        TG_RAY_ADDRESS=nodes.address,
        TG_MAX_WORKERS="2",
    ) as running:
        yield running


def test_a_node_with_another_version_gets_no_work(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in nodes.variables.items():
        monkeypatch.setenv(name, value)
    from tensorguard.serving import ray_workers

    launcher = ray_workers.RayLauncher(
        nodes.address, worker_arguments("tenseal", threads=1), cores=1, version="0.0.0"
    )
    start = Start(memory_bytes=4 << 30, seconds=60, pack_bytes=1 << 20, cache_bytes=1 << 20)

    async def work() -> None:
        await launcher.open()
        try:
            with pytest.raises(ray_workers.RayNodeDiffers, match=r"0\.0\.0"):
                await launcher.launch(start)
        finally:
            await launcher.close()

    asyncio.run(work())


def caller_of(running: Gateway) -> Caller:
    with running.client() as http:
        until(lambda: http.get("/ready").status_code == 200, seconds=30)
    rows = running.log.read_text().splitlines()
    pack = next(row for row in rows if "a pack is served" in row).split('"pack": "')[1][:64]
    return make_caller(Shared(running, pack, pack), "tenant-a")


@pytest.mark.invariant("TG-I76")
def test_a_node_that_is_lost_under_load_costs_answers_but_no_wrong_one(
    nodes: Cluster, served: Gateway
) -> None:
    caller = caller_of(served)
    outcomes: Counter[int] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    lock, lost = threading.Lock(), threading.Event()

    def call(seed: int) -> None:
        nonlocal slowest
        began = time.monotonic()
        answer = caller.infer(caller.keys.encrypt(sample(seed)))
        took = time.monotonic() - began
        good = answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        if answer.status_code == 200:
            error = np.abs(caller.keys.decrypt(answer.content) - EXPECTED[seed]).max()
            good = error < 1e-3
        with lock:
            slowest = max(slowest, took)
            outcomes[answer.status_code] += 1
            if not good:
                wrong.append(f"{seed}: {answer.status_code} {answer.text[:300]}")
            if outcomes.total() == LOST_AFTER:
                lost.set()

    with ThreadPoolExecutor(CALLERS) as threads:
        calls = [threads.submit(call, seed) for seed in range(REQUESTS)]
        assert lost.wait(60)
        nodes.kill_second_node()
        for done in calls:
            done.result(60)
    print(f"\nanswers: {dict(outcomes)}, the slowest after {slowest:.2f} s")
    assert wrong == []
    assert outcomes.total() == REQUESTS
    assert outcomes[200] > REQUESTS // 2
    # the pool goes on with the node that is left, and says so
    until(lambda: served.deaths() == 1, seconds=30)
    for seed in range(5):
        answer = caller.infer(caller.keys.encrypt(sample(seed)))
        assert answer.status_code == 200, answer.text
        assert np.abs(caller.keys.decrypt(answer.content) - EXPECTED[seed]).max() < 1e-3
    with served.client() as http:
        ready = http.get("/ready")
        assert ready.status_code == 200
        assert ready.json()["checks"]["workers"] == "1 of 2 alive"
    assert served.metric("tensorguard_serving_workers") == 1
    caller.http.close()
