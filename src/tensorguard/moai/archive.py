"""One archive has one encoding: whatever a reader could see differently is refused.

The writer is spelled out here and the reader compares: members are cut out by the sizes in the local
headers, the archive is written again from them, and every byte must match. So there is no room for
extra members, duplicate names, compression, encryption, comments, links, times, or bytes around it.

Format: PKWARE APPNOTE 6.3.10, version 2.0, method 0 (stored), no extra fields, no data descriptors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

from tensorguard.errors import MalformedInput

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_VERSION = 20
_DATE = (1 << 5) | 1  # 1980-01-01, the earliest that ZIP can say
_MAX = 0xFFFF_FFFF


def pack(members: Mapping[str, bytes]) -> bytes:
    """Return the archive of `members` in their order."""
    body, index = bytearray(), bytearray()
    for name, data in members.items():
        if len(body) + len(data) > _MAX:
            raise MalformedInput("the archive would be larger than 4 GiB")
        raw = name.encode("ascii")
        fields = (0, 0, 0, _DATE, zlib.crc32(data), len(data), len(data), len(raw), 0)
        offset = len(body)
        body += _LOCAL.pack(b"PK\x03\x04", _VERSION, *fields) + raw + data
        index += _CENTRAL.pack(b"PK\x01\x02", _VERSION, _VERSION, *fields, 0, 0, 0, 0, offset) + raw
    count = len(members)
    return bytes(
        body + index + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(index), len(body), 0)
    )


def unpack(data: bytes, *, names: Sequence[str]) -> tuple[bytes, ...]:
    """Return the members `names`, in this order, of an archive that `pack` would write."""
    members: dict[str, bytes] = {}
    position = 0
    for name in names:
        if len(data) - position < _LOCAL.size:
            raise MalformedInput(f"the archive ends before {name}")
        magic, _, _, method, _, _, _, stored, size, _, _ = _LOCAL.unpack_from(data, position)
        start = position + _LOCAL.size + len(name)
        if magic != b"PK\x03\x04" or data[position + _LOCAL.size : start] != name.encode("ascii"):
            raise MalformedInput(f"the archive has no {name} at its place")
        if method or stored != size or size > len(data) - start:
            raise MalformedInput(f"{name} is compressed or cut short")
        members[name] = data[start : start + size]
        position = start + size
    if pack(members) != data:
        raise MalformedInput("the archive is not in the one form that packs have")
    return tuple(members.values())
