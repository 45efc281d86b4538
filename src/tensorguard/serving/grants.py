"""Who calls: a grant that the platform signed. The platform's keys are cached, never trusted forever.

The key set is read again when it is old, and when a token names a key that is not in it, but not more
often than every few seconds: an invented key id cannot make the gateway busy.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tensorguard.crypto.files import read_bounded
from tensorguard.errors import TensorGuardError, Unauthenticated, Unavailable
from tensorguard.wire.grants import Grant, verify_grant
from tensorguard.wire.jws import MAX_KEY_SET, KeySet, UnknownSigner

log = logging.getLogger(__name__)

FRESH_SECONDS = 60  # after which the set is read again: a key that was withdrawn is gone by then
STALE_SECONDS = 3600  # how long an old set serves while the platform is out of reach
REREAD_SECONDS = 5  # between reads for unknown keys
FETCH_SECONDS = 5  # of one HTTP request

Fetch = Callable[[], Awaitable[bytes]]


class GrantKeysUnknown(Unavailable):
    code = "grant_keys_unknown"
    remedy = "Check that TG_GRANT_JWKS names the platform's key set and that it can be read."


def source(location: str) -> Fetch:
    """Return the reader of `location`: a file, or an http(s) URL."""
    if urlsplit(location).scheme in {"http", "https"}:
        return lambda: _fetch(location)
    path = Path(location)

    async def read() -> bytes:
        return await asyncio.to_thread(read_bounded, path, limit=MAX_KEY_SET)

    return read


async def _fetch(url: str) -> bytes:
    """Read a bounded body; no redirects, no proxy from the environment."""
    body = bytearray()
    try:
        async with (
            asyncio.timeout(FETCH_SECONDS),
            httpx.AsyncClient(trust_env=False, timeout=FETCH_SECONDS) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise GrantKeysUnknown(f"the key set's URL answered {response.status_code}")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_KEY_SET:
                    raise GrantKeysUnknown("the key set is too large")
    except (httpx.HTTPError, TimeoutError, ssl.SSLError) as error:
        raise GrantKeysUnknown("the key set's URL cannot be read") from error
    return bytes(body)


class GrantVerifier:
    """Verifies bearer grants against a key set that it keeps fresh."""

    def __init__(
        self, fetch: Fetch, *, now: Callable[[], datetime], monotonic: Callable[[], float]
    ) -> None:
        self._fetch = fetch
        self._now = now
        self._monotonic = monotonic
        self._keys: KeySet | None = None
        self._read = float("-inf")  # when the set was last read well
        self._tried = float("-inf")
        self._lock = asyncio.Lock()

    async def verify(self, authorization: str | None) -> Grant:
        """Return the grant in an Authorization header. Raises `Unauthenticated`."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("a bearer grant is needed")
        keys = await self._current()
        try:
            return verify_grant(token.strip(), keys, self._now())
        except UnknownSigner:
            again = await self._refreshed(REREAD_SECONDS)
            if again is keys:
                raise
            return verify_grant(token.strip(), again, self._now())

    async def check(self) -> KeySet:
        """Return the key set, read if need be. Raises `GrantKeysUnknown`."""
        return await self._current()

    async def _current(self) -> KeySet:
        if self._keys is not None and self._monotonic() - self._read < FRESH_SECONDS:
            return self._keys
        return await self._refreshed(REREAD_SECONDS)

    async def _refreshed(self, pause: float) -> KeySet:
        async with self._lock:
            if self._monotonic() - self._tried >= pause:
                self._tried = self._monotonic()
                try:
                    self._keys = KeySet.from_json(await self._fetch())
                    self._read = self._monotonic()
                except TensorGuardError as error:
                    log.warning("the grant keys cannot be read", extra={"why": str(error)})
            if self._keys is None or self._monotonic() - self._read > STALE_SECONDS:
                raise GrantKeysUnknown("the platform's keys are not known yet")
            return self._keys
