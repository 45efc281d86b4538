"""From the bytes of a request to the bytes of its format: media type and bounded decompression."""

from __future__ import annotations

import zlib
from typing import Final

from cramjam import DecompressionError, snappy

from tensorguard.errors import MalformedInput, TooLarge, UnsupportedMedia

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

_GZIP = 16 + zlib.MAX_WBITS
_MAX_MEMBERS = 64  # of one gzip stream; more only costs us time


def media_type(header: str | None, known: frozenset[str]) -> str:
    """Return the media type without parameters. Raises `UnsupportedMedia`."""
    found = (header or "").partition(";")[0].strip().lower()
    if found not in known:
        raise UnsupportedMedia(f"the content type must be one of: {', '.join(sorted(known))}")
    return found


def unsnap(body: bytes, encoding: str | None, *, limit: int) -> bytes:
    """Return what Prometheus sent: one snappy block, whose head says how much it holds."""
    if (encoding or "snappy").strip().lower() != "snappy":
        raise UnsupportedMedia("the content encoding must be snappy")
    try:
        if snappy.decompress_raw_len(body) > limit:
            raise TooLarge(f"the body may have at most {limit} bytes when decompressed")
        return bytes(snappy.decompress_raw(body))
    except DecompressionError as error:
        raise MalformedInput("the body is not a snappy block") from error


def decompress(body: bytes, encoding: str | None, *, limit: int) -> bytes:
    """Return the body without its Content-Encoding, never more than `limit` bytes."""
    match (encoding or "identity").strip().lower():
        case "identity":
            plain = body
        case "gzip":
            plain = _gunzip(body, limit)
        case _:
            raise UnsupportedMedia("the content encoding must be gzip or identity")
    if len(plain) > limit:
        raise TooLarge(f"the body may have at most {limit} bytes when decompressed")
    return plain


def _gunzip(body: bytes, limit: int) -> bytes:
    plain = bytearray()
    for _ in range(_MAX_MEMBERS):
        member = zlib.decompressobj(_GZIP)
        try:
            plain += member.decompress(body, limit + 1 - len(plain))
        except zlib.error as error:
            raise MalformedInput("the body is not gzip") from error
        if len(plain) > limit:
            raise TooLarge(f"the body may have at most {limit} bytes when decompressed")
        if not member.eof:
            raise MalformedInput("the gzip stream is truncated")
        body = member.unused_data
        if not body:
            return bytes(plain)
    raise MalformedInput("the gzip stream has too many members")
