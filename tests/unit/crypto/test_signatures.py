"""Hybrid signatures and DSSE: both halves, the type, the trusted signer, the canonical bytes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tensorguard.crypto import canonical, dsse
from tensorguard.crypto.hybrid import (
    HybridPublicKey,
    HybridSignature,
    SignatureInvalid,
    SoftwareHybridSigner,
)
from tensorguard.crypto.trust import TrustStore, TrustStoreUnusable, UntrustedSigner
from tensorguard.errors import MalformedInput, TensorGuardError, VerificationError

KIND = "application/vnd.tensorguard.test+json"
SIGNER = SoftwareHybridSigner.generate()
TRUST = TrustStore.from_keys({"alice": SIGNER.public_key})
ENVELOPE = dsse.seal(b"payload", payload_type=KIND, signer=SIGNER)


def changed(**members: object) -> bytes:
    return canonical.encode({**json.loads(ENVELOPE), **members})


def test_round_trip_names_the_signer() -> None:
    found = dsse.open_envelope(ENVELOPE, payload_type=KIND, trust=TRUST, limit=100)
    assert (found.payload, found.signer_name) == (b"payload", "alice")


@pytest.mark.invariant("TG-I05")
def test_either_half_alone_is_refused() -> None:
    good = SIGNER.sign(b"m")
    other = SoftwareHybridSigner.generate().sign(b"m")
    for forged in (
        HybridSignature(good.ed25519, other.ml_dsa_65),
        HybridSignature(other.ed25519, good.ml_dsa_65),
        HybridSignature(good.ed25519, b""),
        HybridSignature(b"", good.ml_dsa_65),
    ):
        with pytest.raises(SignatureInvalid):
            SIGNER.public_key.verify(b"m", forged)


def test_payload_type_is_signed() -> None:
    forged = changed(payloadType="application/other")
    with pytest.raises(VerificationError):
        dsse.open_envelope(forged, payload_type=KIND, trust=TRUST, limit=100)
    with pytest.raises(SignatureInvalid):
        dsse.open_envelope(forged, payload_type="application/other", trust=TRUST, limit=100)


def test_signer_that_is_not_trusted() -> None:
    stranger = dsse.seal(b"payload", payload_type=KIND, signer=SoftwareHybridSigner.generate())
    with pytest.raises(UntrustedSigner):
        dsse.open_envelope(stranger, payload_type=KIND, trust=TRUST, limit=100)


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"{}",
        b"[]",
        b" " + ENVELOPE,
        ENVELOPE + b"\n",
        ENVELOPE[:-1],
        changed(extra=1),
        changed(signatures=[]),
        changed(signatures=json.loads(ENVELOPE)["signatures"][:1]),
        changed(signatures=json.loads(ENVELOPE)["signatures"][::-1]),
        changed(payload="%%%"),
        changed(payload=None),
    ],
)
def test_malformed_envelopes(forged: bytes) -> None:
    with pytest.raises(MalformedInput):
        dsse.open_envelope(forged, payload_type=KIND, trust=TRUST, limit=100)


def test_changed_payload() -> None:
    forged = changed(payload=base64.b64encode(b"paylOad").decode())
    with pytest.raises(SignatureInvalid):
        dsse.open_envelope(forged, payload_type=KIND, trust=TRUST, limit=100)


def test_payload_over_the_limit() -> None:
    with pytest.raises(TensorGuardError):
        dsse.open_envelope(ENVELOPE, payload_type=KIND, trust=TRUST, limit=3)


def test_empty_trust_store_is_refused(tmp_path: Path) -> None:
    for build in (
        lambda: TrustStore.from_keys({}),
        lambda: TrustStore.from_folder(tmp_path),
        lambda: TrustStore.from_folder(tmp_path / "absent"),
    ):
        with pytest.raises(TrustStoreUnusable):
            build()


def test_public_key_file_round_trip_and_edits(tmp_path: Path) -> None:
    data = SIGNER.public_key.to_json(name="alice")
    assert HybridPublicKey.from_json(data) == ("alice", SIGNER.public_key)
    (tmp_path / "alice.pub.json").write_bytes(data)
    assert len(TrustStore.from_folder(tmp_path)) == 1
    edited = {**json.loads(data), "ed25519": base64.b64encode(b"\1" * 32).decode()}
    (tmp_path / "bad.pub.json").write_bytes(canonical.encode(edited))
    with pytest.raises(TrustStoreUnusable):
        TrustStore.from_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    ['{"a":1,"a":2}', "NaN", '{"a":Infinity}', "[" * 65 + "]" * 65, "", '"\\ud800', "{}{}"],
)
def test_strict_json_refuses(text: str) -> None:
    with pytest.raises(MalformedInput):
        canonical.parse(text.encode(), limit=1000)


@pytest.mark.parametrize("text", ['{"b":1,"a":2}', '{"a": 1}', "1.0", '"\\u0061"'])
def test_another_encoding_of_the_same_value_is_refused(text: str) -> None:
    with pytest.raises(MalformedInput):
        canonical.decode(text.encode(), limit=1000)


def test_brackets_in_strings_do_not_nest() -> None:
    assert canonical.parse(b'{"a":"[[[[\\"{{"}', limit=100, depth=1) == {"a": '[[[["{{'}
