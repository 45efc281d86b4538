"""PyTorch's operators in the words of a static graph: every table here maps one to plain nodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorguard.moai.compile.network import ModelNotSupported
from tensorguard.moai.compile.static_graph import Array, Attribute, Node

OPSET = 20  # whose meaning the nodes have
_PREFIX = "torch.ops.aten."
_PAIR = 2


@dataclass(frozen=True, eq=False)
class Tensor:
    """An operand that is a tensor, by its name."""

    name: str


Value = Tensor | bool | int | float | str | tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operator, with its arguments by name."""

    op: str  # "conv2d", without its overload
    overload: str
    output: str
    label: str
    arguments: Mapping[str, Value]
    shapes: Mapping[str, tuple[int, ...] | None]  # batch 1; None: the batch is mixed
    constants: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, number: int, raw: Any, *, sizes: Any, batch: Any, symbols: set[str]) -> Call:
        """Read a node. `symbols` collects the names of sizes that are the batch."""
        target = str(raw["target"])
        path = str(raw["metadata"].get("nn_module_stack", "")).rsplit(";", 1)[-1].split(",")
        where = f" in {path[1][:80]!r}" if len(path) > 1 and path[1] else ""
        label = f"{str(raw.get('name') or f'#{number}')[:80]!r}{where}"
        if not target.startswith(_PREFIX):
            raise ModelNotSupported(f"node {label} ({target[:60]}): it is no operator of PyTorch's")
        op, _, overload = target.removeprefix(_PREFIX).partition(".")
        outputs = raw["outputs"]
        name = ""
        for kind, value in outputs[0].items() if outputs else ():
            name = str(value["name"] if kind == "as_tensor" else value.get("as_name", ""))
        if op == "sym_size":
            symbols.add(name)
        arguments = {str(x["name"]): _value(x["arg"], symbols, label) for x in raw["inputs"]}
        used = {name, *(x.name for x in arguments.values() if isinstance(x, Tensor))}
        shapes = {k: _shape(sizes[k], batch) for k in used if k in sizes}
        return cls(op.rstrip("_"), overload, name, label, arguments, shapes)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Return the names of the tensors that it takes."""
        return tuple(x.name for x in self.arguments.values() if isinstance(x, Tensor))

    def refuse(self, why: str) -> ModelNotSupported:
        """Return the error that names this call."""
        return ModelNotSupported(f"node {self.label} ({self.op}): {why}")

    def tensor(self, name: str) -> str:
        """Return the name of a tensor operand; "" for one that is absent or None."""
        value = self.arguments.get(name)
        if value is not None and not isinstance(value, Tensor):
            raise self.refuse(f"operand {name} is not a tensor")
        return "" if value is None else value.name

    def integers(self, name: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """Return a list of `count` integers; one stands for all."""
        value = self.arguments.get(name)
        if value is None or value == ():
            if default is None:
                raise self.refuse(f"argument {name} is missing")
            return (default,) * count
        given = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(x, int) for x in given) or len(given) not in {1, count}:
            raise self.refuse(f"argument {name} is not {count} integers")
        return tuple(int(x) for x in given) * (count // len(given))  # type: ignore[arg-type]

    def number(self, name: str, default: float) -> float:
        """Return a number."""
        value = self.arguments.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(f"argument {name} is not a number")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a truth value."""
        return bool(self.arguments.get(name, default))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, with a batch of 1."""
        shape = self.shapes.get(name)
        if shape is None:
            raise self.refuse("it mixes the batch with other axes")
        return shape

    def constant(self, value: Any, hint: str) -> str:
        """Add a constant and return its name."""
        name = f"{self.output}/{hint}"
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Attribute) -> Node:
        """Return a node that gives this call's output, or an intermediate one."""
        name = f"{self.output}/{output}" if output else self.output
        return Node(op, self.label, inputs, (name,), attributes)


def _value(argument: Any, symbols: set[str], label: str) -> Value:
    ((kind, value),) = argument.items()
    if kind in _VALUES:
        return _VALUES[kind](value)
    if kind not in {"as_sym_int", "as_sym_ints"}:
        raise ModelNotSupported(f"node {label}: an argument is of the kind {str(kind)[:40]!r}")
    items = value if kind == "as_sym_ints" else [value]
    if any("as_name" in x and x["as_name"] not in symbols for x in items):
        raise ModelNotSupported(f"node {label}: a size is computed while it runs")
    sizes = tuple(1 if "as_name" in x else int(x["as_int"]) for x in items)
    return sizes if kind == "as_sym_ints" else sizes[0]


_VALUES: Mapping[str, Callable[[Any], Value]] = {
    "as_tensor": lambda value: Tensor(str(value["name"])),
    "as_none": lambda _: None,
    "as_device": lambda _: None,
    "as_ints": lambda value: tuple(int(x) for x in value),
    "as_int": int,
    "as_scalar_type": int,
    "as_memory_format": int,
    "as_layout": int,
    "as_float": float,
    "as_bool": bool,
    "as_string": str,
}


def _shape(sizes: Any, batch: Any) -> tuple[int, ...] | None:
    if not sizes:
        return ()
    first, *rest = sizes
    if any("as_int" not in size for size in rest):
        return None
    same = "as_int" in first or first["as_expr"]["expr_str"] == batch["as_expr"]["expr_str"]
    return (int(first.get("as_int", 1)), *(int(size["as_int"]) for size in rest)) if same else None


Translation = Callable[[Call], list[Node]]


def translate(call: Call, known: Mapping[str, Array]) -> tuple[list[Node], dict[str, Array]]:
    """Return the nodes and the new constants of a call. `known` are the constants so far."""
    if call.op in {"sym_size", "_assert_tensor_metadata", "_assert_scalar"}:
        return [], {}
    if not call.output:
        raise call.refuse("it gives no tensor")
    if call.op in _WITH_WEIGHTS:
        nodes = _WITH_WEIGHTS[call.op](call, known)
    elif call.op in _PLAIN:
        nodes = [call.node(_PLAIN[call.op], call.tensor("self") or call.tensor("input"))]
    elif call.op in _TABLE:
        nodes = _TABLE[call.op](call)
    else:
        nodes = [call.node(_REFUSED.get(call.op, call.op), *call.tensors)]
    return nodes, call.constants


def _linear(call: Call) -> list[Node]:
    bias = call.tensor("bias")
    product = "product" if bias else ""
    nodes = [
        call.node("Transpose", call.tensor("weight"), output="weight", perm=(1, 0)),
        call.node("MatMul", call.tensor("input"), f"{call.output}/weight", output=product),
    ]
    return nodes + ([call.node("Add", f"{call.output}/product", bias)] if bias else [])


def _addmm(call: Call) -> list[Node]:
    if call.number("beta", 1.0) != 1.0 or call.number("alpha", 1.0) != 1.0:
        raise call.refuse("its factors are not 1")
    return [
        call.node("MatMul", call.tensor("mat1"), call.tensor("mat2"), output="product"),
        call.node("Add", f"{call.output}/product", call.tensor("self")),
    ]


def _matmul(call: Call) -> list[Node]:
    second = "other" if "other" in call.arguments else "mat2"
    return [call.node("MatMul", call.tensor("self"), call.tensor(second))]


def _convolution(call: Call, known: Mapping[str, Array]) -> list[Node]:
    rank = 1 if call.op == "conv1d" else 2
    weight, bias = call.tensor("weight"), call.tensor("bias")
    if weight not in known:
        raise call.refuse("its kernel depends on the input, or is computed")
    dilation = call.integers("dilation", rank, 1)
    padding = call.arguments.get("padding", 0)
    begin = end = (0,) * rank
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, known[weight].shape[2:], strict=True)]
        begin, end = tuple(x // 2 for x in total), tuple(x - x // 2 for x in total)
    elif padding != "valid":
        begin = end = call.integers("padding", rank, 0)
    return [
        call.node(
            "Conv",
            call.tensor("input"),
            weight,
            *([bias] if bias else []),
            strides=call.integers("stride", rank, 1),
            pads=(*begin, *end),
            dilations=dilation,
            group=int(call.number("groups", 1)),
        )
    ]


def _average(call: Call) -> list[Node]:
    rank = 1 if call.op == "avg_pool1d" else _PAIR
    if call.arguments.get("divisor_override") is not None:
        raise call.refuse("a divisor of its own is not supported")
    kernel = call.integers("kernel_size", rank)
    given = call.arguments.get("stride")
    strides = kernel if given in {None, ()} else call.integers("stride", rank)
    padding = call.integers("padding", rank, 0)
    return [
        call.node(
            "AveragePool",
            call.tensor("self"),
            kernel_shape=kernel,
            strides=strides,
            pads=padding * 2,
            ceil_mode=int(call.flag("ceil_mode", default=False)),
            count_include_pad=int(call.flag("count_include_pad", default=True)),
        )
    ]


def _adaptive(call: Call) -> list[Node]:
    rank = 1 if call.op == "adaptive_avg_pool1d" else _PAIR
    wanted = call.integers("output_size", rank)
    sizes = call.shape(call.tensor("self"))[-rank:]
    if min(wanted) < 1 or any(a % b for a, b in zip(sizes, wanted, strict=True)):
        raise call.refuse(f"its sizes {sizes} are not multiples of {wanted}")
    kernel = tuple(a // b for a, b in zip(sizes, wanted, strict=True))
    return [call.node("AveragePool", call.tensor("self"), kernel_shape=kernel, strides=kernel)]


def _batch_norm(call: Call, known: Mapping[str, Array]) -> list[Node]:
    mean, variance = call.tensor("running_mean"), call.tensor("running_var")
    if call.flag("training", default=False) or mean not in known or variance not in known:
        raise call.refuse("it is in training mode; export the module after .eval()")
    size = known[mean].shape
    weight = call.tensor("weight") or call.constant(np.ones(size), "weight")
    bias = call.tensor("bias") or call.constant(np.zeros(size), "bias")
    operands = (call.tensor("input"), weight, bias, mean, variance)
    return [call.node("BatchNormalization", *operands, epsilon=call.number("eps", 1e-5))]


def _layer_norm(call: Call) -> list[Node]:
    shape = call.arguments.get("normalized_shape")
    if not isinstance(shape, tuple) or call.shape(call.tensor("input"))[-len(shape) :] != shape:
        raise call.refuse("its normalised shape is not that of the value")
    operands = (call.tensor("input"), call.tensor("weight"), call.tensor("bias"))
    epsilon = call.number("eps", 1e-5)
    return [call.node("LayerNormalization", *operands, axis=-len(shape), epsilon=epsilon)]


def _reshaped(call: Call) -> list[Node]:
    shape = call.constant(np.array(call.shape(call.output), dtype=np.int64), "shape")
    return [call.node("Reshape", call.tensor("self"), shape)]


def _permuted(call: Call) -> list[Node]:
    rank = len(call.shape(call.tensor("self")))
    if call.op == "permute":
        order = [axis % rank for axis in call.integers("dims", rank)]
    else:
        one, other = (call.integers(name, 1)[0] % rank for name in ("dim0", "dim1"))
        order = list(range(rank))
        order[one], order[other] = order[other], order[one]
    return [call.node("Transpose", call.tensor("self"), perm=tuple(order))]


def _mean(call: Call) -> list[Node]:
    axes = call.arguments.get("dim")
    if not isinstance(axes, tuple) or not axes:
        raise call.refuse("it averages over the batch; name the axes")
    keep = int(call.flag("keepdim", default=False))
    return [call.node("ReduceMean", call.tensor("self"), axes=axes, keepdims=keep)]


def _arithmetic(call: Call) -> list[Node]:
    op = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}[call.op]
    if call.arguments.get("rounding_mode") is not None:
        raise call.refuse("it rounds")
    second, nodes = _operand(call, "other"), []
    alpha = call.number("alpha", 1.0)
    if alpha != 1.0:
        factor = call.constant(np.float64(alpha), "alpha")
        nodes.append(call.node("Mul", second, factor, output="scaled"))
        second = f"{call.output}/scaled"
    return [*nodes, call.node(op, call.tensor("self"), second)]


def _operand(call: Call, name: str) -> str:
    if isinstance(call.arguments.get(name), Tensor):
        return call.tensor(name)
    return call.constant(np.float64(call.number(name, float("nan"))), name)


def _power(call: Call) -> list[Node]:
    if not call.tensor("self"):
        raise call.refuse("it raises a number to a value that depends on the input")
    return [call.node("Pow", call.tensor("self"), _operand(call, "exponent"))]


def _inverse_root(call: Call) -> list[Node]:
    root = call.node("Sqrt", call.tensor("self"), output="root")
    return [root, call.node("Reciprocal", f"{call.output}/root")]


def _square(call: Call) -> list[Node]:
    return [call.node("Mul", call.tensor("self"), call.tensor("self"))]


def _gelu(call: Call) -> list[Node]:
    approximate = str(call.arguments.get("approximate", "none"))
    return [call.node("Gelu", call.tensor("self"), approximate=approximate)]


def _dropout(call: Call) -> list[Node]:
    if call.flag("train", default=True):
        raise call.refuse("it is in training mode; export the module after .eval()")
    return [call.node("Identity", call.tensor("input"))]


def _cast(call: Call) -> list[Node]:
    if call.arguments.get("dtype") not in {None, 6, 7, 8}:
        raise call.refuse("it casts to something else than floating point")
    return [call.node("Identity", call.tensor("self"))]


def _softmax(call: Call) -> list[Node]:
    return [call.node("Softmax", call.tensor("self"), axis=call.integers("dim", 1)[0])]


_PLAIN = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "silu": "Swish",
    "erf": "Erf",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "neg": "Neg",
}
_WITH_WEIGHTS: Mapping[str, Callable[[Call, Mapping[str, Array]], list[Node]]] = {
    "batch_norm": _batch_norm,
    "conv1d": _convolution,
    "conv2d": _convolution,
}
_TABLE: Mapping[str, Translation] = {
    "linear": _linear,
    "addmm": _addmm,
    "matmul": _matmul,
    "mm": _matmul,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "pow": _power,
    "rsqrt": _inverse_root,
    "square": _square,
    "mean": _mean,
    "softmax": _softmax,
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), _average),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), _adaptive),
    **dict.fromkeys(("add", "sub", "mul", "div"), _arithmetic),
    **dict.fromkeys(("permute", "transpose"), _permuted),
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten"), _reshaped),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(("to", "_to_copy", "clone", "contiguous", "detach", "alias"), _cast),
}
_REFUSED = {
    "max_pool1d": "MaxPool",
    "max_pool2d": "MaxPool",
    "adaptive_max_pool2d": "GlobalMaxPool",
    "leaky_relu": "LeakyRelu",
    "instance_norm": "InstanceNormalization",
    "group_norm": "GroupNormalization",
}
