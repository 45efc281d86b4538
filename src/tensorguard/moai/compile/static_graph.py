"""A static graph of plain operators, whatever file it came from: what the lowering reads.

Operators, attributes and operands are ONNX's; the first dimension of the input is the batch, and no
operator may mix its rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tensorguard.moai.compile.network import ModelNotSupported

Array = npt.NDArray[np.float64] | npt.NDArray[np.int64]
Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | Array
MAX_NODES = 2048
MAX_ELEMENTS = 16 << 20  # of all tensors together
MAX_RANK = 8


@dataclass(frozen=True, eq=False)
class Node:
    """One operator; `label` names it in messages."""

    op: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)

    def refuse(self, why: str) -> ModelNotSupported:
        """Return the error that names this node."""
        return ModelNotSupported(f"node {self.label} ({self.op}): {why}")

    def number(self, name: str, default: float) -> float:
        """Return a number attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refuse(f"attribute {name} is not a number")
        return value

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, int):
            raise self.refuse(f"attribute {name} is not an integer")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return a list of integers."""
        value = self.attributes.get(name, default)
        if not isinstance(value, tuple) or not all(isinstance(x, int) for x in value):
            raise self.refuse(f"attribute {name} is not a list of integers")
        return tuple(int(x) for x in value)

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self.attributes.get(name, default)
        if not isinstance(value, str):
            raise self.refuse(f"attribute {name} is not a string")
        return value


@dataclass(frozen=True, eq=False)
class StaticGraph:
    """A checked graph: nodes in order, tensors by name, one input, one output."""

    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    input: str
    shape: tuple[int, ...]  # without the batch
    output: str
    opset: int


def check_order(nodes: tuple[Node, ...], known: set[str], output: str) -> None:
    """Check that every name is defined once, before its use."""
    for node in nodes:
        for name in node.inputs:
            if name and name not in known:
                raise node.refuse(f"its input {name[:80]!r} is not defined before it")
        for name in node.outputs:
            if name in known and node.op != "Constant":
                raise node.refuse(f"its output {name[:80]!r} is defined twice")
            known |= {name} if name else set()
    if output not in known:
        raise ModelNotSupported(f"no node gives the output {output[:80]!r}")
