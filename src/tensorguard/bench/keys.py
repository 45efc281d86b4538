"""Microseconds per use of a key, for every provider beside raw `cryptography` in the same run.

`raw` does the same work on key objects that are set up already: no provider can be faster. The file
provider promises to stay within twice of it for signing and unwrapping.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tensorguard.bench.key_peers import open_peers
from tensorguard.bench.report import Report, Result, commit, machine, ratios, versions
from tensorguard.errors import TensorGuardError
from tensorguard.keys.cache import DataKeyCache
from tensorguard.keys.provider import Algorithm, KeyProvider, Purpose, WrapContext, key_id

SEED: Final = 20260501
MESSAGE: Final = b"m" * 256  # a token, a small manifest
CONTEXT: Final = WrapContext(purpose="bench", tenant="bench")
SIGNING: Final = {
    "sign-ed25519": Algorithm.ed25519,
    "sign-es256": Algorithm.es256,
    "sign-hybrid": Algorithm.hybrid,
}
BATCH_SECONDS: Final = (
    0.004  # a batch is long against the clock's resolution, and short for --quick
)
BARS: Final[Mapping[tuple[str, str, str], float]] = {
    (case, "file", "wall"): 0.5 for case in (*SIGNING, "unwrap")
}


@dataclass(frozen=True, slots=True)
class Work:
    """One operation of one variant and how often it runs per measurement."""

    case: str
    variant: str
    call: Callable[[], object]
    batch: int


def _calibrated(case: str, variant: str, call: Callable[[], object]) -> Work:
    for _ in range(3):
        call()
    begun = time.perf_counter()
    call()
    once = max(time.perf_counter() - begun, 1e-7)
    return Work(case, variant, call, max(1, min(5000, int(BATCH_SECONDS / once))))


def _raw() -> Iterable[tuple[str, Callable[[], object]]]:
    ed25519, p256 = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    ml_dsa, ecdsa = MLDSA65PrivateKey.generate(), ec.ECDSA(hashes.SHA256())
    aead, bound = AESGCM(os.urandom(32)), CONTEXT.associated_data(key_id("bench-unwrap"), 1)
    nonce = os.urandom(12)
    sealed = nonce + aead.encrypt(nonce, b"k" * 32, bound)
    yield "sign-ed25519", lambda: ed25519.sign(MESSAGE)
    yield "sign-es256", lambda: p256.sign(MESSAGE, ecdsa)
    yield "sign-hybrid", lambda: ed25519.sign(MESSAGE) + ml_dsa.sign(MESSAGE)
    yield "unwrap", lambda: aead.decrypt(sealed[:12], sealed[12:], bound)
    yield "wrap", lambda: aead.encrypt(os.urandom(12), b"k" * 32, bound)


def _uses(provider: KeyProvider) -> Iterable[tuple[str, Callable[[], object]]]:
    for case, algorithm in SIGNING.items():
        signer = key_id(f"bench-{case}")
        try:
            provider.create(signer, algorithm=algorithm, purpose=Purpose.pack_signing)
        except TensorGuardError:  # an emulator that lacks the algorithm
            continue
        yield case, lambda signer=signer: provider.sign(signer, MESSAGE)  # type: ignore[misc]
    kek = key_id("bench-unwrap")
    provider.create(kek, algorithm=Algorithm.aes256_gcm, purpose=Purpose.data_at_rest)
    wrapped = provider.wrap(kek, b"k" * 32, CONTEXT)
    cache = DataKeyCache(provider)
    yield "unwrap", lambda: provider.unwrap(kek, wrapped, CONTEXT)
    yield "unwrap-cached", lambda: cache.unwrap(kek, wrapped, CONTEXT)
    yield "wrap", lambda: provider.wrap(kek, b"k" * 32, CONTEXT)


def _measure(work: Work) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(work.batch):
        work.call()
    spent = (time.perf_counter() - wall, time.process_time() - cpu)
    return spent[0] / work.batch * 1e6, spent[1] / work.batch * 1e6


def run(*, quick: bool, progress: Callable[[str], None] = lambda _: None) -> Report:
    """Measure every installed custody, interleaved with `raw`."""
    rounds, order = (40 if quick else 200), random.Random(SEED)  # noqa: S311 - an order, not a secret
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="tg-bench-keys-")))
        progress("Starting SoftHSM2, OpenBao and moto")
        peers = open_peers(folder, ends)
        works = [_calibrated(case, "raw", call) for case, call in _raw()]
        absent = list(peers.missing)
        for name, provider in peers.providers.items():
            cases = {case: _calibrated(case, name, call) for case, call in _uses(provider)}
            works += cases.values()
            absent += [f"{name} {case}" for case in SIGNING if case not in cases]
        walls: dict[tuple[str, str], list[float]] = {}
        cpus: dict[tuple[str, str], list[float]] = {}
        for count in range(rounds):
            progress(f"Round {count + 1} of {rounds}")
            for work in order.sample(works, len(works)):
                wall, cpu = _measure(work)
                walls.setdefault((work.case, work.variant), []).append(wall)
                cpus.setdefault((work.case, work.variant), []).append(cpu)
    results = tuple(
        Result.of(case, variant, metric, "us", values[case, variant])
        for case, variant in sorted(walls)
        for metric, values in (("wall", walls), ("cpu", cpus))
    )
    return Report(
        bench="keys",
        commit=commit(),
        machine=machine(),
        versions=versions("cryptography"),
        seed=SEED,
        results=results,
        ratios=ratios(results, against="raw", metrics=("wall",), bars=BARS),
        missing=tuple(absent),
    )
