"""SEAL's formats, read strictly before SEAL sees a byte: every size is known in advance.

Everything about an object that parameters and plan determine (ids, counts, levels, scales, which
Galois elements) must be exactly so, and every residue must lie below its prime. What comes back is
the same object, uncompressed, ready for SEAL. Any other input is a `MalformedInput`, a
`ParametersMismatch` or, when it is secret-key material, a `SecretKeyInUpload`.

Formats: Microsoft SEAL 4.3, native/src/seal/{serialization,ciphertext,dynarray,kswitchkeys}.h.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection

import numpy as np
import zstandard

from tensorguard.errors import MalformedInput
from tensorguard.moai.parameters import CkksParameters
from tensorguard.wire.frames import SEAL_MAGIC, ParametersMismatch, SecretKeyInUpload

_HEADER = struct.Struct("<2sBBBBHQ")  # magic, header size, major, minor, compression, 0, size
_CIPHERTEXT = struct.Struct("<32sBQQQdQ")  # parms id, NTT, size, degree, primes, scale, correction
_COUNT = struct.Struct("<Q")
_PLAINTEXT = struct.Struct("<32sQd")  # parms id, coefficients, scale
_NONE, _ZLIB, _ZSTD = 0, 1, 2
_SEED = 64 + 1  # Blake2Xb seed behind the generator's type
_BLAKE2XB = 1
_WORD = 8
_WINDOW = 1 << 23  # bytes of memory that a zstd frame may ask for; SEAL writes 2 MiB
_POLYNOMIALS = 2  # of a fresh or relinearised ciphertext


def reframe(payload: bytes) -> bytes:
    """Return `payload` behind an uncompressed SEAL 4.3 header."""
    size = _HEADER.size + len(payload)
    return _HEADER.pack(SEAL_MAGIC, _HEADER.size, 4, 3, _NONE, 0, size) + payload


def parse_ciphertext(blob: bytes, parameters: CkksParameters, *, level: int, scale: float) -> bytes:
    """Validate one ciphertext of two polynomials at exactly this level and scale.

    The second polynomial may be a seed (which SEAL expands) or in full; in full it is not all zero,
    for then the ciphertext would carry its plaintext in the clear.
    """
    refuse_secret_key(blob)
    seeded = _ciphertext_size(parameters, level, seeded=True)
    full = _ciphertext_size(parameters, level, seeded=False)
    payload = _payload(blob, sizes=(seeded, full))
    _check_ciphertext(payload, parameters, level=level, scale=scale, key=False)
    return reframe(payload)


def parse_galois_keys(
    blob: bytes, parameters: CkksParameters, *, elements: Collection[int]
) -> bytes:
    """Validate Galois keys for exactly `elements`, in SEAL's seeded form."""
    places = {(element - 1) // 2 for element in elements}
    return _parse_keys(blob, parameters, rows=parameters.degree, places=places)


def parse_relinearisation_keys(blob: bytes, parameters: CkksParameters) -> bytes:
    """Validate the relinearisation key for one squaring, in SEAL's seeded form."""
    return _parse_keys(blob, parameters, rows=1, places={0})


def refuse_secret_key(blob: bytes) -> None:
    """Raise `SecretKeyInUpload` if `blob` is a SEAL secret key (or any bare plaintext)."""
    if len(blob) < _HEADER.size or blob[:2] != SEAL_MAGIC:
        return
    needed = _PLAINTEXT.size + len(SEAL_MAGIC)
    compression, body = blob[5], blob[_HEADER.size :]
    try:
        if compression == _ZSTD:
            reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(body)
            start = reader.read(needed)
        elif compression == _ZLIB:
            start = zlib.decompressobj().decompress(body, needed)
        else:
            start = body[:needed]
    except (zstandard.ZstdError, zlib.error):
        return
    if len(start) < needed or start[_PLAINTEXT.size :] != SEAL_MAGIC:
        return
    _, _, scale = _PLAINTEXT.unpack_from(start)
    if scale == 1.0:
        raise SecretKeyInUpload("a SEAL secret key was uploaded")


def _payload(blob: bytes, *, sizes: Collection[int]) -> bytes:
    """Return what is behind SEAL's outer header, decompressed, of one of exactly these sizes."""
    if len(blob) < _HEADER.size:
        raise MalformedInput("this is shorter than a SEAL header")
    magic, own, major, minor, compression, reserved, size = _HEADER.unpack_from(blob)
    if (magic, own, major, minor, reserved) != (SEAL_MAGIC, _HEADER.size, 4, 3, 0):
        raise MalformedInput("this is not an object of SEAL 4.3")
    if size != len(blob):
        raise MalformedInput("SEAL's header names another size than came")
    body = blob[_HEADER.size :]
    if compression == _NONE:
        payload = body
    elif compression == _ZSTD:
        payload = _decompress(body, largest=max(sizes))
    else:
        raise MalformedInput("SEAL objects come uncompressed or with zstd")
    if len(payload) not in sizes:
        raise MalformedInput(f"the object has {len(payload)} bytes, expected was {max(sizes)}")
    return payload


def _decompress(body: bytes, *, largest: int) -> bytes:
    try:
        parameters = zstandard.get_frame_parameters(body)
        if parameters.window_size > _WINDOW:
            raise MalformedInput("the zstd window is too large")
        if parameters.content_size not in {0, zstandard.CONTENTSIZE_UNKNOWN}:
            if parameters.content_size > largest:
                raise MalformedInput(f"the object would have more than {largest} bytes")
            plain = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
            return plain.decompress(body, allow_extra_data=False)
        return _decompress_stream(body, largest=largest)
    except (zstandard.ZstdError, MemoryError) as error:
        raise MalformedInput("the zstd data is damaged") from error


def _decompress_stream(body: bytes, *, largest: int) -> bytes:
    """Decompress a frame that does not name its size, one small bite at a time."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    out = io.BytesIO()
    bite = 4096  # expands to at most 1,366 blocks of 128 KiB
    for start in range(0, len(body), bite):
        if decompressor.eof:
            raise MalformedInput("there are bytes after the zstd frame")
        out.write(decompressor.decompress(body[start : start + bite]))
        if out.tell() > largest:
            raise MalformedInput(f"the object has more than {largest} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise MalformedInput("the zstd frame is cut short or has bytes after it")
    return out.getvalue()


def _ciphertext_size(parameters: CkksParameters, level: int, *, seeded: bool) -> int:
    head = _CIPHERTEXT.size + _HEADER.size + _COUNT.size
    polynomial = level * parameters.degree * _WORD
    return head + (polynomial + _HEADER.size + _SEED if seeded else _POLYNOMIALS * polynomial)


def _check_ciphertext(
    payload: bytes | memoryview, parameters: CkksParameters, *, level: int, scale: float, key: bool
) -> None:
    """Check the inside of a ciphertext; a key's are over all primes, at the key level."""
    # (1) the metadata are exactly those of this chain, level and scale
    moduli = (*parameters.primes, parameters.special) if key else parameters.primes[:level]
    expected_id = parameters.parms_id(None if key else level)
    identity, ntt, size, degree, primes, its_scale, correction = _CIPHERTEXT.unpack_from(payload)
    if identity != expected_id:
        raise ParametersMismatch("the ciphertext is of other parameters or at another level")
    shape = (ntt, size, degree, primes, correction)
    if shape != (1, _POLYNOMIALS, parameters.degree, len(moduli), 1):
        raise MalformedInput("the ciphertext has an unexpected shape")
    if its_scale != scale:  # NaN differs too
        raise MalformedInput(f"the ciphertext's scale is not {scale:g}")
    # (2) the coefficients' own header agrees with the size that came
    position = _CIPHERTEXT.size
    coefficients = len(moduli) * parameters.degree
    seeded = len(payload) == _ciphertext_size(parameters, len(moduli), seeded=True)
    count = coefficients if seeded else _POLYNOMIALS * coefficients
    _check_header(payload, position, size=_HEADER.size + _COUNT.size + count * _WORD)
    position += _HEADER.size
    if _COUNT.unpack_from(payload, position) != (count,):
        raise MalformedInput("the ciphertext has an unexpected number of coefficients")
    position += _COUNT.size
    # (3) every residue is below its prime
    words = np.frombuffer(payload, dtype="<u8", count=count, offset=position)
    residues = words.reshape(-1, len(moduli), parameters.degree)
    if (residues >= np.array(moduli, dtype=np.uint64)[:, None]).any():
        raise MalformedInput("a residue is not below its prime")
    # (4) the second polynomial hides the plaintext
    if seeded:
        position += count * _WORD
        _check_header(payload, position, size=_HEADER.size + _SEED)
        if payload[position + _HEADER.size] != _BLAKE2XB:
            raise MalformedInput("the seed is of an unknown generator")
    elif not residues[1].any(axis=1).all():
        raise MalformedInput("the ciphertext is transparent: it hides nothing")


def _check_header(payload: bytes | memoryview, position: int, *, size: int) -> None:
    expected = (SEAL_MAGIC, _HEADER.size, 4, 3, _NONE, 0, size)
    if _HEADER.unpack_from(payload, position) != expected:
        raise MalformedInput("an inner header of the SEAL object is wrong")


def _parse_keys(
    blob: bytes, parameters: CkksParameters, *, rows: int, places: Collection[int]
) -> bytes:
    """Check key-switching keys: `rows` lists, those at `places` full, the others empty."""
    refuse_secret_key(blob)
    inner = _ciphertext_size(parameters, parameters.levels + 1, seeded=True)
    entry = _HEADER.size + inner
    parts = parameters.levels
    total = 32 + _COUNT.size + rows * _COUNT.size + len(places) * parts * entry
    payload = _payload(blob, sizes=(total,))
    view = memoryview(payload)
    # (1) the keys are of these parameters
    if payload[:32] != parameters.parms_id():
        raise ParametersMismatch("the keys are of other parameters")
    if _COUNT.unpack_from(payload, 32) != (rows,):
        raise MalformedInput("the keys have an unexpected number of lists")
    # (2) exactly the declared elements have keys, each one ciphertext for each data prime
    position = 32 + _COUNT.size
    for row in range(rows):
        count = parts if row in places else 0
        if _COUNT.unpack_from(payload, position) != (count,):
            raise MalformedInput("the keys are not for exactly the model's rotations")
        position += _COUNT.size
        for _ in range(count):
            _check_header(view, position, size=entry)
            body = view[position + _HEADER.size : position + entry]
            _check_ciphertext(body, parameters, level=0, scale=1.0, key=True)
            position += entry
    return reframe(payload)
