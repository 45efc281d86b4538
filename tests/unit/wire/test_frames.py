import struct
from collections.abc import Sequence

import pytest
import tenseal

from support import moai
from tensorguard.errors import MalformedInput, TooLarge
from tensorguard.moai import strict
from tensorguard.wire.frames import (
    HEADER_SIZE,
    Kind,
    ParametersMismatch,
    SecretKeyInUpload,
    WrongKey,
    build_frame,
    frame_digest,
    parse_frame,
)

ID = bytes(range(32))
KEY = bytes(range(100, 116))
LIMIT = 1 << 20


def framed(kind: Kind, parameters_id: bytes, items: Sequence[bytes]) -> bytes:
    return build_frame(kind, parameters_id, items, key_id=KEY)


def parse(data, *, kind=Kind.ciphertext, parameters_id=ID, limit=LIMIT):
    return parse_frame(data, kind=kind, parameters_id=parameters_id, limit=limit)


def test_a_frame_is_what_the_document_says():
    frame = framed(Kind.evaluation_keys, ID, (b"abc", b""))
    assert HEADER_SIZE == 68
    assert frame == (
        b"TGHE\x01\x02\x00\x00"
        + ID
        + KEY
        + struct.pack("<IQ", 2, 19)
        + struct.pack("<Q", 3)
        + b"abc"
        + struct.pack("<Q", 0)
    )
    parsed = parse(frame, kind=Kind.evaluation_keys)
    assert parsed.items == (b"abc", b"")
    assert parse(frame, kind=Kind.evaluation_keys, parameters_id=None).parameters_id == ID
    assert len(frame_digest(frame)) == 64


def test_frames_of_another_secret_key_are_refused():
    frame = parse(framed(Kind.ciphertext, ID, (b"abc",)))
    assert frame.of_key(KEY) is frame
    with pytest.raises(WrongKey):
        frame.of_key(bytes(16))


def test_frames_are_refused_over_the_limit_before_anything_else():
    frame = framed(Kind.ciphertext, ID, (b"abc",))
    parse(frame, limit=len(frame))
    with pytest.raises(TooLarge):
        parse(frame, limit=len(frame) - 1)


@pytest.mark.parametrize("cut", range(0, 64, 3))
def test_truncated_frames_are_refused(cut):
    frame = framed(Kind.ciphertext, ID, (b"abc",))
    with pytest.raises(MalformedInput):
        parse(frame[: min(cut, len(frame) - 1)])


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, b"X"), (4, b"\x02"), (5, b"\x00"), (5, b"\x04"), (6, b"\x01"), (56, b"\x00"), (56, b"\x02"),
     (56, b"\xff\xff\xff\xff"), (60, b"\xff" * 8), (68, b"\xff" * 8), (68, b"\x02")],
)  # fmt: skip
def test_a_wrong_field_is_refused(offset, value):
    frame = bytearray(framed(Kind.ciphertext, ID, (b"abc",)))
    frame[offset : offset + len(value)] = value
    with pytest.raises(MalformedInput):
        parse(bytes(frame))


def test_other_parameters_and_other_kinds_are_refused():
    frame = framed(Kind.ciphertext, ID, (b"abc",))
    with pytest.raises(ParametersMismatch):
        parse(frame, parameters_id=bytes(32))
    with pytest.raises(MalformedInput):
        parse(frame, kind=Kind.evaluation_keys)
    for items in ((), (b"",) * 5):
        with pytest.raises(MalformedInput):
            framed(Kind.evaluation_keys, ID, items)
    with pytest.raises(MalformedInput):
        framed(Kind.ciphertext, ID[:-1], (b"",))


@pytest.mark.parametrize("kind", [Kind.ciphertext, Kind.evaluation_keys])
def test_a_frame_with_the_clients_secret_key_is_named(kind):
    with pytest.raises(SecretKeyInUpload) as refused:
        parse(framed(Kind.client_secret_keys, ID, (b"abc",)), kind=kind)
    assert refused.value.status == 422
    assert "new one" in refused.value.remedy


@pytest.fixture(scope="module")
def context():
    made = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[40, 30, 40])
    made.global_scale = 2.0**30
    return made


def test_a_tenseal_context_with_its_secret_key_is_named(context):
    with pytest.raises(SecretKeyInUpload):
        parse(context.serialize(save_secret_key=True))
    with pytest.raises(MalformedInput):
        parse(context.serialize(save_secret_key=False))


def test_a_bare_seal_secret_key_is_named():
    tiny = moai.tiny()
    frame = parse(tiny.client.to_frame(), kind=Kind.client_secret_keys, parameters_id=None)
    (secret,) = frame.items
    with pytest.raises(SecretKeyInUpload):
        strict.refuse_secret_key(secret)
    for upload in (secret, strict.reframe(strict._decompress(secret[16:], largest=LIMIT))):
        with pytest.raises(SecretKeyInUpload):
            tiny.model.load_keys(upload)
        identity = tiny.client.parameters.id
        with pytest.raises(SecretKeyInUpload):  # dressed up as evaluation keys
            tiny.model.load_keys(framed(Kind.evaluation_keys, identity, (upload,)))
        good = parse(tiny.key_frame, kind=Kind.evaluation_keys, parameters_id=None).items
        with pytest.raises(SecretKeyInUpload):  # hidden behind good ones
            tiny.model.load_keys(framed(Kind.evaluation_keys, identity, (*good, upload)))
        with pytest.raises(SecretKeyInUpload):  # dressed up as a ciphertext
            tiny.model.evaluate(tiny.keys, framed(Kind.ciphertext, identity, (upload,)))
