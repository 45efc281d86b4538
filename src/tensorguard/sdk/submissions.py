"""What the platform refused for good and kept: listed, sent again after the cause is gone, or dropped.

with SubmissionClient(url, lambda: token) as submissions:
    for one in submissions.list():
        submissions.replay(one.id)
"""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Iterator
from typing import Final, Self
from urllib.parse import quote, urlencode

import httpx
import msgspec

from tensorguard.errors import VerificationError
from tensorguard.sdk.transport import TokenProvider, Transport

PATH: Final = "/api/v1/submissions"
TIMEOUT: Final = 60.0  # seconds without a byte
PAGE: Final = 100
MAX_PAGES: Final = 10_000  # a server that pages on for ever is broken


class SubmissionUnreadable(VerificationError):
    code = "submission_answer"
    remedy = "Check the platform's URL and that its version fits this client's."


class Submission(msgspec.Struct, frozen=True):
    """One refused request or sample; `raw` is the whole JSON that the platform gave."""

    id: int | str
    reason: str = ""
    received: str = ""
    device_id: str | None = None
    raw: bytes = b""


class _Page(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw]
    next_cursor: str | None = None


class SubmissionClient:
    """Speaks for a person, with a session or API token."""

    def __init__(
        self,
        url: str,
        token_provider: TokenProvider,
        *,
        verify: ssl.SSLContext | None = None,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(url, token_provider, timeout=TIMEOUT, verify=verify, http=http)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def list(self) -> Iterator[Submission]:
        """Yield the tenant's submissions."""
        query: dict[str, str | int] = {"limit": PAGE}
        for _ in range(MAX_PAGES):
            body = self._transport.request("GET", f"{PATH}?{urlencode(query)}").body
            try:
                page = msgspec.json.decode(body, type=_Page)
            except (msgspec.DecodeError, RecursionError) as error:
                raise SubmissionUnreadable("the answer is no page of submissions") from error
            for item in page.items:
                yield _submission(bytes(item))
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def show(self, number: str) -> Submission:
        """Return one submission with what was sent."""
        return _submission(self._transport.request("GET", _path(number)).body)

    def replay(self, number: str) -> bytes:
        """Let the platform take it again; return its answer as JSON."""
        headers = {"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"}
        path = f"{_path(number)}/replay"
        return self._transport.request("POST", path, content=b"", headers=headers).body

    def drop(self, number: str) -> None:
        """Delete it for good."""
        self._transport.request("DELETE", _path(number))


def _path(number: str) -> str:
    return f"{PATH}/{quote(number, safe='')}"


def _submission(body: bytes) -> Submission:
    try:
        read = msgspec.json.decode(body, type=Submission)
    except (msgspec.DecodeError, RecursionError) as error:
        raise SubmissionUnreadable("the answer is no submission") from error
    return msgspec.structs.replace(read, raw=body)
