"""The pool of local worker processes. A worker that fails is killed, never argued with.

Each slot has a keeper: it starts a process, loads every pack into it, offers it, waits for its end,
and starts the next. A request borrows a worker; whatever ends the borrowing other than a complete
reply (a deadline, a lost pipe, a cancellation) ends the worker too, for its state is then unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from tensorguard.errors import TensorGuardError
from tensorguard.serving.messages import (
    CheckKeys,
    Done,
    DropPack,
    Evaluate,
    KeysWanted,
    LoadPack,
    Refused,
    Reply,
    Request,
    Start,
    WorkerGone,
    ask,
)
from tensorguard.serving.pool import Answer, Death, EvaluationTimedOut, Job, PoolStatus, QueueFull
from tensorguard.wire.problems import RemoteProblem

log = logging.getLogger(__name__)

ENVIRONMENT: Final[Mapping[str, str]] = {  # all that a worker gets: no secret is inherited
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "OMP_NUM_THREADS": "1",  # a worker is one core; thread pools also reserve address space
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
START_SECONDS = 60  # imports on a slow disk, and encoding one pack's weights
BACKOFF = (0.05, 5.0)  # seconds between starts of workers that do not live long
LONG_LIFE = 10.0  # seconds after which a worker's end starts the backoff anew
STOP_SECONDS = 2.0  # for a worker to see that we are gone, before it is killed
RETRY_WHEN_FULL = 2  # seconds
STREAM_BUFFER = 1 << 20  # bytes read ahead of one worker


def worker_program(backend: str, *, threads: int) -> tuple[str, ...]:
    """Return the command of a worker with this backend. Python's own variables are ignored."""
    module = "tensorguard.serving.worker"
    return (sys.executable, "-E", "-P", "-m", module, backend, str(threads))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of the pool."""

    workers: int
    queue: int  # requests that wait for a worker
    seconds: float  # of one request
    memory_bytes: int  # address space of one worker
    pack_bytes: int
    reply_bytes: int
    cache_bytes: int  # evaluation-key frames that one worker keeps loaded


@dataclass(eq=False)
class _Worker:
    """One running process."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    started: float
    packs: set[str] = field(default_factory=set)  # loaded, or tried and refused
    warm: set[tuple[str, str]] = field(default_factory=set)  # evaluation keys that it was given
    broken: bool = False
    timed_out: bool = False

    async def ask(
        self, request: Request, *bodies: bytes, seconds: float, limit: int
    ) -> tuple[Reply, bytes]:
        """Ask, and break the worker unless a whole reply came in time."""
        try:
            async with asyncio.timeout(seconds):
                reply, body = await ask(self.reader, self.writer, request, *bodies, limit=limit)
        except TimeoutError as error:
            self.timed_out = True
            self.kill()
            raise EvaluationTimedOut(f"the work took longer than {seconds:g} s") from error
        except BaseException:  # a lost pipe or a cancellation: its state is unknown now
            self.kill()
            raise
        if isinstance(reply, Refused):
            raise RemoteProblem(reply.problem)
        return reply, body

    def kill(self) -> None:
        """End the process at once. It cannot refuse."""
        self.broken = True
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


class LocalPool:
    """Worker processes of this machine, one request each at a time."""

    def __init__(
        self,
        program: Sequence[str],
        *,
        limits: Limits,
        trust_store: Path,
        on_death: Callable[[Death], None],
    ) -> None:
        self._program = tuple(program)
        self._on_death = on_death
        self._limits = limits
        self._trust_store = trust_store
        self._packs: dict[str, bytes] = {}
        self._idle: list[_Worker] = []
        self._alive: set[_Worker] = set()
        self._waiting: deque[asyncio.Future[_Worker]] = deque()
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start every worker. Raises `WorkerGone` when one does not come up."""
        count = self._limits.workers
        results = await asyncio.gather(
            *(self._spawn() for _ in range(count)), return_exceptions=True
        )
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            await self.stop()
            raise failures[0]
        self._keepers = [asyncio.create_task(self._keep(worker)) for worker in tuple(self._alive)]

    async def stop(self) -> None:
        """Close every worker's pipe, then kill what is left."""
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._end(worker) for worker in tuple(self._alive)))
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(WorkerGone("the gateway is stopping"))

    async def load(self, pack_id: str, data: bytes) -> None:
        """Load a pack into one worker to see that it loads, then into the idle others."""
        async with self._borrow() as worker:
            await self._load(worker, pack_id, data)
            self._packs[pack_id] = data
        await self._refresh()

    async def drop(self, pack_id: str) -> None:
        """Forget a pack; idle workers are told now, busy ones when they are done."""
        self._packs.pop(pack_id, None)
        await self._refresh()

    async def check_keys(self, pack_id: str, tenant: str, digest: str, frame: bytes) -> None:
        """Parse evaluation keys in a worker, which then keeps them."""
        async with self._borrow() as worker:
            request = CheckKeys(pack_id=pack_id, tenant=tenant, digest=digest)
            await self._work(worker, request, frame)
            worker.warm.add((tenant, digest))

    async def evaluate(self, job: Job) -> Answer:
        """Evaluate one ciphertext in the worker that is likeliest to hold its keys."""
        arrived = time.perf_counter()
        async with self._borrow(job.tenant, job.digest) as worker:
            began = time.perf_counter()
            request = Evaluate(pack_id=job.pack_id, tenant=job.tenant, digest=job.digest)
            reply, result = await self._work(worker, request, job.ciphertext)
            if isinstance(reply, KeysWanted):
                keys = await job.fetch_keys()
                request = msgspec.structs.replace(request, keys_size=len(keys))
                reply, result = await self._work(worker, request, keys, job.ciphertext)
            if not isinstance(reply, Done):
                worker.kill()
                raise WorkerGone("the worker gave no result")
            worker.warm.add((job.tenant, job.digest))
            return Answer(result, began - arrived, reply.seconds)

    def status(self) -> PoolStatus:
        """Return how the pool is."""
        return PoolStatus(
            wanted=self._limits.workers,
            alive=sum(not worker.broken for worker in self._alive),
            waiting=len(self._waiting),
        )

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the workers."""
        return tuple(worker.process.pid for worker in self._alive)

    # --- borrowing ------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _borrow(self, tenant: str = "", digest: str = "") -> AsyncIterator[_Worker]:
        worker = await self._take(tenant, digest)
        try:
            yield worker
        finally:
            await self._return(worker)

    async def _take(self, tenant: str, digest: str) -> _Worker:
        able = [w for w in self._idle if not w.reader.at_eof()]
        if able:
            warm = (worker for worker in able if (tenant, digest) in worker.warm)
            worker = next(warm, able[0])
            self._idle.remove(worker)
            return worker
        if len(self._waiting) >= self._limits.queue:
            raise QueueFull(
                f"{self._limits.queue} requests wait already", retry_after=RETRY_WHEN_FULL
            )
        waiter: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._limits.seconds * 2):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._offer(waiter.result())  # it came just as we gave up
            if isinstance(error, TimeoutError):
                raise QueueFull("no worker became free in time") from error
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    async def _return(self, worker: _Worker) -> None:
        """Offer a worker again, with the packs that it should have."""
        if not worker.broken:
            await self._synchronise(worker)
        if not worker.broken:
            self._offer(worker)

    def _offer(self, worker: _Worker) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(worker)
                return
        self._idle.append(worker)

    async def _work(
        self, worker: _Worker, request: CheckKeys | Evaluate, *bodies: bytes
    ) -> tuple[Reply, bytes]:
        limits = self._limits
        return await worker.ask(request, *bodies, seconds=limits.seconds, limit=limits.reply_bytes)

    # --- packs ----------------------------------------------------------------------------

    async def _load(self, worker: _Worker, pack_id: str, data: bytes) -> None:
        worker.packs.add(pack_id)
        await worker.ask(LoadPack(pack_id=pack_id), data, seconds=START_SECONDS, limit=0)

    async def _refresh(self) -> None:
        for worker in tuple(self._idle):
            if worker in self._idle:  # nobody took it while another one was refreshed
                self._idle.remove(worker)
                await self._return(worker)

    async def _synchronise(self, worker: _Worker) -> None:
        for pack_id in worker.packs - self._packs.keys():
            worker.packs.discard(pack_id)
            with contextlib.suppress(TensorGuardError):  # a broken worker is seen by its keeper
                await worker.ask(DropPack(pack_id=pack_id), seconds=START_SECONDS, limit=0)
        for pack_id in self._packs.keys() - worker.packs:
            try:
                await self._load(worker, pack_id, self._packs[pack_id])
            except TensorGuardError as error:
                log.warning(
                    "a worker cannot load a pack", extra={"pack": pack_id, "why": str(error)}
                )

    # --- keeping --------------------------------------------------------------------------

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *self._program,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env=dict(ENVIRONMENT),
                cwd="/",
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=STREAM_BUFFER)
        worker = _Worker(process, reader, writer, started=time.monotonic())
        limits = self._limits
        start = Start(
            trust_store=str(self._trust_store),
            memory_bytes=limits.memory_bytes,
            seconds=math.ceil(max(limits.seconds, START_SECONDS)),
            pack_bytes=limits.pack_bytes,
            cache_bytes=limits.cache_bytes,
        )
        try:
            await worker.ask(start, seconds=START_SECONDS, limit=0)
        except BaseException:
            writer.close()
            await process.wait()
            raise
        self._alive.add(worker)
        await self._return(worker)
        return worker

    async def _keep(self, worker: _Worker) -> None:
        shortest, longest = BACKOFF
        delay = shortest
        while True:
            status = await worker.process.wait()
            self._bury(worker, status)
            if time.monotonic() - worker.started > LONG_LIFE:
                delay = shortest
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, longest)
                try:
                    worker = await self._spawn()
                except (TensorGuardError, OSError) as error:
                    log.critical("a worker does not start", extra={"why": str(error)})
                else:
                    break

    def _bury(self, worker: _Worker, status: int) -> None:
        worker.broken = True
        worker.writer.close()
        self._alive.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        cause = Death.deadline if worker.timed_out else Death.crash
        self._on_death(cause)
        log.warning(
            "a worker ended", extra={"pid": worker.process.pid, "exit": status, "cause": cause}
        )

    async def _end(self, worker: _Worker) -> None:
        worker.broken = True
        worker.writer.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await worker.process.wait()
        except TimeoutError:
            worker.kill()
            await worker.process.wait()
        self._alive.discard(worker)
