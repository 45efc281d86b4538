"""The pool of workers, wherever they run. A worker that fails is killed, never argued with.

Each slot has a keeper: it launches a worker, loads every pack into it, offers it, waits for its end,
and launches the next. A request borrows a worker; whatever ends the borrowing other than a complete
reply (a deadline, a lost connection, a cancellation) ends the worker too, for its state is then unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import msgspec

from tensorguard.crypto.trust import files_of
from tensorguard.errors import TensorGuardError
from tensorguard.serving.cache import BoundedCache
from tensorguard.serving.estimates import Estimates
from tensorguard.serving.links import Body, Launcher
from tensorguard.serving.messages import (
    CheckKeys,
    Done,
    DropPack,
    Evaluate,
    KeysWanted,
    LoadPack,
    Reply,
    Start,
    WorkerGone,
)
from tensorguard.serving.pool import (
    Answer,
    DeadlineMissed,
    Death,
    Job,
    PoolStatus,
    QueueFull,
)
from tensorguard.serving.slots import Limits, Waiter, Worker

log = logging.getLogger(__name__)

LOAD_SECONDS: Final = 60  # encoding one pack's weights
BACKOFF: Final = (0.05, 5.0)  # seconds between starts of workers that do not live long
LONG_LIFE: Final = 10.0  # seconds after which a worker's end starts the backoff anew
RETRY_WHEN_FULL: Final = 2  # seconds


class WorkerPool:
    """Workers of one launcher, one request each at a time."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        limits: Limits,
        trust_store: Path,
        on_death: Callable[[Death], None],
    ) -> None:
        self._launcher = launcher
        self._on_death = on_death
        self._limits = limits
        self._trust_store = trust_store
        self._packs: dict[str, Body] = {}
        self._pending: Counter[str] = Counter()  # requests of each pack
        self._leaving: set[str] = set()  # packs that go when they have no more requests
        self._shared: BoundedCache[tuple[str, str], Body] = BoundedCache(limit=limits.shared_bytes)
        self._estimates = Estimates()
        self._idle: list[Worker] = []
        self._alive: set[Worker] = set()
        self._waiting: deque[Waiter] = deque()
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Launch every worker. Raises `WorkerGone` when none comes up; the others are tried again."""
        await self._launcher.open()
        count = self._limits.workers
        results = await asyncio.gather(
            *(self._spawn() for _ in range(count)), return_exceptions=True
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        if len(failures) == count:
            await self.stop()
            raise failures[0]
        for failure in failures:
            log.critical("a worker does not start", extra={"why": str(failure)})
        self._keepers = [
            asyncio.create_task(self._keep(None if isinstance(result, BaseException) else result))
            for result in results
        ]

    async def stop(self) -> None:
        """End every worker, and tell those that wait."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._end(worker) for worker in tuple(self._alive)))
        while self._waiting:
            waiter = self._waiting.popleft().worker
            if not waiter.done():
                waiter.set_exception(WorkerGone("the gateway is stopping"))
        await self._launcher.close()

    async def load(self, pack_id: str, data: bytes) -> None:
        """Load a pack into one worker to see that it loads, then into the idle others."""
        pack = await self._launcher.share(data)
        async with self._borrow() as worker:
            await self._load(worker, pack_id, pack)
            self._packs[pack_id] = pack
            self._leaving.discard(pack_id)
        await self._refresh()

    async def drop(self, pack_id: str) -> None:
        """Forget a pack once what waits for it is answered; workers are told when they are idle."""
        self._leaving.add(pack_id)
        if not self._pending[pack_id]:
            await self._forget(pack_id)

    async def _forget(self, pack_id: str) -> None:
        self._leaving.discard(pack_id)
        self._packs.pop(pack_id, None)
        self._estimates.forget(pack_id)
        await self._refresh()

    async def check_keys(self, pack_id: str, tenant: str, digest: str, frame: bytes) -> None:
        """Parse evaluation keys in a worker, which then keeps them."""
        async with self._borrow() as worker:
            request = CheckKeys(pack_id=pack_id, tenant=tenant, digest=digest)
            await self._work(worker, request, Body.of(frame))
            worker.warm.add((tenant, digest))

    async def evaluate(self, job: Job) -> Answer:
        """Evaluate one ciphertext in the worker that is likeliest to hold its keys."""
        self._pending[job.pack_id] += 1
        try:
            return await self._evaluate(job)
        finally:
            self._pending[job.pack_id] -= 1
            if not self._pending[job.pack_id]:
                del self._pending[job.pack_id]
                if job.pack_id in self._leaving:
                    await self._forget(job.pack_id)

    async def _evaluate(self, job: Job) -> Answer:
        arrived = time.perf_counter()
        async with self._borrow(job) as worker:
            began = time.perf_counter()
            request = Evaluate(pack_id=job.pack_id, tenant=job.tenant, digest=job.digest)
            ciphertext = Body.of(job.ciphertext)
            reply, result = await self._work(worker, request, ciphertext)
            if isinstance(reply, KeysWanted):
                keys = await self._keys(job)
                request = msgspec.structs.replace(request, keys_size=keys.size)
                reply, result = await self._work(worker, request, keys, ciphertext)
            if not isinstance(reply, Done):
                worker.kill()
                raise WorkerGone("the worker gave no result")
            worker.warm.add((job.tenant, job.digest))
            self._estimates.saw(job.pack_id, reply.seconds)
            return Answer(result, began - arrived, reply.seconds)

    async def _keys(self, job: Job) -> Body:
        """Return a tenant's evaluation keys, from the launcher's place where it keeps them."""
        name = (job.tenant, job.digest)
        if (held := self._shared.get(name)) is not None:
            return held
        keys = await self._launcher.share(await job.fetch_keys())
        if self._limits.shared_bytes:
            self._shared.put(name, keys, size=keys.size)
        return keys

    def status(self) -> PoolStatus:
        """Return how the pool is."""
        return PoolStatus(
            wanted=self._limits.workers,
            alive=sum(not worker.broken for worker in self._alive),
            waiting=len(self._waiting),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Return what the workers are called."""
        return tuple(worker.link.name for worker in self._alive)

    # --- borrowing ------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _borrow(self, job: Job | None = None) -> AsyncIterator[Worker]:
        worker = await self._take(job)
        try:
            yield worker
        finally:
            await self._return(worker)

    async def _take(self, job: Job | None) -> Worker:
        patience = self._patience(job)
        able = [w for w in self._idle if not w.link.gone]
        if able:
            warm = (w for w in able if job is not None and (job.tenant, job.digest) in w.warm)
            worker = next(warm, able[0])
            self._idle.remove(worker)
            return worker
        if len(self._waiting) >= self._limits.queue:
            raise QueueFull(
                f"{self._limits.queue} requests wait already", retry_after=RETRY_WHEN_FULL
            )
        expected = 0.0 if job is None else self._estimates.of(job.pack_id)
        waiter = Waiter(asyncio.get_running_loop().create_future(), expected)
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(min(self._limits.seconds * 2, patience)):
                return await waiter.worker
        except BaseException as error:
            given = waiter.worker
            if given.done() and not given.cancelled() and given.exception() is None:
                self._offer(given.result())  # it came just as we gave up
            if isinstance(error, TimeoutError):
                if patience < self._limits.seconds * 2:
                    raise DeadlineMissed("no worker became free in time") from error
                raise QueueFull("no worker became free in time") from error
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _patience(self, job: Job | None) -> float:
        """Return how long a request may wait. Raises `DeadlineMissed` when no wait is short enough.

        An evaluation that has begun is not cut short: a caller cannot make us kill workers.
        """
        if job is None or job.deadline is None:
            return math.inf
        left = job.deadline - time.perf_counter() - self._estimates.of(job.pack_id)
        wait = 0.0
        if not self._idle:
            workers = max(1, self.status().alive)
            wait = sum(waiter.seconds for waiter in self._waiting) / workers
        if wait > left:
            raise DeadlineMissed("the evaluation would end after its deadline")
        return left

    async def _return(self, worker: Worker) -> None:
        """Offer a worker again, with the packs that it should have."""
        if not worker.broken:
            await self._synchronise(worker)
        if not worker.broken:
            self._offer(worker)

    def _offer(self, worker: Worker) -> None:
        while self._waiting:
            waiter = self._waiting.popleft().worker
            if not waiter.done():
                waiter.set_result(worker)
                return
        self._idle.append(worker)

    async def _work(
        self, worker: Worker, request: CheckKeys | Evaluate, *bodies: Body
    ) -> tuple[Reply, bytes]:
        limits = self._limits
        return await worker.ask(request, *bodies, seconds=limits.seconds, limit=limits.reply_bytes)

    # --- packs ----------------------------------------------------------------------------

    async def _load(self, worker: Worker, pack_id: str, pack: Body) -> None:
        worker.packs.add(pack_id)
        trusted = await asyncio.to_thread(files_of, self._trust_store)
        request = LoadPack(
            pack_id=pack_id, trusted={name: len(data) for name, data in trusted.items()}
        )
        keys = Body.of(b"".join(trusted.values()))
        await worker.ask(request, keys, pack, seconds=LOAD_SECONDS, limit=0)

    async def _refresh(self) -> None:
        for worker in tuple(self._idle):
            if worker in self._idle:  # nobody took it while another one was refreshed
                self._idle.remove(worker)
                await self._return(worker)

    async def _synchronise(self, worker: Worker) -> None:
        for pack_id in worker.packs - self._packs.keys():
            worker.packs.discard(pack_id)
            with contextlib.suppress(TensorGuardError):  # a broken worker is seen by its keeper
                await worker.ask(DropPack(pack_id=pack_id), seconds=LOAD_SECONDS, limit=0)
        for pack_id in self._packs.keys() - worker.packs:
            try:
                await self._load(worker, pack_id, self._packs[pack_id])
            except TensorGuardError as error:
                log.warning(
                    "a worker cannot load a pack", extra={"pack": pack_id, "why": str(error)}
                )

    # --- keeping --------------------------------------------------------------------------

    async def _spawn(self) -> Worker:
        limits = self._limits
        start = Start(
            memory_bytes=limits.memory_bytes,
            seconds=math.ceil(max(limits.seconds, LOAD_SECONDS)),
            pack_bytes=limits.pack_bytes,
            cache_bytes=limits.cache_bytes,
        )
        worker = Worker(await self._launcher.launch(start), started=time.monotonic())
        self._alive.add(worker)
        await self._return(worker)
        return worker

    async def _keep(self, worker: Worker | None) -> None:
        shortest, longest = BACKOFF
        delay = shortest
        while True:
            if worker is not None:
                self._bury(worker, await worker.link.wait())
                if time.monotonic() - worker.started > LONG_LIFE:
                    delay = shortest
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)
            try:
                worker = await self._spawn()
            except (TensorGuardError, OSError) as error:
                worker = None
                log.critical("a worker does not start", extra={"why": str(error)})

    def _bury(self, worker: Worker, how: str) -> None:
        worker.broken = True
        self._alive.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        cause = Death.deadline if worker.timed_out else Death.crash
        self._on_death(cause)
        log.warning(
            "a worker ended", extra={"worker": worker.link.name, "how": how, "cause": cause}
        )

    async def _end(self, worker: Worker) -> None:
        worker.broken = True
        await worker.link.end()
        self._alive.discard(worker)
