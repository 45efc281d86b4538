"""What a tensor of a graph is: an affine map of the last activation's outputs, as a chain of factors.

Every linear operator becomes a matrix here (rows and columns in C order, without the batch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tensorguard.errors import InputError

Floats = npt.NDArray[np.float64]
Factor = tuple[Floats, Floats]
MAX_MATRIX = 16 << 20  # numbers in one matrix: 128 MiB
MAX_WORK = 4 * MAX_MATRIX  # numbers in all matrices made for one graph


class MatrixTooLarge(InputError):
    code = "matrix_too_large"
    status = 422
    remedy = "Use fewer channels or a smaller input: a layer is evaluated as one matrix."


@dataclass(frozen=True, eq=False)
class Affine:
    """values = factors applied in turn to the outputs of activation number `stage` (0: the input).

    `origin` (value, a, b) says that this is a · value + b for plain numbers a and b.
    """

    stage: int
    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()
    origin: tuple[Affine, float, float] | None = None

    @property
    def width(self) -> int:
        """Return how many numbers it has."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Return how many numbers its factors hold."""
        return sum(weight.size for weight, _ in self.factors)

    @property
    def root(self) -> tuple[Affine, float, float]:
        """Return the value of which this is a multiple plus a number."""
        return self.origin or (self, 1.0, 0.0)

    def linear(self, weight: Floats, bias: Floats | None, shape: tuple[int, ...]) -> Affine:
        """Apply a matrix (outputs, inputs) and a bias (outputs,)."""
        bias = np.zeros(len(weight)) if bias is None else bias
        return Affine(self.stage, shape, (*self.factors, (weight, bias)))

    def scaled(self, scale: Floats, shift: Floats) -> Affine:
        """Multiply and shift elementwise, by vectors (width,)."""
        if not self.factors:
            check_size(self.width, self.width)
            return self.linear(np.diag(scale), shift, self.shape)
        weight, bias = self.factors[-1]
        last = (weight * scale[:, None], bias * scale + shift)
        return replace(self, factors=(*self.factors[:-1], last), origin=None)

    def times(self, scale: float, shift: float) -> Affine:
        """Multiply by a number and add one, and remember it."""
        value, a, b = self.root
        result = self.scaled(np.full(self.width, scale), np.full(self.width, shift))
        return replace(result, origin=(value, a * scale, b * scale + shift))

    def reshaped(self, shape: tuple[int, ...]) -> Affine:
        """Keep the numbers and their order."""
        return self if shape == self.shape else replace(self, shape=shape, origin=None)

    def picked(self, index: npt.NDArray[np.intp]) -> Affine:
        """Reorder: `index` has the wanted shape and holds numbers of the present order."""
        if not self.factors:
            check_size(index.size, self.width)
            eye = np.eye(self.width)[index.ravel()]
            return self.linear(eye, None, index.shape)
        weight, bias = self.factors[-1]
        last = (weight[index.ravel()], bias[index.ravel()])
        return Affine(self.stage, index.shape, (*self.factors[:-1], last))

    def composed(self) -> Factor:
        """Return the one factor that all factors are."""
        if not self.factors:
            check_size(self.width, self.width)
            return np.eye(self.width), np.zeros(self.width)
        weight, bias = self.factors[0]
        for after, shift in self.factors[1:]:
            check_size(len(after), weight.shape[1])
            weight, bias = after @ weight, after @ bias + shift
        return weight, bias

    def plus(self, other: Affine) -> Affine:
        """Add a value of the same stage and shape: their factors are multiplied out."""
        (weight, bias), (more, shift) = self.composed(), other.composed()
        return Affine(self.stage, self.shape, ((weight + more, bias + shift),))


def check_size(rows: int, columns: int) -> None:
    """Raise `MatrixTooLarge` before it is made."""
    if rows * columns > MAX_MATRIX:
        raise MatrixTooLarge(f"a layer is a matrix of {rows} x {columns}")


@dataclass(frozen=True)
class Window:
    """How a kernel walks over the spatial axes."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    dilations: tuple[int, ...]

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial sizes of the result; some is below 1 if the kernel does not fit."""
        columns = (sizes, self.kernel, self.strides, self.begin, self.end, self.dilations)
        return tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, before, after, dilation in zip(*columns, strict=True)
        )


def convolution(
    weight: Floats, groups: int, shape: tuple[int, ...], window: Window
) -> tuple[Floats, tuple[int, ...]]:
    """Return the matrix of a convolution of (channels, *sizes), and the shape of its result.

    `weight` is (outputs, channels / groups, *kernel).
    """
    sizes = shape[1:]
    spatial = window.outputs(sizes)
    outputs, per_group = weight.shape[:2]
    inputs, places = math.prod(sizes), math.prod(spatial)
    check_size(outputs * places, shape[0] * inputs)
    result = np.zeros((outputs, places, shape[0], inputs))
    group = np.repeat(np.arange(groups), outputs // groups)
    channels = group[:, None] * per_group + np.arange(per_group)
    grid = np.indices(spatial).reshape(len(spatial), -1)
    steps, before = np.array(window.strides)[:, None], np.array(window.begin)[:, None]
    limits = np.array(sizes)[:, None]
    rows = np.arange(outputs)[:, None, None]
    for tap in np.ndindex(*window.kernel):
        shift = (np.array(tap) * np.array(window.dilations))[:, None]
        where = grid * steps - before + shift
        inside = np.flatnonzero(((where >= 0) & (where < limits)).all(axis=0))
        if not len(inside):
            continue
        column = np.ravel_multi_index(tuple(where[:, inside]), tuple(sizes))
        values = weight[(slice(None), slice(None), *tap)]
        index = (rows, inside[None, :, None], channels[:, None, :], column[None, :, None])
        result[index] += values[:, None, :]
    return result.reshape(outputs * places, shape[0] * inputs), (outputs, *spatial)


def average_pool(
    shape: tuple[int, ...], window: Window, *, count_padding: bool
) -> tuple[Floats, tuple[int, ...]]:
    """Return the matrix of an average pool of (channels, *sizes), and the shape of its result."""
    channels = shape[0]
    ones = np.ones((channels, 1, *window.kernel))
    matrix, result = convolution(ones, channels, shape, window)
    full = float(math.prod(window.kernel))
    counts = full if count_padding else np.maximum(matrix.sum(axis=1, keepdims=True), 1.0)
    return matrix / counts, result
