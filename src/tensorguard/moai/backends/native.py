"""The native backend: `tensorguard-moai-native`, which can evaluate and nothing else.

Packs, keys and frames are those of every backend; results decrypt with the same client. Linear layers
are hoisted, products are relinearised once for each sum, and Python's lock is free while it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorguard_moai_native as native

from tensorguard.errors import MalformedInput
from tensorguard.moai import layout, residues
from tensorguard.moai.backends import order, uploads
from tensorguard.moai.backends.base import BackendUnusable
from tensorguard.moai.graph import Join, Layer, Linear, Polynomial
from tensorguard.moai.pack import VerifiedPack
from tensorguard.moai.plan import JoinPlan, LayerPlan, LinearPlan, PolynomialPlan, output_scale
from tensorguard.moai.polynomial import Node, schedule
from tensorguard.moai.spec import ModelSpec
from tensorguard.wire.frames import Kind, ParametersMismatch, build_frame

MAX_THREADS = 64  # a ring has fewer primes, which are what threads share out


@dataclass(frozen=True, slots=True)
class NativeKeys:
    """Loaded evaluation keys: what a client published, nothing secret."""

    parameters_id: bytes
    key_id: bytes
    rotations: tuple[int, ...]
    keys: native.Keys
    context: native.Context


class NativeBackend:
    """Prepares packs for the native runtime.

    `threads` work on one request together; `kernels` is "auto", "scalar", "avx2" or "ifma". No choice
    of either changes a residue.
    """

    name = "native"

    def __init__(self, *, threads: int = 1, kernels: str = "auto") -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise BackendUnusable(f"{threads} threads were asked for, 1 to {MAX_THREADS} can be")
        if kernels != "auto" and kernels not in native.available_kernels():
            raise BackendUnusable(f"this CPU has no instructions for the {kernels} kernels")
        self._threads = threads
        self._kernels = kernels

    def load(self, pack: VerifiedPack) -> NativeModel:
        """Encode the pack's weights."""
        return NativeModel(pack.spec, threads=self._threads, kernels=self._kernels)


class NativeModel:
    """One pack with its weights encoded."""

    def __init__(self, spec: ModelSpec, *, threads: int = 1, kernels: str = "auto") -> None:
        self.spec = spec
        parameters = spec.parameters
        self._context = native.Context(
            parameters.degree,
            (*parameters.primes, parameters.special),
            threads=threads,
            kernels=kernels,
        )
        self._layers: list[_Layer] = [
            _layer(self._context, spec, layer, plan)
            for layer, plan in zip(spec.graph.layers, spec.plan.layers, strict=True)
        ]

    @property
    def kernels(self) -> str:
        """Return which kernels run: "scalar", "avx2" or "ifma"."""
        return self._context.kernels

    def load_keys(self, frame: bytes) -> NativeKeys:
        """Validate and load a frame of evaluation keys. Raises a 4xx `TensorGuardError`."""
        blobs = uploads.read_keys(self.spec, frame)
        keys = native.Keys()
        try:
            if blobs.galois is not None:
                for place, entries in residues.read_keys(blobs.galois):
                    keys.add_rotation(2 * place + 1, self._key(entries))
            if blobs.relinearisation is not None:
                for _, entries in residues.read_keys(blobs.relinearisation):
                    keys.set_relinearisation(self._key(entries))
        except ValueError as error:
            raise MalformedInput("the native runtime refuses these keys") from error
        parameters_id, rotations = self.spec.parameters.id, self.spec.plan.rotations
        return NativeKeys(parameters_id, blobs.key_id, rotations, keys, self._context)

    def evaluate(self, keys: NativeKeys, frame: bytes) -> bytes:
        """Validate a ciphertext frame and return the frame of the result (one prime left)."""
        parameters = self.spec.parameters
        expected = (parameters.id, self.spec.plan.rotations)
        if (keys.parameters_id, keys.rotations) != expected or keys.context is not self._context:
            raise ParametersMismatch("the evaluation keys are for another model")
        blobs = uploads.read_inputs(self.spec, frame, key_id=keys.key_id)
        values = [self._ciphertext(blob) for blob in blobs]

        def step(layer: _Layer) -> Callable[[Sequence[_Values]], _Values]:
            return lambda operands: layer.evaluate(operands, keys.keys)

        values = order.run(self.spec.plan, [step(layer) for layer in self._layers], values)
        results = [
            residues.write_ciphertext(value.residues(), parameters, scale=parameters.scale)
            for value in values
        ]
        return build_frame(Kind.ciphertext, parameters.id, results, key_id=keys.key_id)

    def _ciphertext(self, blob: bytes) -> native.Ciphertext:
        given = residues.read_ciphertext(blob)
        try:
            if given.seed:
                return self._context.seeded_ciphertext(given.words[0], given.seed)
            return self._context.ciphertext(given.words)
        except ValueError as error:
            raise MalformedInput("the native runtime refuses this ciphertext") from error

    def _key(self, entries: list[residues.Residues]) -> native.SwitchingKey:
        if all(entry.seed for entry in entries):
            seeds = b"".join(entry.seed for entry in entries)
            return self._context.seeded_key([entry.words[0] for entry in entries], seeds)
        return self._context.key(np.stack([entry.words for entry in entries]))


class _Linear:
    """A hoisted transform by pre-encoded diagonals with its rescale, then folds, then the bias."""

    def __init__(
        self, context: native.Context, spec: ModelSpec, layer: Linear, plan: LinearPlan
    ) -> None:
        parameters = spec.parameters
        slots = parameters.slots
        scale = output_scale(plan, parameters)
        dropped = _raw(plan, spec) / parameters.scale
        self._level = plan.level
        extended = plan.baby * plan.giant > 1  # products are summed over QP
        rows = [
            [
                context.encode(values, plan.level, dropped, extended) if values.any() else None
                for values in row
            ]
            for row in layout.diagonals(plan, layer.weight, slots=slots)
        ]
        baby = [parameters.galois_element(step) for step in range(plan.baby)]
        giant = [parameters.galois_element(step * plan.baby) for step in range(plan.giant)]
        self._transform = context.transform(plan.level, baby, giant, rows)
        self._folds = [parameters.galois_element(step) for step in plan.folds]
        bias = layout.tiled(layer.bias, period=plan.period_out, slots=slots)
        self._bias = context.encode(bias, plan.level - 1, scale)

    def evaluate(self, operands: Sequence[_Values], keys: native.Keys) -> _Values:
        (x,) = operands[0]
        products = self._transform.apply(_lowered(x, level=self._level), keys)
        total = native.fold(products, self._folds, keys)
        return [native.add_plain(total, self._bias)]


class _Polynomial:
    """Interprets a schedule whose coefficients are encoded slot by slot.

    The runtime knows no scales: those of the schedule went into the encoded coefficients. With `unit`
    all slots hold samples of that unit.
    """

    def __init__(
        self,
        context: native.Context,
        spec: ModelSpec,
        layer: Polynomial,
        plan: PolynomialPlan,
        unit: int | None = None,
    ) -> None:
        self._context = context
        self._slots = spec.parameters.slots
        self._period = plan.period
        self._columns = (
            layer.product_coefficients.T[:, [unit]]
            if unit is not None
            else (layer.product_coefficients.T)
        )
        used = [bool(column.any()) for column in layer.product_coefficients.T]
        scale = spec.parameters.scale
        steps = schedule(
            used,
            parameters=spec.parameters,
            level=plan.level,
            scale=scale,
            result=output_scale(plan, spec.parameters),
        )
        self._level = plan.level
        self._squarings = len(steps.powers) - 1
        self._minus_one: list[native.Plaintext] = []  # by squaring, in the Chebyshev basis
        if layer.basis == "chebyshev":
            minus_one = np.full(self._slots, -1.0)
            self._minus_one = [
                context.encode(minus_one, plan.level - step, steps.powers[step])
                for step in range(1, len(steps.powers))
            ]
        self._root = steps.root
        self._terms: dict[tuple[int, int, int], native.Plaintext] = {}
        self._encode(steps.root)

    def evaluate(self, operands: Sequence[_Values], keys: native.Keys) -> _Values:
        (x,) = operands[0]
        return [self.unit(x, keys)]

    def unit(self, x: native.Ciphertext, keys: native.Keys) -> native.Ciphertext:
        """Evaluate on one ciphertext."""
        powers = [_lowered(x, level=self._level)]
        for step in range(self._squarings):
            square = native.multiply(powers[-1], powers[-1])
            if not self._minus_one:
                powers.append(native.relinearise_rescale(square, keys))
                continue
            doubled = native.relinearise_rescale(native.add(square, square), keys)
            powers.append(native.add_plain(doubled, self._minus_one[step]))
        return self._evaluate(self._root, powers, keys)

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

    def _coefficient(self, index: int, *, level: int, scale: float) -> native.Plaintext:
        values = layout.tiled(self._columns[index], period=self._period, slots=self._slots)
        return self._context.encode(values, level, scale)

    def _evaluate(
        self, node: Node, powers: list[native.Ciphertext], keys: native.Keys
    ) -> native.Ciphertext:
        level = node.level + 1
        parts = []
        for quotient, power in node.products:
            left = self._evaluate(quotient, powers, keys)
            parts.append(native.multiply(left, _power(powers, power, level=level)))
        for term in node.terms:
            base = _power(powers, term.power, level=level)
            plaintext = self._terms[node.first, node.level, term.power]
            parts.append(native.multiply_plain(base, plaintext))
        total = parts[0]
        for part in parts[1:]:
            total = native.add(total, part)
        total = native.relinearise_rescale(total, keys) if node.products else native.rescale(total)
        if node.constant:
            total = native.add_plain(total, self._terms[node.first, node.level, 0])
        return total


class _ColumnLinear:
    """Sums of columns by integer weights: a modular matrix product, a rescale each, then the bias."""

    def __init__(
        self, context: native.Context, spec: ModelSpec, layer: Linear, plan: LinearPlan
    ) -> None:
        parameters = spec.parameters
        scale = output_scale(plan, parameters)
        weights = layer.weight * (_raw(plan, spec) / parameters.scale)
        self._weights = np.rint(weights).astype(np.int64)
        self._level = plan.level
        self._bias = [
            context.encode(np.full(parameters.slots, value), plan.level - 1, scale)
            for value in layer.bias
        ]

    def evaluate(self, operands: Sequence[_Values], _: native.Keys) -> _Values:
        x = [_lowered(value, level=self._level) for value in operands[0]]
        sums = native.combine(x, self._weights)
        return [native.add_plain(y, bias) for y, bias in zip(sums, self._bias, strict=True)]


class _ColumnPolynomial:
    """Each unit's polynomial on that unit's column."""

    def __init__(
        self, context: native.Context, spec: ModelSpec, layer: Polynomial, plan: PolynomialPlan
    ) -> None:
        units = range(layer.width)
        self._units = [_Polynomial(context, spec, layer, plan, unit) for unit in units]

    def evaluate(self, operands: Sequence[_Values], keys: native.Keys) -> _Values:
        return [unit.unit(x, keys) for unit, x in zip(self._units, operands[0], strict=True)]


class _Join:
    """The sum or the product of two values, ciphertext by ciphertext, at one level."""

    def __init__(self, plan: JoinPlan) -> None:
        self._plan = plan

    def evaluate(self, operands: Sequence[_Values], keys: native.Keys) -> _Values:
        level = self._plan.level
        pairs = [
            (_lowered(x, level=level), _lowered(y, level=level))
            for x, y in zip(*operands, strict=True)
        ]
        if self._plan.kind == "add":
            return [native.add(x, y) for x, y in pairs]
        return [native.relinearise_rescale(native.multiply(x, y), keys) for x, y in pairs]


_Values = list[native.Ciphertext]  # one for each feature in columns, else one
_Layer = _Linear | _Polynomial | _ColumnLinear | _ColumnPolynomial | _Join


def _layer(context: native.Context, spec: ModelSpec, layer: Layer, plan: LayerPlan) -> _Layer:
    single = spec.columns is None
    if isinstance(layer, Linear) and isinstance(plan, LinearPlan):
        return (_Linear if single else _ColumnLinear)(context, spec, layer, plan)
    if isinstance(layer, Polynomial) and isinstance(plan, PolynomialPlan):
        return (_Polynomial if single else _ColumnPolynomial)(context, spec, layer, plan)
    if isinstance(layer, Join) and isinstance(plan, JoinPlan):
        return _Join(plan)
    raise MalformedInput(f"plan and graph differ at layer {layer.name}")


def _raw(plan: LinearPlan, spec: ModelSpec) -> float:
    """Return the scale of a layer's products before its rescale."""
    return output_scale(plan, spec.parameters) * spec.parameters.primes[plan.level - 1]


def _power(powers: list[native.Ciphertext], power: int, *, level: int) -> native.Ciphertext:
    return _lowered(powers[power.bit_length() - 1], level=level)


def _lowered(value: native.Ciphertext, *, level: int) -> native.Ciphertext:
    """Return the ciphertext with `level` primes left."""
    return value if value.level == level else native.drop(value, level)
