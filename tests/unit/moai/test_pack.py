import hashlib
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from support import moai
from tensorguard.crypto import canonical, dsse
from tensorguard.crypto.hybrid import HybridPublicKey, SoftwareHybridSigner
from tensorguard.crypto.trust import TrustStore, UntrustedSigner
from tensorguard.errors import MalformedInput, TooLarge, VerificationError
from tensorguard.moai import archive, pack, tensors
from tensorguard.moai.compile import build_pack
from tensorguard.moai.manifest import PackInvalid

VECTORS = Path(__file__).parents[2] / "vectors" / "pack"


@pytest.fixture(scope="module")
def tiny():
    return moai.tiny()


@pytest.fixture(scope="module")
def square():
    return moai.square()


def repacked(model, *, manifest=None, weights=None, signer=None):
    """Return the pack with its manifest or weights replaced and signed again: all but sound."""
    unverified = pack.read(model.data, limit=moai.LIMIT)
    weights = unverified.weights if weights is None else weights
    document = json.loads(unverified.manifest)
    document["files"]["weights.safetensors"] = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "size": len(weights),
    }
    body = canonical.encode(manifest(document) if manifest else document)
    envelope = dsse.seal(body, payload_type=pack.PAYLOAD_TYPE, signer=signer or moai.signer())
    return archive.pack(
        {"manifest.json": body, "weights.safetensors": weights, "signature.json": envelope}
    )


def load(data):
    return pack.verify(pack.read(data, limit=moai.LIMIT), moai.trust())


def test_a_pack_verifies_and_says_who_signed_it(tiny):
    verified = load(tiny.data)
    assert verified.signer_name == "tests"
    assert (
        verified.pack_id == hashlib.sha256(pack.read(tiny.data, limit=1 << 24).manifest).hexdigest()
    )
    assert verified.spec.view() == tiny.client.view


def test_the_same_inputs_give_the_same_pack_id(tiny):
    again = build_pack(tiny.compiled, name="tiny", version="1.0", signer=moai.signer())
    assert pack.read(again, limit=moai.LIMIT).pack_id == tiny.pack.pack_id
    assert load(repacked(tiny)).pack_id == tiny.pack.pack_id
    other = build_pack(tiny.compiled, name="tiny", version="1.1", signer=moai.signer())
    assert pack.read(other, limit=moai.LIMIT).pack_id != tiny.pack.pack_id


def test_a_pack_is_a_zip_that_anyone_can_open(tiny, tmp_path):
    import zipfile

    path = tmp_path / "tiny.moai"
    path.write_bytes(tiny.data)
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == list(pack.MEMBERS)
        assert {info.compress_type for info in opened.infolist()} == {zipfile.ZIP_STORED}


def test_a_stranger_is_not_trusted(tiny):
    stranger = SoftwareHybridSigner.generate()
    with pytest.raises(UntrustedSigner):
        load(repacked(tiny, signer=stranger))
    store = TrustStore.from_keys({"other": stranger.public_key})
    with pytest.raises(UntrustedSigner):
        pack.verify(pack.read(tiny.data, limit=moai.LIMIT), store)


def test_a_signature_of_another_type_or_pack_is_refused(tiny, square):
    mine = pack.read(tiny.data, limit=moai.LIMIT)
    other = pack.read(square.data, limit=moai.LIMIT)
    with pytest.raises(pack.PackTampered):
        pack.verify(pack.UnverifiedPack(mine.manifest, mine.weights, other.signature), moai.trust())
    with pytest.raises(pack.PackTampered):
        pack.verify(pack.UnverifiedPack(mine.manifest, other.weights, mine.signature), moai.trust())
    wrong = dsse.seal(mine.manifest, payload_type="text/plain", signer=moai.signer())
    with pytest.raises(VerificationError):
        pack.verify(pack.UnverifiedPack(mine.manifest, mine.weights, wrong), moai.trust())


def test_over_the_limit_is_refused(tiny):
    with pytest.raises(TooLarge):
        pack.read(tiny.data, limit=len(tiny.data) - 1)


def edit(path, value):
    """Return a function that sets, or with `...` removes, one member of the manifest."""

    def change(document):
        *parents, last = path
        target = document
        for key in parents:
            target = target[key]
        if value is ...:
            del target[last]
        else:
            target[last] = value
        return document

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "tensorguard.moai/2"),
        (("name",), "../x"),
        (("version",), ""),
        (("surprise",), 1),
        (("provenance", "surprise"), 1),
        (("layers", 0, "kind"), "softmax"),
        (("layers", 0, "kind"), ...),
        (("layers", 0, "surprise"), 1),
        (("layers", 1, "basis"), "lagrange"),
        (("layers", 1, "degree"), 99),
        (("layers", 1, "stands_for"), "swish"),
        (("layers", 0, "inputs"), -1),
        (("layers", 0, "inputs"), 1 << 40),
        (("layers",), []),
        (("layers",), [{"kind": "linear", "name": "x", "inputs": 4, "outputs": 4}] * 40),
        (("files",), {}),
        (("files", "evil.so"), {"sha256": "0" * 64, "size": 1}),
        (("files", "weights.safetensors", "sha256"), "0" * 64),
        (("files", "weights.safetensors", "size"), 1),
        (("parameters", "poly_modulus_degree"), 4096),
        (("parameters", "scheme"), "BFV"),
        (("parameters", "scale_bits"), 45),
        (("parameters_id",), "0" * 64),
        (("rotations",), [1, 2, 3]),
        (("rotations",), []),
        (("levels",), [9, 9, 9]),
        (("packing", "blocks"), 1),
        (("input", "std"), [0, 1, 1, 1]),
        (("input", "mean"), [0]),
        (("output", "scale"), [-1, 1]),
        (("output", "labels"), ["a", "b"]),
        (("output", "meaning"), "classification"),
        (("precision",), ...),
        (("precision", "layers"), []),
    ],
    ids=str,
)
def test_a_manifest_that_is_signed_but_wrong_is_refused_when_it_is_read(square, path, value):
    with pytest.raises((VerificationError, MalformedInput)) as refused:
        load(repacked(square, manifest=edit(path, value)))
    assert 400 <= refused.value.status < 500


def test_an_unknown_layer_kind_is_refused_when_the_pack_is_loaded(square):
    with pytest.raises(PackInvalid, match="manifest"):
        load(repacked(square, manifest=edit(("layers", 0, "kind"), "attention")))


def test_a_manifest_that_is_not_canonical_is_refused(tiny):
    unverified = pack.read(tiny.data, limit=moai.LIMIT)
    document = json.loads(unverified.manifest)
    for body in (
        json.dumps(document).encode(),
        unverified.manifest + b"\n",
        b"[" * 1000 + b"]" * 1000,
        b"\xff\xfe",
    ):
        envelope = dsse.seal(body, payload_type=pack.PAYLOAD_TYPE, signer=moai.signer())
        with pytest.raises(MalformedInput):
            pack.verify(pack.UnverifiedPack(body, unverified.weights, envelope), moai.trust())


def test_tensors_that_do_not_fit_the_graph_are_refused(square):
    good = tensors.load_any(pack.read(square.data, limit=moai.LIMIT).weights)
    bad = [
        {**good, "extra": np.ones(3)},
        {k: v for k, v in good.items() if k != "linear0.bias"},
        {**good, "linear0.bias": np.ones(3)},
        {**good, "linear0.bias": np.full(4, np.nan)},
        {**good, "linear0.weight": np.full((4, 4), np.inf)},
        {**good, "linear0.weight": np.zeros((4, 4))},
        {**good, "linear0.weight": np.full((4, 4), 1e9)},
        {**good, "activation0.coefficients": np.zeros((4, 3))},
    ]
    for values in bad:
        with pytest.raises(MalformedInput):
            load(repacked(square, weights=tensors.save(values)))
    from safetensors.numpy import save

    single = {name: value.astype(np.float32) for name, value in good.items()}
    for weights in (save(single), b"", b"\0" * 8, b"\xff" * 64, good["linear0.bias"].tobytes()):
        with pytest.raises((MalformedInput, PackInvalid)):
            load(repacked(square, weights=weights))


def test_safetensors_headers_that_lie_are_refused(square):
    good = pack.read(square.data, limit=moai.LIMIT).weights
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    data = good[8 + size :]
    name = "linear0.weight"

    def lie(**changes):
        text = json.dumps({**header, name: {**header[name], **changes}}).encode()
        return len(text).to_bytes(8, "little") + text + data

    for weights in (
        lie(data_offsets=[0, 1 << 60]),
        lie(data_offsets=[-8, 120]),
        lie(shape=[4, 4, 1 << 60]),
        lie(shape="4"),
        lie(dtype="BF16"),
        lie(dtype=7),
        (1 << 62).to_bytes(8, "little") + good[8:],
    ):
        with pytest.raises(MalformedInput):
            load(repacked(square, weights=weights))


def test_the_vector_still_verifies():
    """A pack that was written once, by the first release, is read by every later one."""
    expected = json.loads((VECTORS / "expected.json").read_text())
    name, key = HybridPublicKey.from_json((VECTORS / "signer.pub.json").read_bytes())
    store = TrustStore.from_keys({name: key})
    data = (VECTORS / "cubic.moai").read_bytes()
    verified = pack.verify(pack.read(data, limit=moai.LIMIT), store)
    assert verified.pack_id == expected["pack_id"]
    assert verified.spec.view().parameters_id == expected["parameters_id"]
    assert list(verified.spec.plan.rotations) == expected["rotations"]
    outputs = verified.spec.graph.apply(np.array(expected["inputs"]))
    np.testing.assert_allclose(outputs, expected["outputs"], rtol=1e-12)
    assert math.isclose(verified.manifest.precision.total_rms, expected["total_rms"])
    assert msgspec.json.encode(verified.spec.view()) == verified.spec.view().to_json()
