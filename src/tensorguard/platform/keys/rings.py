"""The rings that the platform itself uses, and under which names the custody keeps a tenant's keys.

The platform's own rings belong to the tenant `platform`: its trail records what happens to them, and
its security people (made with `tensorguard user create-admin --tenant platform`) administer them. The
fleet CA of a tenant is that tenant's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

from tensorguard.errors import MalformedInput
from tensorguard.keys.provider import Algorithm, KeyId, Purpose, key_id
from tensorguard.platform.keys.policy import Policy

PLATFORM_TENANT: Final = "platform"
POLICY_ACTOR: Final = "platform:key-policy"
NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
TENANT_HASH: Final = 16  # hex digits: 64 bits keep tenants apart, and the key id short


@dataclass(frozen=True, slots=True)
class OwnRing:
    """A ring of the platform itself, and its policy when it is made."""

    purpose: Purpose
    algorithm: Algorithm
    policy: Policy


DATA_AT_REST: Final = key_id("data-at-rest")
FLEET_CA: Final = "fleet-ca"
OWN_RINGS: Final[Mapping[str, OwnRing]] = MappingProxyType(
    {
        # tokens live for 10 minutes, and gateways fetch the key set when a key is new to them
        "token-signing": OwnRing(
            Purpose.token_signing,
            Algorithm.ed25519,
            Policy(timedelta(days=30), timedelta(hours=1)),
        ),
        # old heads are evidence: their versions verify for ever
        "audit-head": OwnRing(Purpose.audit_head, Algorithm.hybrid, Policy(timedelta(days=365))),
        DATA_AT_REST: OwnRing(
            Purpose.data_at_rest,
            Algorithm.aes256_gcm,
            Policy(timedelta(days=90), timedelta(days=7)),
        ),
    }
)
RESERVED: Final = frozenset({*OWN_RINGS, FLEET_CA})

USUAL: Final[Mapping[Purpose, Algorithm]] = MappingProxyType(
    {
        Purpose.pack_signing: Algorithm.hybrid,
        Purpose.token_signing: Algorithm.ed25519,
        Purpose.data_at_rest: Algorithm.aes256_gcm,
    }
)


def ring_name(text: str) -> str:
    """Return `text` if it can name a tenant's ring. Raises `MalformedInput`."""
    if not NAME.fullmatch(text) or text in RESERVED:
        raise MalformedInput(
            "a ring's name has 1 to 40 of a-z, 0-9 and - inside, and is not the platform's own"
        )
    return text


def tenant_key_id(tenant_id: str, name: str) -> KeyId:
    """Return where the custody keeps a tenant's ring; no tenant's name reaches another's."""
    digest = hashlib.sha256(tenant_id.encode()).hexdigest()[:TENANT_HASH]
    return key_id(f"t-{digest}-{name}")
