"""What gateway and worker say to each other: one JSON head and one opaque body, both sized first.

    u32 little-endian  length of the head
    u64 little-endian  length of the body
    head               JSON of one message below
    body               a pack behind public keys, a frame, or two frames one after the other

Both ends are ours, over a socket pair that nobody else holds; sizes are bounded all the same.
"""

from __future__ import annotations

import asyncio
import socket
import struct

import msgspec

from tensorguard.errors import Unavailable
from tensorguard.wire.problems import Problem

PREFIX = struct.Struct("<IQ")
MAX_HEAD = 1 << 20  # a head holds ids and numbers


class WorkerGone(Unavailable):
    """The worker ended, or spoke what no worker of ours speaks."""

    code = "worker_died"
    remedy = "Send the request once more; if it ends a worker again, tell the operator."


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True, forbid_unknown_fields=True):
    """One head."""


class Start(Message, frozen=True):
    """The first message: limits that the worker puts on itself."""

    memory_bytes: int
    seconds: int
    pack_bytes: int
    cache_bytes: int


class LoadPack(Message, frozen=True):
    """Verify and prepare a pack. Body: the trusted public keys, of these sizes, then the pack."""

    pack_id: str
    trusted: dict[str, int]


class DropPack(Message, frozen=True):
    """Forget a pack."""

    pack_id: str


class CheckKeys(Message, frozen=True):
    """Parse evaluation keys for a pack, and keep them. Body: the frame."""

    pack_id: str
    tenant: str
    digest: str


class Evaluate(Message, frozen=True):
    """Evaluate a pack. Body: `keys_size` bytes of evaluation keys, then the ciphertext frame."""

    pack_id: str
    tenant: str
    digest: str
    keys_size: int = 0


class Done(Message, frozen=True):
    """The request succeeded, after so many seconds of work. Body: the result, if there is one."""

    seconds: float = 0.0


class KeysWanted(Message, frozen=True):
    """The worker does not hold these evaluation keys: send the request again with them."""


class Refused(Message, frozen=True):
    """The request was refused; the worker goes on."""

    problem: Problem


Request = Start | LoadPack | DropPack | CheckKeys | Evaluate
Reply = Done | KeysWanted | Refused

_requests = msgspec.json.Decoder(Request)
_replies = msgspec.json.Decoder(Reply)
encode = msgspec.json.encode


def request_of(head: bytes) -> Request:
    """Read a request's head. Raises `WorkerGone` for what no gateway of ours writes."""
    try:
        request: Request = _requests.decode(head)
    except msgspec.DecodeError as error:
        raise WorkerGone("a request cannot be read") from error
    return request


def reply_of(head: bytes) -> Reply:
    """Read a reply's head. Raises `WorkerGone` for what no worker of ours writes."""
    try:
        reply: Reply = _replies.decode(head)
    except msgspec.DecodeError as error:
        raise WorkerGone("the worker's reply cannot be read") from error
    return reply


def head_of(message: Request | Reply, body_size: int) -> bytes:
    """Return everything that goes before the body."""
    head = encode(message)
    return PREFIX.pack(len(head), body_size) + head


# --- the worker's end: blocking ---------------------------------------------------------------


def receive(connection: socket.socket, *, limit: int) -> tuple[Request, bytes] | None:
    """Return the next request, or None when the gateway closed its end."""
    prefix = _exactly(connection, PREFIX.size)
    if prefix is None:
        return None
    head_size, body_size = PREFIX.unpack(prefix)
    if head_size > MAX_HEAD or body_size > limit:
        raise WorkerGone("a message over its limit")
    head = _exactly(connection, head_size)
    body = _exactly(connection, body_size)
    if head is None or body is None:
        return None
    return request_of(bytes(head)), bytes(body)


def send(connection: socket.socket, message: Reply, body: bytes = b"") -> None:
    """Send one reply."""
    connection.sendall(head_of(message, len(body)))
    connection.sendall(body)


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return data


# --- the gateway's end: asyncio ---------------------------------------------------------------


async def ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    message: Request,
    *bodies: bytes,
    limit: int,
) -> tuple[Reply, bytes]:
    """Send a request and return the worker's reply and its body. Raises `WorkerGone`."""
    try:
        writer.write(head_of(message, sum(map(len, bodies))))
        for body in bodies:
            writer.write(body)
        await writer.drain()
        head_size, body_size = PREFIX.unpack(await reader.readexactly(PREFIX.size))
        if head_size > MAX_HEAD or body_size > limit:
            raise WorkerGone("the worker's reply is over its limit")
        head = await reader.readexactly(head_size)
        body = await reader.readexactly(body_size)
        return reply_of(head), body
    except (asyncio.IncompleteReadError, OSError) as error:
        raise WorkerGone("the worker ended during the request") from error
