"""Encrypted inference beside TenSEAL as people write it: same network, same polynomial, one run.

What is timed is the server's part. Ours includes parsing and validating the frame, and serialising the
result; the naive variant only computes. Variants take turns, so that a noisy machine hurts all of them.
The native backend runs once with each set of kernels that this CPU has, on one thread. Every case also
compares what its pack predicts to lose with what is measured, and a classifier's classes (`agreement`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tensorguard.bench import agreement, heads
from tensorguard.bench.agreement import FULL, QUICK
from tensorguard.bench.heads import Head
from tensorguard.bench.naive import NaiveBatch, NaivePolynomial, NaiveTenSeal
from tensorguard.bench.ours import KERNELS, Ours, OursInBatches, Signed, backends
from tensorguard.bench.peers import PEERS, Peer, PeerFailed
from tensorguard.bench.peers import interpreters as find_interpreters
from tensorguard.bench.report import Report, Result, commit, machine, ratios, versions
from tensorguard.bench.timing import InProcess, Variant
from tensorguard.errors import InputError
from tensorguard.moai.backends.base import Backend

Progress = Callable[[str], None]
SEED = 20240917
ROUNDS = 50
QUICK_ROUNDS = 2  # of our variants, behind one that warms up; naive TenSEAL runs once

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
        **{("batch-digits-8192", name, "cpu"): 10 for name in ("native-avx2", "native-ifma")},
        **{("chebyshev-27", name, "cpu"): 2 for name in _NATIVE},
        **{("chebyshev-27", name, "error"): 100 for name in ("tenseal", *_NATIVE)},
    }
)
# Against Orion, with the kernels of any CPU since 2013: its ring arithmetic is scalar, as our slowest is.
ORION_BARS: Mapping[tuple[str, str, str], float] = MappingProxyType(
    {("mlp-64-32-10", name, "cpu"): 3 for name in ("native-avx2", "native-ifma")}
)


class CaseUnknown(InputError):
    code = "bench_case"
    remedy = f"Choose from {', '.join(CASES)}."


def run(
    *,
    quick: bool,
    progress: Progress,
    seed: int = SEED,
    cases: Mapping[str, Callable[[int], Head]] = CASES,
    peers: Mapping[str, Path] = MappingProxyType({}),
    rounds: int = ROUNDS,
) -> Report:
    """Run all cases, `rounds` times each. `quick` takes fewer; it ends within 50 s on two cores.

    `peers` are interpreters by the name of the peer that they have. Raises `PeerUnknown`.
    """
    interpreters, without = find_interpreters(peers)
    ours, missing = backends()
    missing += without
    runner = _Runner(ours, interpreters, quick=quick, rounds=rounds, missing=missing)
    for case, make in cases.items():
        if quick and case in LONG:
            runner.missing.append(f"{case}: it takes too long for --quick")
            continue
        progress(case)
        try:
            head = make(seed)
        except ImportError as error:
            runner.missing.append(f"{case}: {error.name} is not installed")
            continue
        runner.measure(case, head)
    results, metrics = runner.results, ("wall", "cpu", "error")
    return Report(
        bench="inference",
        commit=commit(),
        machine=machine(),
        versions={**versions("numpy", "tenseal"), **runner.versions},
        seed=seed,
        results=tuple(results),
        ratios=(
            *ratios(results, against="tenseal-naive", metrics=metrics, bars=BARS),
            *ratios(results, against="orion", metrics=metrics, bars=ORION_BARS),
            *agreement.bars(results),
        ),
        missing=tuple(runner.missing),
    )


def choose(names: Sequence[str]) -> Mapping[str, Callable[[int], Head]]:
    """Return the cases of these names, all when there are none. Raises `CaseUnknown`."""
    unknown = set(names) - set(CASES)
    if unknown:
        raise CaseUnknown(f"there is no case {', '.join(sorted(unknown))}")
    return {name: CASES[name] for name in names} if names else CASES


def _naive(head: Head) -> NaiveTenSeal:
    if head.batch:
        return NaiveBatch(head.network)
    return NaivePolynomial(head.network) if head.elementwise else NaiveTenSeal(head.network)


class _Runner:
    """Measures one case after the other, and gathers what was found."""

    def __init__(
        self,
        ours: Mapping[str, Backend],
        interpreters: Mapping[str, Path],
        *,
        quick: bool,
        rounds: int,
        missing: list[str],
    ) -> None:
        self._ours = ours
        self._interpreters = interpreters
        self._quick = quick
        self._rounds = QUICK_ROUNDS if quick else rounds
        self._effort = FULL if self._rounds >= ROUNDS else QUICK
        self.missing = missing
        self.results: list[Result] = []
        self.versions: dict[str, str] = {}

    def measure(self, case: str, head: Head) -> None:
        """Measure speed, agreement and precision of one case."""
        signed, effort = Signed.of(head), self._effort
        models, cannot = signed.models(self._ours)
        self.missing += [f"{case} {line}" for line in cannot]
        variants: dict[str, Variant] = {"tenseal-naive": InProcess(_naive(head))}
        for name, model in models.items():
            batches = InProcess(OursInBatches(signed, model)) if head.batch else None
            variants[name] = batches or InProcess(Ours(signed, model))
        with ExitStack() as stack:
            for name, peer in self._peers(case, head, signed).items():
                stack.callback(peer.close)
                variants[name] = peer
                self.versions |= peer.versions
            self.results += self._timed(case, head, variants)
        if head.classes:
            self.results += agreement.classes(case, head, signed, models, effort)
        self.results += agreement.prediction(case, head, signed, models, effort)

    def _peers(self, case: str, head: Head, signed: Signed) -> dict[str, Peer]:
        found = {}
        for name, interpreter in self._interpreters.items():
            row = PEERS[name]
            slow = "it takes too long for --quick" if self._quick and row.slow else ""
            if why := row.refuses(head) or slow:
                self.missing.append(f"{case} {name}: {why}")
                continue
            try:
                found[name] = Peer.open(name, interpreter, head, signed.pack.spec.parameters)
            except PeerFailed as error:
                self.missing.append(f"{case} {error}")
        return found

    def _timed(self, case: str, head: Head, variants: Mapping[str, Variant]) -> list[Result]:
        values: dict[tuple[str, str, str], list[float]] = {}
        network = head.network
        for turn in range(1 + self._rounds):  # the first warms up
            x = head.inputs if head.batch else head.inputs[turn % len(head.inputs)]
            rows = network.raw(np.atleast_2d(x)) * network.output_scale + network.output_offset
            truth = rows if head.batch else rows[0]
            for name, variant in variants.items():
                if self._quick and name == "tenseal-naive" and turn != 1:
                    continue
                measured = variant.measure(x)
                if turn:
                    for key, value in (
                        ((name, "wall", "ms"), measured.wall * 1e3),
                        ((name, "cpu", "ms"), measured.cpu * 1e3),
                        ((name, "error", "max abs"), np.abs(measured.outputs - truth).max()),
                    ):
                        values.setdefault(key, []).append(float(value))
        return [Result.of(case, *key, found) for key, found in values.items()]
