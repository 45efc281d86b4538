"""ONNX's linear operators as matrices; every table here maps an operator to what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tensorguard.moai.compile.affine import (
    Affine,
    Window,
    average_pool,
    check_size,
    convolution,
)
from tensorguard.moai.compile.network import Activation
from tensorguard.moai.compile.static_graph import Array, Node

Floats = npt.NDArray[np.float64]
Linear = Callable[[Node, Affine, Sequence[Array | None]], Affine]
Constant = Callable[[Node, Sequence[Array]], Array]
_MAX_KERNEL = 4096


def _floats(node: Node, constants: Sequence[Array | None], index: int) -> Floats:
    value = constants[index] if index < len(constants) else None
    if value is None or value.dtype != np.float64:
        raise node.refuse(f"operand {index + 1} is not a tensor of floating point")
    return np.asarray(value, dtype=np.float64)


def _integers(node: Node, constants: Sequence[Array | None], name: str) -> tuple[int, ...] | None:
    """Return a list that is an operand, or in older operator sets an attribute."""
    if name in node.attributes:
        return node.integers(name, ())
    if not constants or constants[0] is None:
        return None
    value = constants[0]
    if value.dtype != np.int64 or value.ndim > 1 or value.size > 16:  # noqa: PLR2004 -- over any rank
        raise node.refuse(f"{name} is not a list of integers")
    return tuple(int(x) for x in value.ravel())


def _gemm(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    weight = _floats(node, constants, 0)
    if node.integer("transA", 0) or len(value.shape) != 1 or weight.ndim != 2:  # noqa: PLR2004 -- a matrix
        raise node.refuse("it is not a plain product with a matrix")
    weight = weight if node.integer("transB", 0) else weight.T
    if weight.shape[1] != value.width:
        raise node.refuse(f"it takes {weight.shape[1]} values, {value.width} come")
    bias = np.zeros(len(weight))
    if len(constants) > 1 and constants[1] is not None:
        given = np.broadcast_to(_floats(node, constants, 1), (1, len(weight)))[0]
        bias = node.number("beta", 1.0) * given
    return value.linear(node.number("alpha", 1.0) * weight, bias, (len(weight),))


def _matmul(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    weight = _floats(node, constants, 0)
    if weight.ndim != 2 or weight.shape[0] != value.shape[-1]:  # noqa: PLR2004 -- a matrix
        raise node.refuse("it is not a product with a matrix that fits")
    rows = value.width // value.shape[-1]
    check_size(rows * weight.shape[1], value.width)
    shape = (*value.shape[:-1], weight.shape[1])
    return value.linear(np.kron(np.eye(rows), weight.T).astype(np.float64), None, shape)


def _window(node: Node, kernel: tuple[int, ...]) -> Window:
    rank = len(kernel)
    if node.text("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
        raise node.refuse("automatic padding is not supported; export with explicit pads")
    if node.integer("ceil_mode", 0):
        raise node.refuse("ceil_mode is not supported; use sizes that divide")
    pads = node.integers("pads", (0,) * (2 * rank))
    strides = node.integers("strides", (1,) * rank)
    dilations = node.integers("dilations", (1,) * rank)
    counts = (len(pads), len(strides), len(dilations))
    if counts != (2 * rank, rank, rank) or not 1 <= rank <= 2:  # noqa: PLR2004 -- 1d and 2d
        raise node.refuse("it is not one- or two-dimensional")
    largest = max(*kernel, *strides, *dilations, *pads)
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0 or largest > _MAX_KERNEL:
        raise node.refuse("its kernel, strides, dilations or pads are out of range")
    return Window(kernel, strides, pads[:rank], pads[rank:], dilations)


def _check_window(node: Node, value: Affine, window: Window) -> None:
    if len(value.shape) != len(window.kernel) + 1:
        raise node.refuse("its kernel does not have the rank of the value")
    if min(window.outputs(value.shape[1:])) < 1 or math.prod(window.kernel) > _MAX_KERNEL:
        raise node.refuse("its kernel is larger than the value")


def _conv(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    weight = _floats(node, constants, 0)
    window = _window(node, tuple(weight.shape[2:]))
    _check_window(node, value, window)
    groups = node.integer("group", 1)
    channels = value.shape[0]
    if groups < 1 or weight.shape[1] * groups != channels or weight.shape[0] % groups:
        raise node.refuse(f"its groups do not fit {channels} channels")
    matrix, shape = convolution(weight, groups, value.shape, window)
    bias = np.zeros(len(weight))
    if len(constants) > 1 and constants[1] is not None:
        bias = _floats(node, constants, 1)
    return value.linear(matrix, np.repeat(bias, math.prod(shape[1:])), shape)


def _average(node: Node, value: Affine, _: Sequence[Array | None]) -> Affine:
    window = _window(node, node.integers("kernel_shape", ()))
    _check_window(node, value, window)
    counted = bool(node.integer("count_include_pad", 0))
    matrix, shape = average_pool(value.shape, window, count_padding=counted)
    return value.linear(matrix, None, shape)


def _global_average(node: Node, value: Affine, _: Sequence[Array | None]) -> Affine:
    if len(value.shape) < 2:  # noqa: PLR2004 -- channels and sizes
        raise node.refuse("the value has no spatial axes")
    return _mean(value, tuple(range(1, len(value.shape))), keep=True)


def _reduce_mean(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    rank = len(value.shape) + 1
    given = _integers(node, constants, "axes")
    axes = {axis % rank for axis in given or range(1, rank)}
    if 0 in axes or (not given and node.integer("noop_with_empty_axes", 0)):
        raise node.refuse("it averages over the batch, or over nothing")
    keep = bool(node.integer("keepdims", 1))
    return _mean(value, tuple(axis - 1 for axis in sorted(axes)), keep=keep)


def _mean(value: Affine, axes: tuple[int, ...], *, keep: bool) -> Affine:
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    check_size(math.prod(shape), value.width)
    rows = np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), value.shape).ravel()
    weight = np.zeros((math.prod(shape), value.width))
    weight[rows, np.arange(value.width)] = math.prod(shape) / value.width
    left = tuple(size for axis, size in enumerate(value.shape) if axis not in axes)
    return value.linear(weight, None, shape if keep else left or (1,))


def _batch_norm(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    if node.integer("training_mode", 0):
        raise node.refuse("it is in training mode; export the model after .eval()")
    gain, bias, mean, variance = (_floats(node, constants, k) for k in range(4))
    channels = value.shape[0]
    if any(x.shape != (channels,) for x in (gain, bias, mean, variance)) or (variance < 0).any():
        raise node.refuse(f"its statistics are not for {channels} channels")
    scale = gain / np.sqrt(variance + node.number("epsilon", 1e-5))
    each = value.width // channels
    return value.scaled(np.repeat(scale, each), np.repeat(bias - mean * scale, each))


def layer_norm_of(
    node: Node, value: Affine, constants: Mapping[str, Array]
) -> tuple[Floats, Floats, float, int]:
    """Return gain and bias (width,), the epsilon, and how many numbers are normalised together."""
    rank = len(value.shape) + 1
    axis = node.integer("axis", -1)
    axis += rank if axis < 0 else 0
    if not 1 <= axis < rank:
        raise node.refuse("it normalises over the batch, or over nothing")
    shape = value.shape[axis - 1 :]
    found = []
    for index, default in ((1, 1.0), (2, 0.0)):
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name and name not in constants:
            raise node.refuse("its scale or bias depends on the input")
        given = _floats(node, [constants[name]], 0) if name else np.full(shape, default)
        if np.broadcast_shapes(given.shape, shape) != shape:
            raise node.refuse("its scale or bias does not fit the value")
        found.append(np.broadcast_to(given, value.shape).ravel())
    epsilon = node.number("epsilon", 1e-5)
    if epsilon <= 0:
        raise node.refuse("its epsilon is not positive")
    return found[0], found[1], epsilon, math.prod(shape)


def _flatten(node: Node, value: Affine, _: Sequence[Array | None]) -> Affine:
    if node.integer("axis", 1) not in {1, -len(value.shape)}:
        raise node.refuse("it mixes the batch with other axes; flatten from axis 1")
    return value.reshaped((value.width,))


def _reshape(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    target = _integers(node, constants, "shape")
    if not target or node.integer("allowzero", 0):
        raise node.refuse("its shape is not a constant")
    source = (1, *value.shape)
    if any(size < -1 or (size == 0 and k >= len(source)) for k, size in enumerate(target)):
        raise node.refuse("its shape is not one")
    sizes = [source[k] if size == 0 else size for k, size in enumerate(target)]
    known = math.prod(size for size in sizes if size > 0)
    if sizes.count(-1) > 1 or value.width % known:
        raise node.refuse(f"{value.width} numbers do not fit its shape")
    sizes = [value.width // known if size < 0 else size for size in sizes]
    if sizes[0] != 1 or math.prod(sizes) != value.width:
        raise node.refuse("it mixes the batch with other axes")
    return value.reshaped(tuple(sizes[1:]) or (1,))


def _squeeze(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    axes = _integers(node, constants, "axes")
    rank = len(value.shape) + 1
    chosen = {axis % rank for axis in axes} if axes else set()
    if not chosen or 0 in chosen or any(value.shape[axis - 1] != 1 for axis in chosen):
        raise node.refuse("its axes are not given, or not of size 1")
    return value.reshaped(tuple(x for k, x in enumerate(value.shape, 1) if k not in chosen) or (1,))


def _unsqueeze(node: Node, value: Affine, constants: Sequence[Array | None]) -> Affine:
    axes = _integers(node, constants, "axes") or ()
    rank = len(value.shape) + 1 + len(axes)
    chosen = {axis % rank for axis in axes}
    if not chosen or 0 in chosen or len(chosen) != len(axes):
        raise node.refuse("its axes mix with the batch, or are not given")
    sizes = iter(value.shape)
    return value.reshaped(tuple(1 if k in chosen else next(sizes) for k in range(1, rank)))


def _transpose(node: Node, value: Affine, _: Sequence[Array | None]) -> Affine:
    order = node.integers("perm", tuple(range(len(value.shape), -1, -1)))
    if sorted(order) != list(range(len(value.shape) + 1)) or order[0] != 0:
        raise node.refuse("it moves the batch axis")
    places = np.arange(value.width).reshape(value.shape)
    return value.picked(places.transpose([axis - 1 for axis in order[1:]]))


def _cast(node: Node, _: Sequence[Array | None]) -> None:
    if node.integer("to", 0) not in {1, 10, 11}:
        raise node.refuse("it casts to something else than floating point")


def _dropout(node: Node, constants: Sequence[Array | None]) -> None:
    if len(constants) > 1 and constants[1] is not None and constants[1].any():
        raise node.refuse("it is in training mode; export the model after .eval()")


def _identity(_: Node, __: Sequence[Array | None]) -> None:
    """Keep the value."""


UNCHANGED: dict[str, Callable[[Node, Sequence[Array | None]], None]] = {
    "Cast": _cast,
    "Dropout": _dropout,
    "Identity": _identity,
}
LINEAR: dict[str, Linear] = {
    "AveragePool": _average,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "MatMul": _matmul,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _gelu(node: Node) -> Activation:
    approximate = node.text("approximate", "none")
    if approximate not in {"none", "tanh"}:
        raise node.refuse(f"its approximation {approximate!r} is not known")
    return Activation("gelu" if approximate == "none" else "gelu_tanh")


def _swish(node: Node) -> Activation:
    if node.number("alpha", 1.0) != 1.0:
        raise node.refuse("a swish has alpha 1")
    return Activation("silu")


ACTIVATED: dict[str, Callable[[Node], Activation]] = {"Gelu": _gelu, "Swish": _swish}


def _two(operation: Callable[[Floats, Floats], Floats]) -> Constant:
    def run(node: Node, given: Sequence[Array]) -> Array:
        left, right = given
        check_size(*_result(node, left, right))
        return np.asarray(operation(left.astype(np.float64), right.astype(np.float64)))

    return run


def _result(node: Node, left: Array, right: Array) -> tuple[int, int]:
    if left.dtype != np.float64 or right.dtype != np.float64:
        raise node.refuse("it computes with whole numbers; fold it")
    if node.op == "MatMul":
        return left.size // max(left.shape[-1], 1), right.size // max(right.shape[0], 1)
    return math.prod(np.broadcast_shapes(left.shape, right.shape)), 1


def _constant_transpose(node: Node, given: Sequence[Array]) -> Array:
    (value,) = given
    result: Array = value.transpose(node.integers("perm", tuple(range(value.ndim))[::-1]))
    return result


def _same(_: Node, given: Sequence[Array]) -> Array:
    return given[0]


def _root(_: Node, given: Sequence[Array]) -> Array:
    return np.asarray(np.sqrt(given[0].astype(np.float64)))


CONSTANTS: dict[str, Constant] = {
    "Add": _two(np.add),
    "Div": _two(np.divide),
    "Identity": _same,
    "MatMul": _two(np.matmul),
    "Mul": _two(np.multiply),
    "Sqrt": _root,
    "Sub": _two(np.subtract),
    "Transpose": _constant_transpose,
}
