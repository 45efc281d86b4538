"""Workers on the nodes of a Ray cluster: Ray places them, carries bytes, and says when a node is lost.

Each worker is a Ray actor that supervises one process of its own. Packs and evaluation keys are put
into Ray's object store once and fetched from there by whichever node needs them. The nodes are ours:
they see what a local worker sees, ciphertexts and public keys, and Ray's own security is that of the
network between them (docs/serving.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from tensorguard import __version__
from tensorguard.errors import ConfigurationError, TensorGuardError, Unavailable
from tensorguard.serving import ray_actor
from tensorguard.serving.links import Body
from tensorguard.serving.messages import Reply, Request, Start, WorkerGone, encode, reply_of
from tensorguard.serving.pool import EvaluationTimedOut

try:
    import ray
    from ray import exceptions as ray_errors
except ImportError as _missing:
    raise ImportError("ray is not installed: pip install 'tensorguard[ray]'") from _missing

REACH_SECONDS: Final = 3.0  # for the head node's port to accept a connection
JOIN_SECONDS: Final = 10.0  # for this process to become a driver of the cluster
PLACE_SECONDS: Final = 30.0  # for a node to take an actor and its process to start
NODE_SECONDS: Final = 10.0  # after the actor's own deadline: then the node is taken for lost
END_SECONDS: Final = 5.0  # for an actor that was killed to be gone
INLINE: Final = 1 << 20  # smaller bodies go with the call
ACTOR_THREADS: Final = 4  # ready, one request, waiting for the end, and one to spare


class RayUnreachable(Unavailable):
    code = "ray_unreachable"
    remedy = "Start Ray on this machine as a node of the cluster that TG_RAY_ADDRESS names."


class RayNodeDiffers(ConfigurationError):
    code = "ray_node_differs"
    remedy = "Install the gateway's own version of tensorguard[ray] on every node."


class RayLink:
    """One actor."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self._name = name
        self._ended = asyncio.ensure_future(_await(actor.wait.remote()))

    @property
    def name(self) -> str:
        """Return the node's name and the process id there."""
        return self._name

    @property
    def gone(self) -> bool:
        """Whether Ray, or the actor, has said that it ended."""
        return self._ended.done()

    async def ask(
        self, request: Request, *bodies: Body, seconds: float, limit: int
    ) -> tuple[Reply, bytes]:
        """Ask the actor, whose clock decides; a node that stays silent after that is lost."""
        contents = [body.content for body in bodies]
        try:
            async with asyncio.timeout(seconds + NODE_SECONDS):
                call = self._actor.ask.remote(encode(request), seconds, limit, *contents)
                outcome, head, body = await _await(call)
        except TimeoutError as error:
            raise WorkerGone("the worker's node does not answer") from error
        if outcome == ray_actor.TIMED_OUT:
            raise EvaluationTimedOut(f"the work took longer than {seconds:g} s")
        if outcome != ray_actor.REPLY:
            raise WorkerGone("the worker ended during the request")
        return reply_of(head), body

    def kill(self) -> None:
        """End the actor, and with it the process."""
        with contextlib.suppress(ray_errors.RayError):
            ray.kill(self._actor)

    async def wait(self) -> str:
        """Wait until the process, the actor or its node is gone; then nothing of it is left."""
        try:
            return await asyncio.shield(self._ended)
        except WorkerGone as error:
            return str(error)
        finally:
            self.kill()

    async def end(self) -> None:
        """Kill the actor and wait until Ray says that it is gone."""
        self.kill()
        with contextlib.suppress(WorkerGone, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._ended


class RayLauncher:
    """Starts actors in the cluster at `address`, spread over its nodes."""

    def __init__(
        self, address: str, arguments: Sequence[str], *, cores: int, version: str = __version__
    ) -> None:
        self._version = version
        self._address, self._arguments = address, tuple(arguments)
        self._kind = ray.remote(ray_actor.WorkerActor).options(
            num_cpus=cores,
            max_concurrency=ACTOR_THREADS,
            max_restarts=0,  # a new worker is a new actor: whoever dies stays dead
            max_task_retries=0,  # what may have ended a worker is not sent to another
            scheduling_strategy="SPREAD",
        )

    async def open(self) -> None:
        """Join the cluster as a driver."""
        await asyncio.to_thread(join, self._address)

    async def close(self) -> None:
        """Leave the cluster; Ray ends every actor of a driver that leaves."""
        await asyncio.to_thread(ray.shutdown)

    async def share(self, data: bytes) -> Body:
        """Put large bytes into the object store; any node fetches them from there."""
        if len(data) < INLINE:
            return Body.of(data)
        try:
            return Body(len(data), await asyncio.to_thread(ray.put, data))
        except ray_errors.RayError as error:
            raise Unavailable("Ray's object store does not take the bytes") from error

    async def launch(self, start: Start) -> RayLink:
        """Have Ray place an actor, and wait until its process is ready."""
        actor: Any = self._kind.remote(self._arguments, encode(start))
        try:
            async with asyncio.timeout(PLACE_SECONDS):
                version, name = await _await(actor.ready.remote())
            if version != self._version:
                raise RayNodeDiffers(f"{name} runs tensorguard {version}, not {self._version}")
        except TimeoutError as error:
            ray.kill(actor)
            raise WorkerGone("no node of the cluster took a worker in time") from error
        except BaseException:
            ray.kill(actor)
            raise
        return RayLink(actor, name)


async def _await(reference: Any) -> Any:
    """Return what a call gave. Raises `WorkerGone` for whatever Ray says went wrong."""
    try:
        return await reference
    except ray_errors.RayError as error:
        raise WorkerGone(f"the worker ended: {type(error).__name__}") from error


def join(address: str) -> None:
    """Connect this process to the cluster. Raises `RayUnreachable`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), REACH_SECONDS):
            pass
    except OSError as error:
        raise RayUnreachable(f"nothing answers at {address}") from error
    _in_thread(lambda: _init(address), JOIN_SECONDS)


def _init(address: str) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of what we do on purpose
    try:
        ray.init(address=address, configure_logging=False, log_to_driver=False)
    except (ray_errors.RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise RayUnreachable(f"the cluster at {address} cannot be joined") from error


def probe(address: str) -> str | None:
    """Say why the cluster cannot be used, or None; for the gate."""
    try:
        join(address)
        ray.shutdown()
    except TensorGuardError as error:
        return f"{error}."
    return None


def _in_thread(work: Callable[[], None], seconds: float) -> None:
    """Run `work` in a thread: Ray takes the signals of a main thread, and waits without bound."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- handed to the caller
            failures.append(error)

    thread = threading.Thread(target=run, name="ray-init", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise RayUnreachable("the cluster did not answer in time")
    if failures:
        raise failures[0]
