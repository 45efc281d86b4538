"""Before a process serves, its key provider proves itself: sign and verify, wrap and unwrap."""

from __future__ import annotations

import secrets

from tensorguard.errors import TensorGuardError
from tensorguard.keys.provider import Algorithm, KeyProvider, Purpose, WrapContext, key_id
from tensorguard.keys.registry import open_provider
from tensorguard.keys.signers import ensure
from tensorguard.settings import Settings

SIGNING_KEY = key_id("self-test-signing")
WRAPPING_KEY = key_id("self-test-wrapping")


class SelfTestFailed(TensorGuardError):
    code = "key_self_test"
    status = 503
    remedy = "Do not use this key provider; find out why what it wrapped did not come back."


def run(provider: KeyProvider) -> None:
    """Sign, verify, wrap and unwrap for real. Raises a `TensorGuardError`."""
    nonce = secrets.token_bytes(32)
    ensure(provider, SIGNING_KEY, Algorithm.ed25519, Purpose.token_signing)
    signature = provider.sign(SIGNING_KEY, nonce)
    provider.public_key(SIGNING_KEY, signature.version).verify(nonce, signature.value)
    ensure(provider, WRAPPING_KEY, Algorithm.aes256_gcm, Purpose.data_at_rest)
    context = WrapContext(purpose="self-test", tenant="-")
    wrapped = provider.wrap(WRAPPING_KEY, nonce, context)
    if provider.unwrap(WRAPPING_KEY, wrapped, context) != nonce:
        raise SelfTestFailed("the key provider did not return what it wrapped")


def probe(settings: Settings) -> str | None:
    """Say why the configured provider cannot be used, or None; for the KEY_PROVIDER gate."""
    try:
        run(open_provider(settings))
    except TensorGuardError as error:
        return f"TG_KEY_PROVIDER cannot be used: {error}."
    except OSError as error:
        return f"TG_KEY_PROVIDER cannot be used: {error.strerror}."
    return None
