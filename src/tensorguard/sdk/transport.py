"""HTTP as the SDK does it: bounded answers, bounded retries, problems as errors, never a bare token.

A token is sent over TLS, or to this machine; redirects are not followed, so that it goes nowhere else.
"""

from __future__ import annotations

import ipaddress
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from tensorguard import __version__
from tensorguard.errors import ConfigurationError, TooLarge, Unavailable
from tensorguard.wire.problems import Problem, RemoteProblem

MAX_ANSWER = 64 << 20  # bytes; a result frame of the largest parameters has about 1 MiB
ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0  # seconds
RETRIED = frozenset({429, 503})
UNAUTHENTICATED = 401

TokenProvider = Callable[[], str]


class InsecureUrl(ConfigurationError):
    code = "insecure_url"
    remedy = "Use an https URL; plain http is for the loopback address only."


class ServerUnreachable(Unavailable):
    code = "server_unreachable"
    remedy = "Check the URL and that the server runs; then try again."


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer, and the seconds from first byte out to last byte in."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


def checked_url(url: str) -> str:
    """Return `url` without a final slash, if a token may be sent to it. Raises `InsecureUrl`."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or parts.scheme not in {"http", "https"}:
        raise InsecureUrl(f"{url[:200]} is not an http or https URL")
    if parts.scheme == "http" and not _is_loopback(host):
        raise InsecureUrl(f"{host} would get the token without TLS")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Transport:
    """Sends requests with a fresh bearer token and retries what the server asks to retry."""

    def __init__(
        self,
        base_url: str,
        token_provider: TokenProvider,
        *,
        timeout: float,
        verify: ssl.SSLContext | None = None,
        http: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._token = token_provider
        self._sleep = sleep
        self._client = httpx.Client(
            base_url=checked_url(base_url),
            timeout=timeout,
            verify=verify if verify is not None else True,
            transport=http,
            trust_env=False,
            headers={"User-Agent": f"tensorguard-sdk/{__version__}"},
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer. Raises `RemoteProblem`, or `ServerUnreachable`.

        429, 503 and lost connections are tried again, a bounded number of times; a refused token
        once, with a fresh one. So only idempotent requests may be sent.
        """
        renewed = False
        last = 0.0
        for attempt in range(ATTEMPTS):
            if attempt:
                self._sleep(last)
            try:
                return self._once(method, path, content=content, headers=headers)
            except RemoteProblem as error:
                wait = error.retry_after if error.retry_after is not None else _backoff(attempt)
                if error.status == UNAUTHENTICATED and not renewed:
                    renewed, wait = True, 0
                elif error.status not in RETRIED or wait > LONGEST_WAIT:
                    raise
                if attempt == ATTEMPTS - 1:
                    raise
                last = float(wait)
            except httpx.TransportError as error:
                if isinstance(error, httpx.TimeoutException) or attempt == ATTEMPTS - 1:
                    raise ServerUnreachable(
                        f"{self._client.base_url} does not answer: {type(error).__name__}"
                    ) from error
                last = _backoff(attempt)
        raise ServerUnreachable("no attempt is left")  # the loop has returned or raised before

    def _once(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        given = {**(headers or {}), "Authorization": f"Bearer {self._token()}"}
        began = time.perf_counter()
        with self._client.stream(method, path, content=content, headers=given) as response:
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise TooLarge(f"the server's answer is over {MAX_ANSWER} bytes")
        seconds = time.perf_counter() - began
        if not response.is_success:
            raise RemoteProblem(
                Problem.from_response(
                    bytes(body),
                    status=response.status_code,
                    retry_after=response.headers.get("retry-after"),
                )
            )
        return Answer(response.status_code, response.headers, bytes(body), seconds)


def _backoff(attempt: int) -> float:
    """Return a growing wait with jitter, so that many clients do not come back at once."""
    spread: float = random.uniform(0.5, 1.0)  # noqa: S311 -- jitter, no secret
    return min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * spread
