"""Bodies are read after the caller is known, into bounded memory and within bounded time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from fastapi import Request

from tensorguard.errors import MalformedInput, UnsupportedMedia
from tensorguard.wire.frames import MEDIA_TYPE

BODY_SECONDS = 120  # 512 MiB at 36 Mbit/s; a body that trickles in is given up
JSON = "application/json"
T = TypeVar("T", bound=msgspec.Struct)


class BodyTooSlow(MalformedInput):
    code = "body_too_slow"
    status = 408
    remedy = "Send the whole body within two minutes."


async def read_octets(request: Request) -> bytes:
    """Return an octet-stream body. Raises `UnsupportedMedia` or `BodyTooSlow`."""
    return await _read(request, MEDIA_TYPE)


async def read_json(request: Request, kind: type[T]) -> T:
    """Return a JSON body as a message. Raises `UnsupportedMedia` or `MalformedInput`."""
    body = await _read(request, JSON)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedInput(f"the JSON body is not a {kind.__name__}: {error}") from error


async def _read(request: Request, media_type: str) -> bytes:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != media_type:
        raise UnsupportedMedia(f"the body must be {media_type}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("the body must not be compressed")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()  # its size is bounded by the middleware in front
    except TimeoutError as error:
        raise BodyTooSlow(f"the body did not arrive within {BODY_SECONDS} s") from error
