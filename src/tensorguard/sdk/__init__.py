"""What customers import: a gateway, a model on it, and what can go wrong.

Everything raised derives from `TensorGuardError` and has a `code` and a `remedy`; what a server
refused is a `RemoteProblem` with the code and the remedy that it gave.
"""

from __future__ import annotations

from tensorguard.errors import TensorGuardError
from tensorguard.sdk.inference import (
    EncryptedModel,
    InferenceClient,
    ModelChanged,
    PackNotPinned,
    Timing,
)
from tensorguard.sdk.transport import InsecureUrl, ServerUnreachable
from tensorguard.wire.problems import RemoteProblem

__all__ = [
    "EncryptedModel",
    "InferenceClient",
    "InsecureUrl",
    "ModelChanged",
    "PackNotPinned",
    "RemoteProblem",
    "ServerUnreachable",
    "TensorGuardError",
    "Timing",
]
