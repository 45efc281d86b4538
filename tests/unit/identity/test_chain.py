"""Chains: whatever is not a device leaf of this root is refused."""

import os
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from support.csrs import csr, p256
from tensorguard.errors import TooLarge
from tensorguard.identity import ca, chain
from tensorguard.identity.csr import parse
from tensorguard.identity.profile import CertificateRefused, key_usage

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
TENANT = "1d5c1c1e-0000-4000-8000-000000000001"
DEVICE = "1d5c1c1e-0000-4000-8000-00000000000d"


def issue(fleet_ca):
    return chain.load(fleet_ca.issue(parse(csr(p256())), DEVICE, now=NOW).pem)


@pytest.mark.parametrize(
    ("moment", "reason"),
    [(NOW - timedelta(minutes=6), "not valid yet"), (NOW + timedelta(days=47), "expired")],
)
def test_out_of_its_time_a_leaf_is_refused(fleet_ca, root, moment, reason):
    with pytest.raises(CertificateRefused, match=reason):
        chain.verify(issue(fleet_ca), root, now=moment)


def test_a_leaf_of_another_tenants_ca_is_refused(provider, fleet_ca):
    other = chain.load(ca.make_root(provider, "another", now=NOW).pem)
    with pytest.raises(CertificateRefused, match="not issued by"):
        chain.verify(issue(fleet_ca), other, now=NOW)


def test_a_root_with_the_same_name_and_another_key_is_refused(fleet_ca, root):
    forged = forge(root.subject, p256(), signer=None, ca_bits=True)
    with pytest.raises(CertificateRefused, match="not issued by"):
        chain.verify(issue(fleet_ca), forged, now=NOW)


def test_a_leaf_is_no_root(fleet_ca):
    certificate = issue(fleet_ca)
    with pytest.raises(CertificateRefused, match="root"):
        chain.verify(certificate, certificate, now=NOW)


def forge(subject, key, *, signer, ca_bits, uris=("spiffe://t/device/d",), server=False):
    """Sign what a careless CA would."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(
            x509.BasicConstraints(ca=ca_bits, path_length=0 if ca_bits else None), critical=True
        )
        .add_extension(key_usage(ca=ca_bits), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    issuer = signer or key
    if not ca_bits:
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = (
            builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),
                critical=False,
            )
        )
    return builder.sign(issuer, hashes.SHA256())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"server": True}, "client authentication"),
        ({"uris": ("https://example/device/d",)}, "name a device"),
        ({"uris": ("spiffe://t/device/d", "spiffe://t/device/e")}, "one device"),
        ({"uris": ("spiffe://t/device/../d",)}, "name a device"),
    ],
)
def test_a_leaf_off_the_profile_is_refused(options, reason):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "careless CA")])
    signer = p256()
    root = forge(name, signer, signer=None, ca_bits=True)
    good = forge(name, p256(), signer=signer, ca_bits=False)
    assert chain.verify(good, root, now=NOW).device_id == "d"
    with pytest.raises(CertificateRefused, match=reason):
        chain.verify(forge(name, p256(), signer=signer, ca_bits=False, **options), root, now=NOW)


def test_oversized_certificates_are_refused():
    with pytest.raises(TooLarge):
        chain.load("-----BEGIN CERTIFICATE-----" + "A" * 10_000)


@pytest.mark.parametrize(
    "text", ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_garbage_is_no_certificate(text):
    with pytest.raises(chain.CertificateMalformed):
        chain.load(text)


def test_openssl_accepts_the_chain(fleet_ca, root, tmp_path):
    pem = serialization.Encoding.PEM
    (tmp_path / "root.pem").write_bytes(root.public_bytes(pem))
    (tmp_path / "leaf.pem").write_bytes(issue(fleet_ca).public_bytes(pem))
    moment = str(int(NOW.timestamp()))
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-attime", moment,
         "-CAfile", str(tmp_path / "root.pem"), str(tmp_path / "leaf.pem")],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == os.EX_OK, done.stderr
