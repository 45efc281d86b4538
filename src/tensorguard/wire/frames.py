"""One header in front of everything encrypted; a secret key is never read as anything else.

A frame is a 68-byte little-endian header, then `count` items, each an unsigned 64-bit length and
that many bytes of SEAL's own serialisation:

    offset  size  field
         0     4  magic, ASCII "TGHE"
         4     1  version, 1
         5     1  kind: 1 ciphertext, 2 evaluation keys, 3 client secret keys
         6     2  flags, 0
         8    32  parameter id: SHA-256 of the canonical CKKS parameters
        40    16  key id: random, made with the secret key, the same on all that belongs to it
        56     4  count of items: 1 to 4, of ciphertexts in columns the number of columns
        60     8  payload length: everything after the header

The key id lets a server refuse a ciphertext of another secret, which would decrypt to noise without
any error. It names a key and proves nothing: whoever lies about it harms their own answer only.

Specified in docs/formats/ciphertext-frames.md. Only `struct` and `hashlib` are needed here.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from tensorguard.errors import MalformedInput, TooLarge, VerificationError

MAGIC = b"TGHE"
VERSION = 1
MAX_ITEMS = 4  # evaluation keys have two; more is nothing we make
MAX_COLUMNS = 4096  # ciphertexts of one batch; a reader says how many its model has
PARAMETERS_ID_SIZE = 32
KEY_ID_SIZE = 16
MEDIA_TYPE = "application/octet-stream"

_HEADER = struct.Struct("<4sBBH32s16sIQ")
_LENGTH = struct.Struct("<Q")
HEADER_SIZE = _HEADER.size

SEAL_MAGIC = b"\x5e\xa1"
_PROTOBUF_BYTES = 2  # wire type of length-delimited fields
_TENSEAL_PRIVATE = 3  # field number of the secret key in TenSEAL's context message
_MAX_FIELDS = 16  # TenSEAL writes three


class Kind(IntEnum):
    """What a frame carries."""

    ciphertext = 1
    evaluation_keys = 2
    client_secret_keys = 3


class SecretKeyInUpload(VerificationError):
    """Secret-key material came where only public material may come."""

    code = "secret_key_in_upload"
    remedy = (
        "Send only what `evaluation_keys()` or `encrypt()` returns. "
        "Consider this secret key exposed: make a new one."
    )


class ParametersMismatch(VerificationError):
    code = "parameters_mismatch"
    remedy = "Fetch the model's current view and encrypt again with keys made for it."


class WrongKey(VerificationError):
    """Ciphertext and keys belong to different secret keys."""

    code = "wrong_key"
    remedy = "Encrypt with the secret key whose evaluation keys the request names."


@dataclass(frozen=True, slots=True)
class Frame:
    """A parsed frame: its items are still unparsed SEAL bytes."""

    kind: Kind
    parameters_id: bytes
    key_id: bytes
    items: tuple[bytes, ...]

    def of_key(self, key_id: bytes) -> Frame:
        """Return this frame if it belongs to the secret key `key_id`. Raises `WrongKey`."""
        if not hmac.compare_digest(self.key_id, key_id):
            raise WrongKey("the frame belongs to another secret key")
        return self


def build_frame(
    kind: Kind, parameters_id: bytes, items: Sequence[bytes], *, key_id: bytes
) -> bytes:
    """Return the frame around `items`."""
    if len(parameters_id) != PARAMETERS_ID_SIZE or len(key_id) != KEY_ID_SIZE:
        raise MalformedInput("a frame has a parameter id of 32 bytes and a key id of 16")
    most = MAX_COLUMNS if kind is Kind.ciphertext else MAX_ITEMS
    if not 1 <= len(items) <= most:
        raise MalformedInput(f"a frame of this kind has 1 to {most} items")
    payload = b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))
    header = _HEADER.pack(MAGIC, VERSION, kind, 0, parameters_id, key_id, len(items), len(payload))
    return header + payload


def parse_frame(
    data: bytes,
    *,
    kind: Kind,
    parameters_id: bytes | None,
    limit: int,
    columns: int | None = None,
) -> Frame:
    """Return the frame in `data`, of exactly this kind and, if given, these parameters.

    With `columns` it has exactly so many items, else at most `MAX_ITEMS`.

    Raises `TooLarge` over `limit` bytes, `SecretKeyInUpload`, `ParametersMismatch` or
    `MalformedInput`.
    """
    if len(data) > limit:
        raise TooLarge(f"a frame of {len(data)} bytes is over the limit of {limit}")
    _refuse_foreign_secrets(data)
    if len(data) < HEADER_SIZE:
        raise MalformedInput(f"a frame has at least {HEADER_SIZE} bytes, {len(data)} came")
    magic, version, number, flags, identity, key, count, length = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or flags != 0:
        raise MalformedInput("this is not a version 1 frame")
    if number == Kind.client_secret_keys and kind is not Kind.client_secret_keys:
        raise SecretKeyInUpload("the frame holds the client's secret key")
    if number != kind:
        raise MalformedInput(f"a frame of kind {int(kind)} was expected, {number} came")
    if length != len(data) - HEADER_SIZE:
        raise MalformedInput(f"the header promises {length} bytes after it")
    if parameters_id is not None and not hmac.compare_digest(identity, parameters_id):
        raise ParametersMismatch("the frame was made for other CKKS parameters")
    return Frame(kind, identity, key, _items(data, count, columns))


def frame_digest(data: bytes) -> str:
    """Return the lower-case hex SHA-256 under which evaluation keys are stored."""
    return hashlib.sha256(data).hexdigest()


def _items(data: bytes, count: int, columns: int | None) -> tuple[bytes, ...]:
    if columns is not None and count != columns:
        raise MalformedInput(f"{columns} columns were expected, {count} came")
    if not 1 <= count <= (columns or MAX_ITEMS):
        raise MalformedInput(f"a frame has 1 to {MAX_ITEMS} items, not {count}")
    items = []
    position = HEADER_SIZE
    for _ in range(count):
        if len(data) - position < _LENGTH.size:
            raise MalformedInput("the frame ends inside an item's length")
        (size,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if size > len(data) - position:
            raise MalformedInput("an item is longer than the frame")
        items.append(data[position : position + size])
        position += size
    if position != len(data):
        raise MalformedInput("the frame has bytes after its last item")
    return tuple(items)


def _refuse_foreign_secrets(data: bytes) -> None:
    """Name a bare TenSEAL context with a secret key for what it is, where we can see it."""
    if data[:1] != b"\x0a" or SEAL_MAGIC not in data[:12]:
        return
    position = 0
    for _ in range(_MAX_FIELDS):
        if position >= len(data):
            return
        tag, position = _varint(data, position)
        if tag & 7 != _PROTOBUF_BYTES:
            return
        if tag >> 3 == _TENSEAL_PRIVATE:
            raise SecretKeyInUpload("this is a TenSEAL context with its secret key")
        size, position = _varint(data, position)
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 -- the continuation bit of a protobuf varint
            return value, position
    raise MalformedInput("this is not a frame")
