import struct

import numpy as np
import pytest
import zstandard

from support import moai
from tensorguard.errors import MalformedInput, TensorGuardError
from tensorguard.moai import strict
from tensorguard.wire.frames import Kind, ParametersMismatch, parse_frame

LIMIT = 1 << 24


def item(frame, kind):
    return parse_frame(frame, kind=kind, parameters_id=None, limit=LIMIT).items[0]


@pytest.fixture(scope="module")
def tiny():
    return moai.tiny()


@pytest.fixture(scope="module")
def ciphertext(tiny):
    """A fresh ciphertext, uncompressed: 16 bytes of header, then the payload."""
    blob = item(tiny.client.encrypt(tiny.inputs[0]), Kind.ciphertext)
    return bytearray(parse(tiny, blob))


@pytest.fixture(scope="module")
def galois(tiny):
    blob = item(tiny.key_frame, Kind.evaluation_keys)
    parameters, elements = tiny.client.parameters, tiny.model.spec.galois_elements
    return bytearray(strict.parse_galois_keys(blob, parameters, elements=elements))


def parse(tiny, blob, **changes):
    parameters = tiny.client.parameters
    expected = {"level": parameters.levels, "scale": parameters.scale} | changes
    return strict.parse_ciphertext(bytes(blob), parameters, **expected)


def changed(data, offset, value):
    copy = bytearray(data)
    copy[offset : offset + len(value)] = value
    return copy


def test_a_ciphertext_is_accepted_and_given_to_seal_uncompressed(tiny, ciphertext):
    assert parse(tiny, ciphertext) == ciphertext
    assert ciphertext[5] == 0


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"XX"), (2, b"\x11"), (3, b"\x03"), (4, b"\x09"), (5, b"\x01"), (5, b"\x07"), (6, b"\x01"),
        (8, b"\xff" * 8),  # SEAL's outer header: size
        (48, b"\x00"),  # not in NTT form
        (49, b"\x03"), (57, b"\x00\x40"), (65, b"\x01"),  # polynomials, degree, primes
        (73, struct.pack("<d", float("nan"))), (73, struct.pack("<d", 2.0**39)),  # scale
        (81, b"\x02"),  # correction factor
        (89, b"XX"), (97, b"\xff" * 8), (105, b"\xff" * 8),  # the coefficients' header and count
        (113, b"\xff" * 8),  # a residue over its prime
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_ciphertext_is_refused(tiny, ciphertext, offset, value):
    with pytest.raises(MalformedInput):
        parse(tiny, changed(ciphertext, offset, value))


def test_a_ciphertext_of_other_parameters_is_refused(tiny, ciphertext):
    with pytest.raises(ParametersMismatch):
        parse(tiny, changed(ciphertext, 16, b"\0" * 32))
    with pytest.raises(TensorGuardError):
        parse(tiny, ciphertext, level=1)
    with pytest.raises(MalformedInput):
        parse(tiny, ciphertext, scale=2.0**30)


def test_residues_are_compared_with_their_own_prime(tiny, ciphertext):
    parameters = tiny.client.parameters
    for index, prime in enumerate(parameters.primes):
        offset = 16 + 97 + index * parameters.degree * 8
        with pytest.raises(MalformedInput, match="residue"):
            parse(tiny, changed(ciphertext, offset, struct.pack("<Q", prime)))
        parse(tiny, changed(ciphertext, offset, struct.pack("<Q", prime - 1)))


def test_a_transparent_ciphertext_is_refused(tiny):
    parameters = tiny.client.parameters
    frame = tiny.model.evaluate(tiny.keys, tiny.client.encrypt(tiny.inputs[0]))
    blob = item(frame, Kind.ciphertext)
    result = strict.parse_ciphertext(blob, parameters, level=1, scale=parameters.scale)
    half = parameters.degree * 8
    transparent = result[:-half] + bytes(half)
    with pytest.raises(MalformedInput, match="transparent"):
        strict.parse_ciphertext(transparent, parameters, level=1, scale=parameters.scale)


def test_compressed_data_may_not_expand_beyond_the_object(tiny):
    for bomb in (
        zstandard.ZstdCompressor().compress(bytes(1 << 28)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28)),
    ):
        blob = bytearray(strict.reframe(bomb))
        blob[5] = 2
        with pytest.raises(MalformedInput, match="more than"):
            parse(tiny, blob)


def test_bytes_after_the_compressed_data_are_refused(tiny, ciphertext):
    for sized in (True, False):
        packed = zstandard.ZstdCompressor(write_content_size=sized).compress(bytes(ciphertext[16:]))
        for extra in (b"", b"\0", b"trailing", zstandard.ZstdCompressor().compress(b"")):
            blob = bytearray(strict.reframe(packed + extra))
            blob[5] = 2
            if extra:
                with pytest.raises(MalformedInput):
                    parse(tiny, blob)
            else:
                assert parse(tiny, blob) == ciphertext


def test_keys_for_other_rotations_are_refused(tiny, galois):
    parameters, elements = tiny.client.parameters, tiny.model.spec.galois_elements
    for wrong in ((), (3,), (elements[0], 5), (elements[0] + 2,)):
        if set(wrong) != set(elements):
            with pytest.raises(MalformedInput):
                strict.parse_galois_keys(bytes(galois), parameters, elements=wrong)
    with pytest.raises(MalformedInput):
        strict.parse_relinearisation_keys(bytes(galois), parameters)


def test_a_damaged_key_is_refused(tiny, galois):
    parameters, elements = tiny.client.parameters, tiny.model.spec.galois_elements
    body = galois.find(struct.pack("<Q", parameters.levels), 56) + 8
    residue = body + 16 + 97
    seed = residue + (parameters.levels + 1) * parameters.degree * 8 + 16
    for offset, value in ((16, b"\0" * 32), (48, b"\1"), (body, b"XX"), (residue, b"\xff" * 8),
                          (body + 16 + 32, b"\0"), (seed, b"\x09"), (seed - 16, b"XX")):  # fmt: skip
        with pytest.raises((MalformedInput, ParametersMismatch)):
            strict.parse_galois_keys(
                bytes(changed(galois, offset, value)), parameters, elements=elements
            )
    for cut in (galois[:-1], galois + b"x", b""):
        with pytest.raises(MalformedInput):
            strict.parse_galois_keys(bytes(cut), parameters, elements=elements)


def test_what_strict_accepts_seal_loads(tiny, galois):
    assert np.isfinite(tiny.infer(tiny.inputs[1])).all()
