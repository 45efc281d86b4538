"""Residues out of SEAL objects that `strict` has validated, and back, without SEAL.

The offsets are those of Microsoft SEAL 4.3: native/src/seal/{serialization,ciphertext,kswitchkeys}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from tensorguard.moai.parameters import CkksParameters
from tensorguard.wire.frames import SEAL_MAGIC

Words = npt.NDArray[np.uint64]

_HEADER = struct.Struct("<2sBBBBHQ")  # magic, header size, major, minor, compression, 0, size
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")  # parms id, NTT, size, degree, primes, scale, correction
_COUNT = struct.Struct("<Q")
_NONE, _ZSTD = 0, 2
_FAST = 1  # zstd level: residues hardly compress, so more effort buys nothing
_SEED_AT = _HEADER.size + 1  # behind its own header and the generator's type
_SEED = 64


@dataclass(frozen=True, slots=True)
class Residues:
    """The polynomials of a ciphertext (size, primes, degree), and the seed of a missing second one."""

    words: Words
    seed: bytes


def read_ciphertext(blob: bytes) -> Residues:
    """Take a validated ciphertext apart. The words are a view of `blob`."""
    return _read(blob, _HEADER.size)[0]


def read_keys(blob: bytes) -> Iterator[tuple[int, list[Residues]]]:
    """Yield the place of every non-empty list of validated key-switching keys, and its entries."""
    position = _HEADER.size + 32
    (rows,) = _COUNT.unpack_from(blob, position)
    position += _COUNT.size
    for row in range(rows):
        (count,) = _COUNT.unpack_from(blob, position)
        position += _COUNT.size
        entries = []
        for _ in range(count):
            entry, position = _read(blob, position + _HEADER.size)
            entries.append(entry)
        if entries:
            yield row, entries


def write_ciphertext(words: Words, parameters: CkksParameters, *, scale: float) -> bytes:
    """Return SEAL's serialisation of residues in NTT form (size, level, degree), with zstd."""
    size, level, degree = words.shape
    data = np.ascontiguousarray(words, dtype="<u8").tobytes()
    payload = b"".join(
        (
            _CIPHERTEXT.pack(parameters.parms_id(level), 1, size, degree, level, scale, 1),
            _header(_COUNT.size + len(data), _NONE),
            _COUNT.pack(words.size),
            data,
        )
    )
    packed = zstandard.ZstdCompressor(level=_FAST).compress(payload)
    return _header(len(packed), _ZSTD) + packed


def _read(blob: bytes, position: int) -> tuple[Residues, int]:
    _, _, size, degree, primes, _, _ = _CIPHERTEXT.unpack_from(blob, position)
    position += _CIPHERTEXT.size + _HEADER.size
    (count,) = _COUNT.unpack_from(blob, position)
    position += _COUNT.size
    words = np.frombuffer(blob, dtype="<u8", count=count, offset=position)
    words = words.reshape(-1, primes, degree)
    position += count * words.itemsize
    if len(words) == size:
        return Residues(words, b""), position
    seed = blob[position + _SEED_AT : position + _SEED_AT + _SEED]
    return Residues(words, seed), position + _SEED_AT + _SEED


def _header(size: int, compression: int) -> bytes:
    return _HEADER.pack(SEAL_MAGIC, _HEADER.size, 4, 3, compression, 0, _HEADER.size + size)
