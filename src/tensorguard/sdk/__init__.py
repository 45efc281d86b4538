"""What customers import: a device, its telemetry, a fleet, and models on encrypted data.

Everything raised derives from `TensorGuardError` and has a `code` and a `remedy`; what a server
refused is a `RemoteProblem` with the code and the remedy that it gave. Each noun is imported when it
is first used: a robot that only sends telemetry loads no cryptography for models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorguard.errors import TensorGuardError
    from tensorguard.sdk.device import DeviceIdentity
    from tensorguard.sdk.fleet import FleetClient
    from tensorguard.sdk.inference import (
        EncryptedModel,
        InferenceClient,
        ModelChanged,
        PackNotPinned,
        Timing,
    )
    from tensorguard.sdk.sharing import SharedResults
    from tensorguard.sdk.telemetry import TelemetryClient
    from tensorguard.sdk.transport import InsecureUrl, ServerUnreachable
    from tensorguard.wire.problems import RemoteProblem

__all__ = [
    "DeviceIdentity",
    "EncryptedModel",
    "FleetClient",
    "InferenceClient",
    "InsecureUrl",
    "ModelChanged",
    "PackNotPinned",
    "RemoteProblem",
    "ServerUnreachable",
    "SharedResults",
    "TelemetryClient",
    "TensorGuardError",
    "Timing",
]

_MODULES = {
    "DeviceIdentity": "tensorguard.sdk.device",
    "EncryptedModel": "tensorguard.sdk.inference",
    "FleetClient": "tensorguard.sdk.fleet",
    "InferenceClient": "tensorguard.sdk.inference",
    "InsecureUrl": "tensorguard.sdk.transport",
    "ModelChanged": "tensorguard.sdk.inference",
    "PackNotPinned": "tensorguard.sdk.inference",
    "RemoteProblem": "tensorguard.wire.problems",
    "ServerUnreachable": "tensorguard.sdk.transport",
    "SharedResults": "tensorguard.sdk.sharing",
    "TelemetryClient": "tensorguard.sdk.telemetry",
    "TensorGuardError": "tensorguard.errors",
    "Timing": "tensorguard.sdk.inference",
}


def __getattr__(name: str) -> object:
    """Import a public noun when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    noun: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = noun
    return noun


def __dir__() -> list[str]:
    return sorted(__all__)
