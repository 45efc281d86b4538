"""A load generator that costs little: prepared requests over some connections, one in flight each."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import uvloop

from tensorguard.errors import TensorGuardError

SECONDS: Final = 60.0  # for one run
HEAD_END: Final = b"\r\n\r\n"


class LoadFailed(TensorGuardError):
    code = "bench_load_failed"
    remedy = "Look at the answer that is named; free the machine and run the bench again."


@dataclass(frozen=True, slots=True)
class Outcome:
    """How long it took: all of it, and each request."""

    seconds: float
    latencies: list[float]


def request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    return "\r\n".join(lines).encode() + HEAD_END + body


class _Caller(asyncio.Protocol):
    def __init__(self, requests: deque[bytes], latencies: list[float]) -> None:
        self._requests = requests
        self._latencies = latencies
        self._began = 0.0
        self._answer = b""
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def _next(self) -> None:
        assert self._transport is not None  # noqa: S101 - it is connected
        if not self._requests:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._began = time.perf_counter()
        self._transport.write(self._requests.popleft())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(HEAD_END)
        if not found:
            return
        size = 0
        for line in head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == b"content-length":
                size = int(value)
        if len(body) < size:
            return
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 204")):
            if not self.done.done():
                self.done.set_exception(LoadFailed(self._answer[-500:].decode(errors="replace")))
            self._requests.clear()
            return
        self._latencies.append(time.perf_counter() - self._began)
        self._answer = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(LoadFailed(f"the server closed the connection: {exc}"))


def send(port: int, requests: Sequence[bytes], *, connections: int) -> Outcome:
    """Send all requests; return the times. Raises `LoadFailed` for any answer but success."""
    return uvloop.run(_send(port, deque(requests), connections))


async def _send(port: int, requests: deque[bytes], connections: int) -> Outcome:
    latencies: list[float] = []
    began = time.perf_counter()
    loop = asyncio.get_running_loop()
    callers = []
    for _ in range(connections):
        _, caller = await loop.create_connection(
            lambda: _Caller(requests, latencies), "127.0.0.1", port
        )
        callers.append(caller)
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(caller.done for caller in callers))
    return Outcome(time.perf_counter() - began, latencies)
