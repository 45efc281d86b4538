"""The default backend: SEAL through `tenseal.sealapi`, ciphertext in, ciphertext out.

All weights are encoded once, at the level and scale at which they are used. Biases are tiled through
all slots, which avoids TenSEAL's silent bias defect (its issue 462). An evaluation holds Python's
global lock, so servers run it in worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tenseal import sealapi

from tensorguard.errors import MalformedInput
from tensorguard.moai import layout
from tensorguard.moai.backends import order, uploads
from tensorguard.moai.backends.base import LayoutUnsupported
from tensorguard.moai.graph import Join, Linear, Polynomial
from tensorguard.moai.pack import VerifiedPack
from tensorguard.moai.plan import JoinPlan, LinearPlan, PolynomialPlan, output_scale
from tensorguard.moai.polynomial import Node, Schedule, schedule
from tensorguard.moai.seal import Seal, dump
from tensorguard.moai.spec import ModelSpec
from tensorguard.wire.frames import Kind, ParametersMismatch, build_frame

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SealKeys:
    """Loaded evaluation keys: what a client published, nothing secret."""

    parameters_id: bytes
    key_id: bytes
    rotations: tuple[int, ...]
    galois: Any
    relinearisation: Any


class TenSealBackend:
    """Prepares packs for SEAL."""

    name = "tenseal"

    def load(self, pack: VerifiedPack) -> TenSealModel:
        """Encode the pack's weights. Raises `LayoutUnsupported` for one that is built for batches."""
        if pack.spec.columns is not None:
            raise LayoutUnsupported("this backend does not evaluate packs in columns")
        return TenSealModel(pack.spec)


class TenSealModel:
    """One pack with its weights encoded."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._seal = Seal(spec.parameters)
        self._layers: list[_Linear | _Polynomial | _Join] = []
        for layer, plan in zip(spec.graph.layers, spec.plan.layers, strict=True):
            if isinstance(layer, Linear) and isinstance(plan, LinearPlan):
                self._layers.append(_Linear(self._seal, layer, plan))
            elif isinstance(layer, Polynomial) and isinstance(plan, PolynomialPlan):
                self._layers.append(_Polynomial(self._seal, layer, plan))
            elif isinstance(layer, Join) and isinstance(plan, JoinPlan):
                self._layers.append(_Join(self._seal, plan))
            else:
                raise MalformedInput(f"plan and graph differ at layer {layer.name}")

    def load_keys(self, frame: bytes) -> SealKeys:
        """Validate and load a frame of evaluation keys. Raises a 4xx `TensorGuardError`."""
        blobs = uploads.read_keys(self.spec, frame)
        galois = relinearisation = None
        if blobs.galois is not None:
            galois = self._seal.load(sealapi.GaloisKeys, blobs.galois)
        if blobs.relinearisation is not None:
            relinearisation = self._seal.load(sealapi.RelinKeys, blobs.relinearisation)
        parameters_id, rotations = self.spec.parameters.id, self.spec.plan.rotations
        return SealKeys(parameters_id, blobs.key_id, rotations, galois, relinearisation)

    def evaluate(self, keys: SealKeys, frame: bytes) -> bytes:
        """Validate a ciphertext frame and return the frame of the result (one prime left)."""
        parameters = self.spec.parameters
        if (keys.parameters_id, keys.rotations) != (parameters.id, self.spec.plan.rotations):
            raise ParametersMismatch("the evaluation keys are for another model")
        (blob,) = uploads.read_inputs(self.spec, frame, key_id=keys.key_id)
        given: Any = self._seal.load(sealapi.Ciphertext, blob)

        def step(layer: _Linear | _Polynomial | _Join) -> Callable[[Sequence[Any]], Any]:
            return lambda operands: layer.evaluate(operands, keys)

        result = order.run(self.spec.plan, [step(layer) for layer in self._layers], given)
        return build_frame(Kind.ciphertext, parameters.id, (dump(result),), key_id=keys.key_id)


class _Linear:
    """Baby steps, pre-encoded diagonals, giant steps, one rescale, folds, bias."""

    def __init__(self, seal: Seal, layer: Linear, plan: LinearPlan) -> None:
        self._seal = seal
        self._plan = plan
        self._scale = output_scale(plan, seal.parameters)
        raw = self._scale * seal.parameters.primes[plan.level - 1]
        slots = seal.parameters.slots
        scale = raw / seal.parameters.scale
        self._diagonals = [
            [
                seal.encode(values, level=plan.level, scale=scale) if values.any() else None
                for values in row
            ]
            for row in layout.diagonals(plan, layer.weight, slots=slots)
        ]
        bias = layout.tiled(layer.bias, period=plan.period_out, slots=slots)
        self._bias = seal.encode(bias, level=plan.level - 1, scale=self._scale)

    def evaluate(self, operands: Sequence[Any], keys: SealKeys) -> Any:
        evaluator, plan = self._seal.evaluator, self._plan
        x = _lowered(self._seal, operands[0], level=plan.level)
        babies = [x] + [_rotate(evaluator, x, step, keys) for step in range(1, plan.baby)]
        total: Any = None
        for giant, row in enumerate(self._diagonals):
            products = [
                _multiply_plain(evaluator, baby, diagonal)
                for baby, diagonal in zip(babies, row, strict=True)
                if diagonal is not None
            ]
            if not products:
                continue
            part = _sum(evaluator, products)
            if giant:
                evaluator.rotate_vector_inplace(part, giant * plan.baby, keys.galois)
            total = part if total is None else _sum(evaluator, [total, part])
        evaluator.rescale_to_next_inplace(total)
        for step in plan.folds:
            evaluator.add_inplace(total, _rotate(evaluator, total, step, keys))
        total.scale = self._scale
        evaluator.add_plain_inplace(total, self._bias)
        return total


class _Polynomial:
    """Interprets a schedule whose coefficients are encoded slot by slot."""

    def __init__(self, seal: Seal, layer: Polynomial, plan: PolynomialPlan) -> None:
        self._seal = seal
        self._plan = plan
        self._columns = layer.product_coefficients.T
        used = [bool(column.any()) for column in self._columns]
        self._schedule: Schedule = schedule(
            used,
            parameters=seal.parameters,
            level=plan.level,
            scale=seal.parameters.scale,
            result=output_scale(plan, seal.parameters),
        )
        self._terms: dict[tuple[int, int, int], Any] = {}
        self._encode(self._schedule.root)
        self._minus_one: list[Any] = []  # by squaring, in the Chebyshev basis
        if layer.basis == "chebyshev":
            minus_one = np.full(seal.parameters.slots, -1.0)
            self._minus_one = [
                seal.encode(minus_one, level=plan.level - 1 - step, scale=scale)
                for step, scale in enumerate(self._schedule.powers[1:])
            ]

    def _coefficient(self, index: int, *, level: int, scale: float) -> Any:
        slots = self._seal.parameters.slots
        values = layout.tiled(self._columns[index], period=self._plan.period, slots=slots)
        return self._seal.encode(values, level=level, scale=scale)

    def _encode(self, node: Node) -> None:
        for term in node.terms:
            self._terms[node.first, node.level, term.power] = self._coefficient(
                node.first + term.power, level=node.level + 1, scale=term.scale
            )
        if node.constant:
            self._terms[node.first, node.level, 0] = self._coefficient(
                node.first, level=node.level, scale=node.scale
            )
        for quotient, _ in node.products:
            self._encode(quotient)

    def evaluate(self, operands: Sequence[Any], keys: SealKeys) -> Any:
        evaluator = self._seal.evaluator
        powers = [_lowered(self._seal, operands[0], level=self._plan.level)]
        for step, scale in enumerate(self._schedule.powers[1:]):
            square = sealapi.Ciphertext()
            evaluator.square(powers[-1], square)
            if self._minus_one:
                evaluator.add_inplace(square, square)
            evaluator.relinearize_inplace(square, keys.relinearisation)
            evaluator.rescale_to_next_inplace(square)
            square.scale = scale
            if self._minus_one:
                evaluator.add_plain_inplace(square, self._minus_one[step])
            powers.append(square)
        return self._evaluate(self._schedule.root, powers, keys)

    def _power(self, powers: list[Any], power: int, *, level: int) -> Any:
        return _lowered(self._seal, powers[power.bit_length() - 1], level=level)

    def _evaluate(self, node: Node, powers: list[Any], keys: SealKeys) -> Any:
        evaluator = self._seal.evaluator
        raw = node.scale * self._seal.parameters.primes[node.level]
        parts = []
        for quotient, power in node.products:
            product = sealapi.Ciphertext()
            left = self._evaluate(quotient, powers, keys)
            evaluator.multiply(left, self._power(powers, power, level=node.level + 1), product)
            parts.append(product)
        for term in node.terms:
            base = self._power(powers, term.power, level=node.level + 1)
            plaintext = self._terms[node.first, node.level, term.power]
            parts.append(_multiply_plain(evaluator, base, plaintext))
        for part in parts:
            part.scale = raw  # equal by the schedule, up to the last bit of a double
        total = _sum(evaluator, parts)
        if node.products:
            evaluator.relinearize_inplace(total, keys.relinearisation)
        evaluator.rescale_to_next_inplace(total)
        total.scale = node.scale
        if node.constant:
            evaluator.add_plain_inplace(total, self._terms[node.first, node.level, 0])
        return total


class _Join:
    """The sum or the product of two ciphertexts, at one level."""

    def __init__(self, seal: Seal, plan: JoinPlan) -> None:
        self._seal = seal
        self._plan = plan

    def evaluate(self, operands: Sequence[Any], keys: SealKeys) -> Any:
        evaluator = self._seal.evaluator
        x, y = (_lowered(self._seal, value, level=self._plan.level) for value in operands)
        result = sealapi.Ciphertext()
        if self._plan.kind == "add":
            evaluator.add(x, y, result)
            return result
        evaluator.multiply(x, y, result)
        evaluator.relinearize_inplace(result, keys.relinearisation)
        evaluator.rescale_to_next_inplace(result)
        result.scale = self._seal.parameters.scale  # x came at the scale of the dropped prime
        return result


def _lowered(seal: Seal, value: Any, *, level: int) -> Any:
    """Return the ciphertext with `level` primes left."""
    if value.coeff_modulus_size() == level:
        return value
    lower = sealapi.Ciphertext()
    seal.evaluator.mod_switch_to(value, seal.parms(level), lower)
    return lower


def _rotate(evaluator: Any, x: Any, step: int, keys: SealKeys) -> Any:
    result = sealapi.Ciphertext()
    evaluator.rotate_vector(x, step, keys.galois, result)
    return result


def _multiply_plain(evaluator: Any, x: Any, plaintext: Any) -> Any:
    result = sealapi.Ciphertext()
    evaluator.multiply_plain(x, plaintext, result)
    return result


def _sum(evaluator: Any, parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        evaluator.add_inplace(total, part)
    return total
