"""One reader for each form that samples come in: the fast way, and the slow one behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tensorguard.errors import NotFound
from tensorguard.platform.telemetry import bodies, json_batches, otlp, otlp_fast, remote_write
from tensorguard.platform.telemetry.cache import KnownSeries
from tensorguard.platform.telemetry.points import NotPlain, Points, Rules

Decode = Callable[[bytes, Points], str | None]  # it returns the batch's id, if the body names one
WRITE_MEDIA: Final = "application/x-protobuf;proto=prometheus.WriteRequest"
OUR_MEDIA: Final = "application/json;schema=tensorguard.Batch"


@dataclass(frozen=True, slots=True)
class Reader:
    """How one form is read. `media` names it in a letter."""

    media: str
    slow: Decode
    fast: Decode | None = None
    snappy: bool = False

    def plain(self, body: bytes, encoding: str | None, limit: int) -> bytes:
        """Return the body without its Content-Encoding, never more than `limit` bytes."""
        if self.snappy:
            return bodies.unsnap(body, encoding, limit=limit)
        return bodies.decompress(body, encoding, limit=limit)


def read(
    reader: Reader, body: bytes, rules: Rules, known: KnownSeries
) -> tuple[Points, str | None]:
    """Return the points of a body and its batch id. Raises what the slow way refuses."""
    if reader.fast is not None:
        points = Points(rules, known)
        try:
            return points, reader.fast(body, points)
        except NotPlain:
            pass
    points = Points(rules, known)
    return points, reader.slow(body, points)


def _otlp_protobuf(body: bytes, points: Points) -> None:
    otlp.collect(otlp.parse_protobuf(body), points)


def _otlp_json(body: bytes, points: Points) -> None:
    otlp.collect(otlp.parse_json(body), points)


OTLP: Final[Mapping[str, Reader]] = {
    bodies.PROTOBUF: Reader(bodies.PROTOBUF, _otlp_protobuf, otlp_fast.decode),
    # A letter of an OTLP point is protobuf, whatever it came in: it is built from the message.
    bodies.JSON: Reader(bodies.PROTOBUF, _otlp_json),
}
OUR_JSON: Final = Reader(OUR_MEDIA, json_batches.collect, json_batches.decode)
REMOTE_WRITE: Final = Reader(WRITE_MEDIA, remote_write.collect, remote_write.decode, snappy=True)

_BY_MEDIA: Final = {reader.media: reader for reader in (*OTLP.values(), OUR_JSON, REMOTE_WRITE)}


def for_media(media: str) -> Reader:
    """Return the reader of letters of this form. Raises `NotFound`."""
    found = {**_BY_MEDIA, bodies.PROTOBUF: OTLP[bodies.PROTOBUF]}.get(media)
    if found is None:
        raise NotFound("letters of this form are no longer read")
    return found
