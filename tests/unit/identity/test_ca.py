"""The fleet CA: what its leaves say, and what it refuses to sign."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from support.csrs import csr, ed25519, p256
from tensorguard.identity import ca, chain
from tensorguard.identity.csr import parse
from tensorguard.identity.profile import CertificateRefused
from tensorguard.keys.provider import Algorithm, Purpose, WrongKeyUse

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
TENANT = "1d5c1c1e-0000-4000-8000-000000000001"
DEVICE = "1d5c1c1e-0000-4000-8000-00000000000d"


def leaf(fleet_ca, key=None, **options):
    proven = parse(csr(key or p256()))
    return chain.load(fleet_ca.issue(proven, DEVICE, now=NOW, **options).pem)


@pytest.mark.parametrize("make", [p256, ed25519])
def test_a_leaf_names_its_device_and_verifies(fleet_ca, root, make):
    certificate = leaf(fleet_ca, make())
    name = chain.verify(certificate, root, now=NOW)
    assert (name.tenant_id, name.device_id) == (TENANT, DEVICE)


def test_a_leaf_follows_the_profile(fleet_ca):
    certificate = leaf(fleet_ca)
    extensions = certificate.extensions
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert san.value.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://{TENANT}/device/{DEVICE}"
    ]
    assert list(certificate.subject) == []
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not any((usage.key_cert_sign, usage.key_agreement, usage.key_encipherment))
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert certificate.not_valid_before_utc == NOW - timedelta(minutes=5)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life <= timedelta(days=47)


def test_a_longer_life_than_47_days_is_not_given(fleet_ca):
    certificate = leaf(fleet_ca, lifetime=timedelta(days=400))
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life == timedelta(days=47)


def test_names_and_extensions_that_a_request_asks_for_are_ignored(fleet_ca, root):
    wishes = [
        x509.BasicConstraints(ca=True, path_length=5),
        x509.SubjectAlternativeName([x509.DNSName("platform.example")]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
    ]
    proven = parse(csr(p256(), name="admin", extensions=wishes))
    certificate = chain.load(fleet_ca.issue(proven, DEVICE, now=NOW).pem)
    assert chain.verify(certificate, root, now=NOW).device_id == DEVICE


def test_the_root_may_sign_leaves_only(root):
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)


def test_an_expired_root_signs_nothing(provider, root):
    late = NOW + timedelta(days=3651)
    with pytest.raises(CertificateRefused, match="expired"):
        ca.FleetCa(provider, TENANT, root).issue(parse(csr(p256())), DEVICE, now=late)


def test_a_root_of_another_key_is_refused(provider):
    other = chain.load(ca.make_root(provider, "another", now=NOW).pem)
    ca.make_root(provider, TENANT, now=NOW)
    with pytest.raises(ca.FleetCaUnusable):
        ca.FleetCa(provider, TENANT, other)


def test_a_key_of_another_purpose_is_no_ca_key(provider):
    key = ca.ca_key_id(TENANT)
    provider.create(key, algorithm=Algorithm.es256, purpose=Purpose.token_signing)
    with pytest.raises(WrongKeyUse):
        ca.make_root(provider, TENANT, now=NOW)
