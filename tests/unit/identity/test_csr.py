"""Certificate requests: proof of possession, bounded, and nothing else is taken from them."""

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from support.csrs import csr, ed25519, p256
from tensorguard.errors import InputError, TooLarge
from tensorguard.identity.csr import CsrMalformed, CsrRefused, load_spki, parse, spki


@pytest.mark.parametrize("make", [p256, ed25519])
def test_a_signed_request_gives_its_key(make):
    key = make()
    proven = parse(csr(key))
    assert proven.spki == spki(key.public_key())
    assert load_spki(proven.spki) == key.public_key()


def test_a_request_signed_by_another_key_is_refused():
    mine, theirs = p256(), p256()
    request = x509.load_pem_x509_csr(csr(mine).encode())
    stolen = request.public_bytes(serialization.Encoding.DER).replace(
        spki(mine.public_key()), spki(theirs.public_key())
    )
    body = base64.encodebytes(stolen).decode()
    with pytest.raises(CsrRefused, match="not signed by its key"):
        parse(f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n")


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["rsa", "p384", "secp256k1"],
)
def test_other_kinds_of_keys_are_refused(key):
    with pytest.raises(CsrRefused, match="P-256 or Ed25519"):
        parse(csr(key))


def test_a_weak_digest_is_refused():
    with pytest.raises(CsrRefused, match="sha224"):
        parse(csr(p256(), digest=hashes.SHA224()))


def test_a_megabyte_is_refused_before_it_is_parsed():
    with pytest.raises(TooLarge):
        parse("A" * 1_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "-----BEGIN CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST-----\n!!!!\n-----END CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST-----\n\N{SNOWMAN}\n-----END CERTIFICATE REQUEST-----",
    ],
)
def test_garbage_is_malformed(text):
    with pytest.raises(CsrMalformed):
        parse(text)


def test_two_requests_in_one_text_are_malformed():
    with pytest.raises(CsrMalformed, match="more than one"):
        parse(csr(p256()) + csr(p256()))


def test_every_truncation_and_bit_flip_is_refused_as_input():
    der = x509.load_pem_x509_csr(csr(p256()).encode()).public_bytes(serialization.Encoding.DER)
    for position in range(0, len(der), 3):
        for bad in (
            der[:position],
            der[:position] + bytes([der[position] ^ 0x41]) + der[position + 1 :],
        ):
            body = base64.encodebytes(bad).decode()
            with pytest.raises((InputError, CsrRefused)):
                parse(
                    f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----"
                )
