"""A pack is whole or refused: seeded mutations, and the ways in which ZIP files lie."""

import io
import os
import random
import zipfile

import pytest

from support import moai
from support.mutations import damaged
from tensorguard.errors import MalformedInput, TensorGuardError
from tensorguard.moai import archive, pack

COUNT = 5000 if os.environ.get("TG_TEST_SOAK") == "1" else 500


def load(data):
    return pack.verify(pack.read(data, limit=moai.LIMIT), moai.trust())


def test_mutations_of_a_pack_are_all_refused_with_4xx():
    good = moai.tiny().data
    load(good)
    for index, bad in enumerate(damaged(good, count=COUNT, seed=7)):
        with pytest.raises(TensorGuardError) as refused:
            load(bad)
        assert 400 <= refused.value.status < 500, index
        assert refused.value.remedy


def members():
    unverified = pack.read(moai.tiny().data, limit=moai.LIMIT)
    parts = (unverified.manifest, unverified.weights, unverified.signature)
    return dict(zip(pack.MEMBERS, parts, strict=True))


def zipped(entries, *, method=zipfile.ZIP_STORED, comment=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, data in entries:
            opened.writestr(name, data)
        opened.comment = comment
    return buffer.getvalue()


def test_an_empty_or_foreign_archive_is_refused():
    for data in (b"", b"PK", zipped([]), b"PK\x05\x06" + bytes(18), b"\x7fELF" + bytes(100)):
        with pytest.raises(MalformedInput):
            load(data)


@pytest.mark.parametrize("where", ["before", "after", "between"])
def test_bytes_around_the_archive_are_refused(where):
    good = moai.tiny().data
    end = len(good) - 22
    bad = {"before": b"x" + good, "after": good + b"x", "between": good[:end] + b"x" + good[end:]}
    with pytest.raises(MalformedInput):
        load(bad[where])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_extra_missing_renamed_and_duplicate_members_are_refused():
    content = list(members().items())
    for entries in (
        [*content, ("extra.txt", b"x")],
        content[:2],
        content[::-1],
        [*content, content[0]],
        [(f"./{name}", data) for name, data in content],
        [(name.upper(), data) for name, data in content],
        [("../manifest.json", content[0][1]), *content[1:]],
    ):
        if len(dict(entries)) == len(entries):  # our own writer cannot write duplicates
            with pytest.raises(MalformedInput):
                load(archive.pack(dict(entries)))
        with pytest.raises(MalformedInput):
            load(zipped(entries))


def test_compression_comments_times_and_other_writers_are_refused():
    content = list(members().items())
    for data in (
        zipped(content),  # a correct ZIP with another time
        zipped(content, method=zipfile.ZIP_DEFLATED),
        zipped(content, comment=b"hello"),
    ):
        with pytest.raises(MalformedInput):
            load(data)


@pytest.mark.parametrize(
    ("offset", "bits"),
    [(6, 1), (6, 8), (6, 0x800), (8, 8)],
    ids=["encrypted", "data descriptor", "utf-8", "deflate"],
)
def test_flags_in_a_local_header_are_refused(offset, bits):
    bad = bytearray(moai.tiny().data)
    bad[offset : offset + 2] = bits.to_bytes(2, "little")
    with pytest.raises(MalformedInput):
        load(bytes(bad))


def test_a_symlink_member_is_refused():
    bad = bytearray(moai.tiny().data)
    central = bad.find(b"PK\x01\x02")
    bad[central + 5] = 3  # made on Unix
    bad[central + 38 : central + 42] = (0o120777 << 16).to_bytes(4, "little")
    with pytest.raises(MalformedInput):
        load(bytes(bad))


def test_sizes_that_overlap_are_refused():
    good = moai.tiny().data
    rng = random.Random(1)
    for offset in (18, 22, 26, 28):
        for _ in range(20):
            bad = bytearray(good)
            bad[offset : offset + 2] = rng.randbytes(2)
            if bytes(bad) != good:
                with pytest.raises(MalformedInput):
                    load(bytes(bad))
