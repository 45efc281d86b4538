"""Columns with their scales, the operations on them, and a count of every one.

The native runtime knows no scales; here each ciphertext carries its own, exactly, and sums of unequal
scales are refused. Nothing here can decrypt.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tensorguard_moai_native as native

from tensorguard.errors import MalformedInput
from tensorguard.moai import residues, strict
from tensorguard.moai.parameters import CkksParameters

Floats = npt.NDArray[np.float64]
SCALES_AGREE = 1e-9  # relative: far below the noise, far above the doubles' rounding


@dataclass(frozen=True, slots=True)
class Column:
    """One feature of all tokens of all sequences. With three polynomials: a sum of products."""

    ciphertext: native.Ciphertext
    scale: float

    @property
    def level(self) -> int:
        """Return how many primes are left."""
        return self.ciphertext.level


class Runtime:
    """Evaluates on one client's keys. `counts` holds, for each stage, the operations done in it."""

    def __init__(
        self, parameters: CkksParameters, *, threads: int = 1, kernels: str = "auto"
    ) -> None:
        self.parameters = parameters
        self.counts: dict[str, Counter[str]] = {}
        self._stage: Counter[str] = Counter()
        self._keys = native.Keys()
        self._context = native.Context(
            parameters.degree,
            (*parameters.primes, parameters.special),
            threads=threads,
            kernels=kernels,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside under `name`."""
        before, self._stage = self._stage, self.counts.setdefault(name, Counter())
        try:
            yield
        finally:
            self._stage = before

    # what arrives

    def load_rotation(self, step: int, blob: bytes) -> None:
        """Validate and take the key of one rotation. Raises a 4xx `TensorGuardError`."""
        element = self.parameters.galois_element(step)
        checked = strict.parse_galois_keys(blob, self.parameters, elements=[element])
        for _, entries in residues.read_keys(checked):
            self._keys.add_rotation(element, self._key(entries))

    def load_relinearisation(self, blob: bytes) -> None:
        """Validate and take the relinearisation key. Raises a 4xx `TensorGuardError`."""
        checked = strict.parse_relinearisation_keys(blob, self.parameters)
        for _, entries in residues.read_keys(checked):
            self._keys.set_relinearisation(self._key(entries))

    def load(self, blob: bytes, *, level: int) -> Column:
        """Validate and take a fresh ciphertext of this level. Raises a 4xx `TensorGuardError`."""
        scale = self.parameters.scale
        checked = strict.parse_ciphertext(blob, self.parameters, level=level, scale=scale)
        given = residues.read_ciphertext(checked)
        try:
            if given.seed:
                taken = self._context.seeded_ciphertext(given.words[0], given.seed)
            else:
                taken = self._context.ciphertext(given.words)
        except ValueError as error:
            raise MalformedInput("the native runtime refuses this ciphertext") from error
        return Column(taken, scale)

    def write(self, x: Column) -> bytes:
        """Return a result with one prime left, for its client."""
        self._agree([x, Column(x.ciphertext, self.parameters.scale)])
        result = self.drop(x, 1).ciphertext.residues()
        return residues.write_ciphertext(result, self.parameters, scale=self.parameters.scale)

    # operations

    def linear(
        self, x: Sequence[Column], weights: Floats, *, scale: float | None = None
    ) -> list[Column]:
        """Return weights (outputs, inputs) times the columns, at `scale`, one level down.

        Weights become integers at the scale of the prime that is divided away, so every scale is met
        exactly, whatever those of `x` are. Costs no rotation. A row that rounds to zeros would give a
        ciphertext that hides nothing, which clients refuse: it gets one unit in the last place.
        """
        prime = self.parameters.primes[x[0].level - 1]
        target = self.parameters.scale if scale is None else scale
        factors = np.array([target * prime / column.scale for column in x])
        integers = np.rint(weights * factors).astype(np.int64)
        integers[~integers.any(axis=1), 0] = 1
        self._stage.update(scalar_products=integers.size, rescales=len(integers))
        sums = native.combine([column.ciphertext for column in x], integers)
        return [Column(y, target) for y in sums]

    def add(self, a: Column, b: Column) -> Column:
        """Return a + b, also of sums of products."""
        self._agree([a, b])
        return Column(native.add(a.ciphertext, b.ciphertext), a.scale)

    def total(self, columns: Iterable[Column]) -> Column:
        """Return the sum of all columns, of which there is at least one."""
        return functools.reduce(self.add, columns)

    def subtract(self, a: Column, b: Column) -> Column:
        """Return a - b."""
        self._agree([a, b])
        return Column(native.subtract(a.ciphertext, b.ciphertext), a.scale)

    def add_constant(self, x: Column, value: float) -> Column:
        """Return x + value in every slot: the constant polynomial, which is itself in NTT form."""
        number = round(value * x.scale)
        primes = self.parameters.primes[: x.level]
        words = np.array([number % prime for prime in primes], dtype=np.uint64)
        plain = self._context.plaintext(
            np.ascontiguousarray(np.broadcast_to(words[:, None], (x.level, self.parameters.degree)))
        )
        return Column(native.add_plain(x.ciphertext, plain), x.scale)

    def multiply(self, a: Column, b: Column) -> Column:
        """Return the product as three polynomials; products can be added before `reduce`."""
        self._stage["products"] += 1
        return Column(native.multiply(a.ciphertext, b.ciphertext), a.scale * b.scale)

    def reduce(self, x: Column) -> Column:
        """Relinearise and rescale a sum of products: once for the whole sum."""
        self._stage.update(relinearisations=1, rescales=1)
        prime = self.parameters.primes[x.level - 1]
        return Column(native.relinearise_rescale(x.ciphertext, self._keys), x.scale / prime)

    def partner_scale(self, x: Column) -> float:
        """Return the scale that a factor of x needs for their product to end at ours."""
        return self.parameters.scale * self.parameters.primes[x.level - 1] / x.scale

    def drop(self, x: Column, level: int) -> Column:
        """Return x at a lower level. Costs nothing but the copy."""
        return x if x.level == level else Column(native.drop(x.ciphertext, level), x.scale)

    def rotate(self, x: Column, step: int) -> Column:
        """Return x with its slots rotated to the left."""
        self._stage.update(rotations=1, decompositions=1)
        element = self.parameters.galois_element(step)
        return Column(native.rotate(x.ciphertext, element, self._keys), x.scale)

    def rotations(self, x: Column, steps: Sequence[int]) -> list[Column]:
        """Return x rotated by each step, from one decomposition."""
        self._stage.update(rotations=len(steps), decompositions=1)
        elements = [self.parameters.galois_element(step) for step in steps]
        turned = native.rotations(x.ciphertext, elements, self._keys)
        return [Column(y, x.scale) for y in turned]

    def _agree(self, columns: Sequence[Column]) -> None:
        first = columns[0].scale
        if not all(math.isclose(x.scale, first, rel_tol=SCALES_AGREE) for x in columns):
            raise MalformedInput("columns of unequal scales cannot be added")

    def _key(self, entries: list[residues.Residues]) -> native.SwitchingKey:
        seeds = b"".join(entry.seed for entry in entries)
        try:
            return self._context.seeded_key([entry.words[0] for entry in entries], seeds)
        except ValueError as error:
            raise MalformedInput("the native runtime refuses these keys") from error
