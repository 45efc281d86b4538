"""The same network as a TenSEAL tutorial would write it: `.mm`, `polyval`, `.mm`.

Biases are folded into the matrices through a constant-1 input, because TenSEAL's plain addition
between two `.mm` silently gives wrong answers (its issue 462).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal

from tensorguard.moai.compile.network import Activation, ModelNotSupported, Network
from tensorguard.moai.parameters import MAX_LOG_QP
from tensorguard.moai.plan import HEADROOM_BITS, MAX_SCALE_BITS, MIN_SCALE_BITS, TooDeep

Floats = npt.NDArray[np.float64]


class NaiveTenSeal:
    """Encrypts, evaluates and decrypts with TenSEAL's vectors, in one process."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._matrices = _augmented(network)
        depth = sum(1 + _polyval_depth(layer.activation) for layer in network.layers)
        self._context = _context(depth)
        self._context.generate_galois_keys()

    def encrypt(self, x: Floats) -> Any:
        """Encrypt one raw input, standardised, with the constant 1 behind it."""
        values = (x - self._network.mean) / self._network.std
        return tenseal.ckks_vector(self._context, [*values.tolist(), 1.0])

    def evaluate(self, vector: Any) -> Any:
        """Evaluate the network on an encrypted input."""
        for matrix, layer in zip(self._matrices, self._network.layers, strict=True):
            vector = vector.mm(matrix)
            if layer.activation is not None:
                vector = vector.polyval(list(layer.activation.coefficients))
        return vector

    def decrypt(self, vector: Any) -> Floats:
        """Return the outputs, rescaled."""
        values = np.array(vector.decrypt())
        return np.asarray(
            values * self._network.output_scale + self._network.output_offset, dtype=np.float64
        )


class NaivePolynomial(NaiveTenSeal):
    """Only the network's polynomial, by `.polyval`: less work than ours, which has layers around it."""

    def __init__(self, network: Network) -> None:
        activation = network.layers[0].activation
        if activation is None:
            raise ModelNotSupported("the network has no polynomial")
        self._network = network
        coefficients = np.array(activation.coefficients)
        if activation.basis == "chebyshev":
            coefficients = np.polynomial.chebyshev.cheb2poly(coefficients)
        self._coefficients = coefficients.tolist()
        self._context = _context(_polyval_depth(activation))

    def encrypt(self, x: Floats) -> Any:
        """Encrypt one raw input."""
        return tenseal.ckks_vector(self._context, x.tolist())

    def evaluate(self, vector: Any) -> Any:
        """Evaluate the polynomial on an encrypted input."""
        return vector.polyval(self._coefficients)


class NaiveBatch(NaiveTenSeal):
    """A batch as TenSEAL users write it: a vector of samples for each feature, sums in Python."""

    def __init__(self, network: Network) -> None:
        self._network = network
        depth = sum(1 + _polyval_depth(x.activation) for x in network.layers)
        self._context = _context(depth)
        self._samples = _ring(depth)[0] // 2

    def encrypt(self, x: Floats) -> Any:
        """Encrypt rows of raw inputs, standardised, in as many batches as it takes."""
        values = (x - self._network.mean) / self._network.std
        return [
            [tenseal.ckks_vector(self._context, column.tolist()) for column in part.T]
            for part in in_batches(values, self._samples)
        ]

    def evaluate(self, vector: Any) -> Any:
        """Evaluate the network on encrypted columns."""
        return [self._evaluate(batch) for batch in vector]

    def _evaluate(self, vector: Any) -> Any:
        for layer in self._network.layers:
            vector = [
                _weighted(vector, row.tolist()) + float(bias)
                for row, bias in zip(layer.weight, layer.bias, strict=True)
            ]
            if layer.activation is not None:
                vector = [x.polyval(list(layer.activation.coefficients)) for x in vector]
        return vector

    def decrypt(self, vector: Any) -> Floats:
        """Return the outputs, rescaled, by rows."""
        batches = [np.stack([np.array(x.decrypt()) for x in batch], axis=1) for batch in vector]
        values = np.concatenate(batches)
        return np.asarray(values * self._network.output_scale + self._network.output_offset)


def in_batches(rows: Floats, samples: int) -> list[Floats]:
    """Cut rows into parts of at most so many samples."""
    return [rows[start : start + samples] for start in range(0, len(rows), samples)]


def _weighted(columns: list[Any], weights: list[float]) -> Any:
    total = columns[0] * weights[0]
    for column, weight in zip(columns[1:], weights[1:], strict=True):
        total += column * weight
    return total


def _context(depth: int) -> Any:
    degree, scale = _ring(depth)
    bits = [scale + HEADROOM_BITS, *[scale] * depth, scale + HEADROOM_BITS]
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits, n_threads=1
    )
    context.global_scale = float(1 << scale)
    return context


def _ring(depth: int) -> tuple[int, int]:
    """Return the smallest ring degree that the depth fits, and its scale bits."""
    for degree, budget in MAX_LOG_QP.items():
        scale = min(MAX_SCALE_BITS, (budget - 2 * HEADROOM_BITS) // (depth + 2))
        if scale >= MIN_SCALE_BITS:
            return degree, scale
    raise TooDeep(f"{depth} levels do not fit any ring")


def _polyval_depth(activation: Activation | None) -> int:
    """Return the levels that TenSEAL's polyval takes: the powers and one for the coefficients."""
    if activation is None:
        return 0
    return (len(activation.coefficients) - 2).bit_length() + 1


def _augmented(network: Network) -> list[list[list[float]]]:
    """Return each layer's matrix (inputs + 1, outputs [+ 1]) with the bias in its last row."""
    matrices = []
    lane = 1.0  # what the constant's slot holds in front of the layer
    for index, layer in enumerate(network.layers):
        outputs, inputs = layer.weight.shape
        carry = index + 1 < len(network.layers)
        matrix = np.zeros((inputs + 1, outputs + carry))
        matrix[:inputs, :outputs] = layer.weight.T
        matrix[inputs, :outputs] = layer.bias / lane
        if carry:
            matrix[inputs, outputs] = 1 / lane
            lane = 1.0
        if layer.activation is not None:
            lane = float(layer.activation(np.ones(1))[0])
        matrices.append(matrix.tolist())
    return matrices
