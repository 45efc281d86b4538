"""Encrypted inference beside TenSEAL as people write it: same network, same polynomial, one run.

What is timed is the server's part. Ours includes parsing and validating the frame, and serialising the
result; the naive variant only computes. Variants take turns, so that a noisy machine hurts all of them.
The native backend runs once with each set of kernels that this CPU has, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from tensorguard.bench import heads
from tensorguard.bench.heads import Head
from tensorguard.bench.naive import NaiveBatch, NaivePolynomial, NaiveTenSeal, in_batches
from tensorguard.bench.report import Report, Result, commit, machine, ratios, versions
from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.crypto.trust import TrustStore
from tensorguard.moai import pack
from tensorguard.moai.backends.base import (
    Backend,
    BackendUnusable,
    LayoutUnsupported,
    open_backend,
)
from tensorguard.moai.client import ClientKeys
from tensorguard.moai.compile import build_pack, compile_network
from tensorguard.moai.plan import Layout

Floats = npt.NDArray[np.float64]
Progress = Callable[[str], None]
SEED = 20240917
ROUNDS = 50
QUICK_ROUNDS = 2  # of our variants, behind one that warms up; naive TenSEAL runs once
KERNELS = ("scalar", "avx2", "ifma")
_PACK_LIMIT = 1 << 26

CASES: Mapping[str, Callable[[int], Head]] = MappingProxyType(
    {
        "reacher-policy": lambda seed: heads.reacher_policy(seed=seed),
        "matvec-256": lambda seed: heads.matvec(256, seed=seed),
        "mlp-64-32-10": lambda seed: heads.digits(seed=seed),
        "mlp-64-128-64-10": lambda seed: heads.digits(seed=seed, hidden=(128, 64)),
        "chebyshev-27": lambda _: heads.chebyshev(27),
        "batch-digits-8192": lambda seed: heads.digits_batch(8192, seed=seed),
        "lora-384-r16": lambda seed: heads.adapter(384, 16, seed=seed),
    }
)
LONG = frozenset({"mlp-64-128-64-10", "batch-digits-8192"})  # too long for `quick`
_NATIVE = tuple(f"native-{name}" for name in KERNELS)
BARS: Mapping[tuple[str, str, str], float] = MappingProxyType(
    {
        ("matvec-256", "tenseal", "cpu"): 8,
        ("matvec-256", "native-scalar", "cpu"): 25,
        ("matvec-256", "native-ifma", "cpu"): 45,
        **{("mlp-64-32-10", name, "cpu"): 10 for name in _NATIVE},
        **{("mlp-64-128-64-10", name, "cpu"): 12 for name in _NATIVE},
        ("batch-digits-8192", "native-ifma", "cpu"): 10,
        **{("chebyshev-27", name, "cpu"): 2 for name in _NATIVE},
        **{("chebyshev-27", name, "error"): 100 for name in ("tenseal", *_NATIVE)},
    }
)

T = TypeVar("T")


class Variant(Protocol[T]):
    """One program; its ciphertexts are its own."""

    def encrypt(self, x: Floats) -> T:
        """Encrypt one raw input."""
        ...

    def evaluate(self, encrypted: T) -> T:
        """Do what the server does: this is timed."""
        ...

    def decrypt(self, encrypted: T) -> Floats:
        """Return the outputs."""
        ...


@dataclass(frozen=True)
class Signed:
    """A signed and verified pack of a head, and one client of it."""

    pack: pack.VerifiedPack

    @classmethod
    def of(cls, head: Head) -> Signed:
        """Compile, sign and verify."""
        signer = SoftwareHybridSigner.generate()
        layout: Layout = "columns" if head.batch else "blocks"
        compiled = compile_network(head.network, head.calibration, layout=layout)
        data = build_pack(compiled, name="bench", version="1", signer=signer)
        trust = TrustStore.from_keys({"bench": signer.public_key})
        return cls(pack.verify(pack.read(data, limit=_PACK_LIMIT), trust))

    @cached_property
    def client(self) -> ClientKeys:
        """The client, with a fresh secret key."""
        return ClientKeys.generate(self.pack.spec.view())

    @cached_property
    def keys(self) -> bytes:
        """The frame of the client's evaluation keys."""
        return self.client.evaluation_keys()


class Ours:
    """Encrypts, evaluates and decrypts through a signed pack, a backend and the client."""

    def __init__(self, signed: Signed, backend: Backend) -> None:
        self._client = signed.client
        self._model = backend.load(signed.pack)
        self._keys = self._model.load_keys(signed.keys)

    def encrypt(self, x: Floats) -> bytes:
        """Return the frame of one raw input."""
        return self._client.encrypt(x)

    def evaluate(self, encrypted: bytes) -> bytes:
        """Do what the server does."""
        return self._model.evaluate(self._keys, encrypted)

    def decrypt(self, encrypted: bytes) -> Floats:
        """Return the outputs."""
        return self._client.decrypt(encrypted)


class OursInBatches:
    """The same for many samples; a frame holds as many as a ciphertext has slots."""

    def __init__(self, signed: Signed, backend: Backend) -> None:
        self._client = signed.client
        self._model = backend.load(signed.pack)
        self._keys = self._model.load_keys(signed.keys)
        self._samples = signed.pack.spec.parameters.slots
        self._rows = 0  # of what was encrypted last

    def encrypt(self, x: Floats) -> list[bytes]:
        """Return the frames of rows of raw inputs."""
        self._rows = len(x)
        return [self._client.encrypt_batch(part) for part in in_batches(x, self._samples)]

    def evaluate(self, encrypted: list[bytes]) -> list[bytes]:
        """Do what the server does."""
        return [self._model.evaluate(self._keys, frame) for frame in encrypted]

    def decrypt(self, encrypted: list[bytes]) -> Floats:
        """Return the outputs by rows."""
        parts = [self._client.decrypt_batch(x, samples=self._samples) for x in encrypted]
        return np.concatenate(parts)[: self._rows]


def backends() -> tuple[dict[str, Backend], list[str]]:
    """Return our backends by the name of their variant, and what this machine cannot run."""
    found, missing = {"tenseal": open_backend("tenseal")}, []
    for name in KERNELS:
        try:
            found[f"native-{name}"] = open_backend("native", kernels=name)
        except BackendUnusable as error:
            missing.append(f"native-{name}: {error}")
    return found, missing


def run(
    *,
    quick: bool,
    progress: Progress,
    seed: int = SEED,
    cases: Mapping[str, Callable[[int], Head]] = CASES,
) -> Report:
    """Run all cases. `quick` takes fewer rounds; it ends within 50 s on two cores."""
    ours, missing = backends()
    results: list[Result] = []
    for case, make in cases.items():
        if quick and case in LONG:
            missing.append(f"{case}: it takes too long for --quick")
            continue
        progress(case)
        try:
            head = make(seed)
        except ImportError as error:
            missing.append(f"{case}: {error.name} is not installed")
            continue
        found, cannot = _measure(case, head, ours, quick=quick)
        results += found
        missing += cannot
    return Report(
        bench="inference",
        commit=commit(),
        machine=machine(),
        versions=versions("numpy", "tenseal"),
        seed=seed,
        results=tuple(results),
        ratios=ratios(
            results, against="tenseal-naive", metrics=("wall", "cpu", "error"), bars=BARS
        ),
        missing=tuple(missing),
    )


def _naive(head: Head) -> NaiveTenSeal:
    if head.batch:
        return NaiveBatch(head.network)
    return NaivePolynomial(head.network) if head.elementwise else NaiveTenSeal(head.network)


def _measure(
    case: str, head: Head, ours: Mapping[str, Backend], *, quick: bool
) -> tuple[list[Result], list[str]]:
    signed, network = Signed.of(head), head.network
    naive, missing = _naive(head), []
    variants: dict[str, Variant[Any]] = {"tenseal-naive": naive}
    for name, backend in ours.items():
        try:
            variants[name] = (OursInBatches if head.batch else Ours)(signed, backend)
        except LayoutUnsupported as refusal:
            missing.append(f"{case} {name}: {refusal}")
    values: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(1 + (QUICK_ROUNDS if quick else ROUNDS)):  # the first round warms up
        x = head.inputs if head.batch else head.inputs[turn % len(head.inputs)]
        rows = network.raw(np.atleast_2d(x)) * network.output_scale + network.output_offset
        truth = rows if head.batch else rows[0]
        for name, variant in variants.items():
            if quick and variant is naive and turn != 1:
                continue
            encrypted = variant.encrypt(x)
            wall, cpu = time.perf_counter(), time.process_time()
            result = variant.evaluate(encrypted)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if turn:
                error = float(np.abs(variant.decrypt(result) - truth).max())
                for key, value in (
                    ((name, "wall", "ms"), wall * 1e3),
                    ((name, "cpu", "ms"), cpu * 1e3),
                    ((name, "error", "max abs"), error),
                ):
                    values.setdefault(key, []).append(value)
    return [Result.of(case, *key, found) for key, found in values.items()], missing
