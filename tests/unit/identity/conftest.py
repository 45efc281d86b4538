"""A fleet CA over a file key provider in a temporary folder."""

from datetime import UTC, datetime

import pytest
from pydantic import SecretBytes

from tensorguard.identity import ca, chain
from tensorguard.keys.file import FileKeyProvider

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
TENANT = "1d5c1c1e-0000-4000-8000-000000000001"
DEVICE = "1d5c1c1e-0000-4000-8000-00000000000d"


@pytest.fixture
def provider(tmp_path):
    return FileKeyProvider(tmp_path / "keys", SecretBytes(bytes(range(32))), now=lambda: NOW)


@pytest.fixture
def root(provider):
    return chain.load(ca.make_root(provider, TENANT, now=NOW).pem)


@pytest.fixture
def fleet_ca(provider, root):
    return ca.FleetCa(provider, TENANT, root)
