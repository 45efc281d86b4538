"""Encrypted inference beside TenSEAL as people write it: same network, same polynomial, one run.

What is timed is the server's part. Ours includes parsing and validating the frame, and serialising the
result; the naive variant only computes. Variants take turns, so that a noisy machine hurts both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorguard.bench import heads
from tensorguard.bench.heads import Head
from tensorguard.bench.naive import NaiveTenSeal
from tensorguard.bench.report import Report, Result, commit, machine, ratios, versions
from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.crypto.trust import TrustStore
from tensorguard.moai import pack
from tensorguard.moai.backends.base import open_backend
from tensorguard.moai.client import ClientKeys
from tensorguard.moai.compile import build_pack, compile_network

Floats = npt.NDArray[np.float64]
Progress = Callable[[str], None]
SEED = 20240917
ROUNDS, QUICK_ROUNDS = 20, 4
_PACK_LIMIT = 1 << 26

CASES: Mapping[str, Callable[[int], Head]] = MappingProxyType(
    {
        "reacher-policy": lambda seed: heads.reacher_policy(seed=seed),
        "matvec-256": lambda seed: heads.matvec(256, seed=seed),
        "mlp-64-32-10": lambda seed: heads.digits(seed=seed),
    }
)
BARS: Mapping[tuple[str, str, str], float] = MappingProxyType({})  # nothing is promised yet


class Ours:
    """Encrypts, evaluates and decrypts through a signed pack, the backend and the client."""

    def __init__(self, head: Head) -> None:
        signer = SoftwareHybridSigner.generate()
        compiled = compile_network(head.network, head.calibration)
        data = build_pack(compiled, name="bench", version="1", signer=signer)
        trust = TrustStore.from_keys({"bench": signer.public_key})
        verified = pack.verify(pack.read(data, limit=_PACK_LIMIT), trust)
        self._model = open_backend("tenseal").load(verified)
        self._client = ClientKeys.generate(self._model.spec.view())
        self._keys = self._model.load_keys(self._client.evaluation_keys())

    def encrypt(self, x: Floats) -> bytes:
        """Return the frame of one raw input."""
        return self._client.encrypt(x)

    def evaluate(self, frame: bytes) -> bytes:
        """Do what the server does."""
        return self._model.evaluate(self._keys, frame)

    def decrypt(self, frame: bytes) -> Floats:
        """Return the outputs."""
        return self._client.decrypt(frame)


def run(
    *,
    quick: bool,
    progress: Progress,
    seed: int = SEED,
    cases: Mapping[str, Callable[[int], Head]] = CASES,
) -> Report:
    """Run all cases. `quick` takes fewer rounds; it ends within 50 s on two cores."""
    missing: list[str] = []
    results: list[Result] = []
    for case, make in cases.items():
        progress(case)
        try:
            head = make(seed)
        except ImportError as error:
            missing.append(f"{case}: {error.name} is not installed")
            continue
        results += _measure(case, head, rounds=QUICK_ROUNDS if quick else ROUNDS)
    return Report(
        bench="inference",
        commit=commit(),
        machine=machine(),
        versions=versions("numpy", "tenseal"),
        seed=seed,
        results=tuple(results),
        ratios=ratios(results, against="tenseal-naive", metrics=("wall", "cpu"), bars=BARS),
        missing=tuple(missing),
    )


def _measure(case: str, head: Head, *, rounds: int) -> list[Result]:
    variants: dict[str, Any] = {"tenseal-naive": NaiveTenSeal(head.network), "tenseal": Ours(head)}
    network = head.network
    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    errors: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):  # the first round warms up
        x = head.inputs[turn % len(head.inputs)]
        truth = network.raw(x[None])[0] * network.output_scale + network.output_offset
        for name, variant in variants.items():
            encrypted = variant.encrypt(x)
            started, worked = time.perf_counter(), time.process_time()
            result = variant.evaluate(encrypted)
            worked, started = time.process_time() - worked, time.perf_counter() - started
            if turn:
                wall[name].append(started * 1e3)
                cpu[name].append(worked * 1e3)
                errors[name].append(float(np.abs(variant.decrypt(result) - truth).max()))
    return [
        Result.of(case, name, metric, unit, values[name])
        for name in variants
        for metric, unit, values in (
            ("wall", "ms", wall),
            ("cpu", "ms", cpu),
            ("error", "max abs", errors),
        )
    ]
