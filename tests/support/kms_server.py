"""A KMS server for tests: moto, with the two key specs and the refusals that real KMS has and moto lacks.

    python kms_server.py         prints its port, serves until it is ended

Added to moto: ECC_NIST_EDWARDS25519 and ML_DSA_65 keys (by `cryptography`), the message types DIGEST and
EXTERNAL_MU, `DisabledException` and `KMSInvalidStateException` for keys that are disabled or waiting for
deletion, and the limit of 4,096 bytes on what is signed. It speaks to one test process on loopback.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from moto.core.exceptions import JsonRESTError
from moto.kms import models
from moto.kms.responses import KmsResponse
from moto.kms.utils import KeySpec
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ADDED = {"ECC_NIST_EDWARDS25519": Ed25519PrivateKey, "ML_DSA_65": MLDSA65PrivateKey}
ALGORITHMS = {"ECC_NIST_EDWARDS25519": "ED25519_SHA_512", "ML_DSA_65": "ML_DSA_SHAKE_256"}
MAX_MESSAGE = 4096


class AddedKey:
    """A private key of a spec that moto does not have."""

    def __init__(self, spec: str) -> None:
        self.private = ADDED[spec].generate()

    def public_key(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def extend() -> None:
    """Give moto what it lacks."""
    known_specs, known_generate = KeySpec.key_specs(), models.generate_private_key
    KeySpec.key_specs = classmethod(lambda _: sorted({*known_specs, *ADDED}))
    models.generate_private_key = lambda spec: (
        AddedKey(spec) if spec in ADDED else known_generate(spec)
    )
    known_algorithms = models.Key.signing_algorithms.fget
    models.Key.signing_algorithms = property(
        lambda key: [ALGORITHMS[key.key_spec]] if key.key_spec in ADDED else known_algorithms(key)
    )
    for name in ("encrypt", "decrypt", "generate_data_key"):
        setattr(KmsResponse, name, enabled_only(getattr(KmsResponse, name)))
    KmsResponse.sign = enabled_only(sign)


def key_of(response: KmsResponse) -> Any:
    backend = response.kms_backend
    return backend.describe_key(backend.get_key_id(response._get_param("KeyId")))


def enabled_only(call: Any) -> Any:
    def checked(self: KmsResponse) -> str:
        self._validate_key_id(self._get_param("KeyId"))
        state = key_of(self).key_state
        if state == "Disabled":
            raise JsonRESTError("DisabledException", "the key is disabled")
        if state != "Enabled":
            raise JsonRESTError("KMSInvalidStateException", f"the key is {state}")
        return call(self)

    return checked


def sign(self: KmsResponse) -> str:
    key = key_of(self)
    kind, algorithm = self._get_param("MessageType") or "RAW", self._get_param("SigningAlgorithm")
    raw = self._get_param("Message")
    message = base64.b64decode(raw) if isinstance(raw, str) else raw
    if not 0 < len(message) <= MAX_MESSAGE or algorithm not in key.signing_algorithms:
        raise JsonRESTError("ValidationException", "the message or the algorithm is refused")
    private = key.private_key.private if isinstance(key.private_key, AddedKey) else None
    match key.key_spec, kind:
        case "ECC_NIST_EDWARDS25519" | "ML_DSA_65", "RAW":
            value = private.sign(message)
        case "ML_DSA_65", "EXTERNAL_MU":
            value = private.sign_mu(message)
        case "ECC_NIST_P256", "RAW":
            value = key.private_key.sign(message, algorithm)
        case "ECC_NIST_P256", "DIGEST":
            hashed = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
            value = key.private_key.private_key.sign(message, hashed)
        case _:
            raise JsonRESTError("ValidationException", "the message type is refused")
    answer = {
        "KeyId": key.arn,
        "Signature": base64.b64encode(value).decode(),
        "SigningAlgorithm": algorithm,
    }
    return json.dumps(answer)


class Handler(WSGIRequestHandler):
    """Keeps connections open, as AWS does, and writes no log."""

    protocol_version = "HTTP/1.1"

    def log(self, kind: str, message: str, *args: object) -> None:
        del kind, message, args


if __name__ == "__main__":
    extend()
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    print(server.server_port, flush=True)
    sys.exit(server.serve_forever())
