"""Workers as processes of this machine, each at the other end of a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from tensorguard.serving.links import Body
from tensorguard.serving.messages import Reply, Request, Start, ask
from tensorguard.serving.pool import EvaluationTimedOut

ENVIRONMENT: Final[Mapping[str, str]] = {  # all that a worker gets: no secret is inherited
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "OMP_NUM_THREADS": "1",  # a worker is one core; thread pools also reserve address space
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
START_SECONDS: Final = 60  # imports on a slow disk
STOP_SECONDS: Final = 2.0  # for a worker to see that we are gone, before it is killed
STREAM_BUFFER: Final = 1 << 20  # bytes read ahead of one worker


def worker_arguments(backend: str, *, threads: int) -> tuple[str, ...]:
    """Return a worker's command after the interpreter. Python's own variables are ignored."""
    return ("-E", "-P", "-m", "tensorguard.serving.worker", backend, str(threads))


class LocalLink:
    """One process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer

    @property
    def name(self) -> str:
        """Return the process id."""
        return str(self._process.pid)

    @property
    def gone(self) -> bool:
        """Whether its end of the pipe is closed."""
        return self._reader.at_eof()

    async def ask(
        self, request: Request, *bodies: Body, seconds: float, limit: int
    ) -> tuple[Reply, bytes]:
        """Ask over the pipe."""
        contents = [body.content for body in bodies]
        try:
            async with asyncio.timeout(seconds):
                return await ask(self._reader, self._writer, request, *contents, limit=limit)
        except TimeoutError as error:
            raise EvaluationTimedOut(f"the work took longer than {seconds:g} s") from error

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def wait(self) -> str:
        """Wait for the process."""
        status = await self._process.wait()
        self._writer.close()
        return f"exit status {status}"

    async def end(self) -> None:
        """Close the pipe, which ends the worker; kill it if it does not see that."""
        self._writer.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()


class LocalLauncher:
    """Starts processes with `arguments` for this interpreter."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)

    async def open(self) -> None:
        """Do nothing: this machine is always there."""

    async def close(self) -> None:
        """Do nothing: this machine stays."""

    async def share(self, data: bytes) -> Body:
        """Return the bytes themselves: a pipe takes nothing else."""
        return Body.of(data)

    async def launch(self, start: Start) -> LocalLink:
        """Start a process and give it its limits."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._arguments),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env=dict(ENVIRONMENT),
                cwd="/",
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=STREAM_BUFFER)
        link = LocalLink(process, reader, writer)
        try:
            await link.ask(start, seconds=START_SECONDS, limit=0)
        except BaseException:
            link.kill()
            await link.end()
            raise
        return link
