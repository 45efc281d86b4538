"""The file provider signs and unwraps within twice of raw `cryptography`; the bench says so."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretBytes

from support.keys import CONTEXT
from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import Algorithm, Purpose, key_id

KEY = key_id("key")
PROMISE = 2.0
ROUNDS = 40


def fastest(calls: dict[str, Callable[[], object]], batch: int) -> dict[str, float]:
    """The best of many short, interleaved batches: what other processes do falls out of it."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(batch):
                call()
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


@pytest.fixture
def provider(tmp_path: Path) -> FileKeyProvider:
    return FileKeyProvider(
        tmp_path / "keys", SecretBytes(secrets.token_bytes(32)), now=lambda: datetime.now(UTC)
    )


def test_unwrap(provider: FileKeyProvider) -> None:
    provider.create(KEY, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    wrapped = provider.wrap(KEY, b"k" * 32, CONTEXT)
    aead, bound = AESGCM(secrets.token_bytes(32)), CONTEXT.associated_data(KEY, 1)
    sealed = wrapped[4:16] + aead.encrypt(wrapped[4:16], b"k" * 32, bound)
    took = fastest(
        {
            "raw": lambda: aead.decrypt(sealed[:12], sealed[12:], bound),
            "file": lambda: provider.unwrap(KEY, wrapped, CONTEXT),
        },
        500,
    )
    assert took["file"] < PROMISE * took["raw"]


@pytest.mark.parametrize("algorithm", [Algorithm.ed25519, Algorithm.es256])
def test_sign(provider: FileKeyProvider, algorithm: Algorithm) -> None:
    provider.create(KEY, algorithm=algorithm, purpose=Purpose.token_signing)
    ed25519, p256 = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    ecdsa = ec.ECDSA(hashes.SHA256())
    raw = {
        Algorithm.ed25519: lambda: ed25519.sign(b"message"),
        Algorithm.es256: lambda: p256.sign(b"message", ecdsa),
    }[algorithm]
    took = fastest({"raw": raw, "file": lambda: provider.sign(KEY, b"message")}, 30)
    assert took["file"] < PROMISE * took["raw"]


def test_the_bench_measures_every_custody_beside_raw() -> None:
    """In a process of its own: it configures the PKCS#11 module, of which a process has one."""
    program = "import json; from tensorguard.bench import keys; print(json.dumps(keys.run(quick=True).to_dict()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=120
    )
    told = json.loads(done.stdout)
    assert told["bench"] == "keys"
    assert set(told["missing"]) == {"awskms-moto sign-ed25519", "awskms-moto sign-hybrid"}
    measured = {(r["case"], r["variant"]) for r in told["results"]}
    for variant in ("file", "pkcs11-softhsm", "vault-openbao"):
        for case in ("sign-ed25519", "sign-es256", "sign-hybrid", "unwrap", "wrap"):
            assert (case, variant) in measured
            assert (case, "raw") in measured
    assert ("unwrap", "awskms-moto") in measured
    promised = {(r["case"], r["variant"]) for r in told["ratios"] if r["bar"] is not None}
    assert promised == {
        (case, "file") for case in ("sign-ed25519", "sign-es256", "sign-hybrid", "unwrap")
    }
    assert all(
        r["median"] > 0 and r["unit"] == "us" for r in told["results"] if r["metric"] == "wall"
    )
