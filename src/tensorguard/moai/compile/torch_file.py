"""A `.pt2` file is data: a JSON graph and raw weights. Neither torch nor a pickle is ever needed.

`torch.export.save` writes a ZIP. Read are the graph, the tables of weights, and the weights that the
graph uses; its sample inputs are a pickle and are never opened, and a weight that is one is refused.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np

from tensorguard.crypto import canonical
from tensorguard.errors import MalformedInput
from tensorguard.moai.compile.network import ModelNotSupported
from tensorguard.moai.compile.static_graph import (
    MAX_ELEMENTS,
    MAX_NODES,
    MAX_RANK,
    Array,
    Node,
    StaticGraph,
    check_order,
)
from tensorguard.moai.compile.torch_operators import OPSET, Call, translate
from tensorguard.wire.models import MAX_FEATURES

MAX_TORCH = 256 << 20
MAX_MEMBERS = 4096
MAX_JSON = 32 << 20  # stack traces and all
MAX_JSON_DEPTH = 32
SCHEMA = 8  # the major version of the graph's schema: torch 2.5 and later
_DTYPES = {5: "<i8", 6: "<f2", 7: "<f4", 8: "<f8"}
_KINDS = {
    "parameter": "parameter_name",
    "buffer": "buffer_name",
    "tensor_constant": "tensor_constant_name",
}


class PickleInside(MalformedInput):
    code = "torch_pickle_inside"
    remedy = (
        "Save the program with torch.export.save of torch 2.9 or later, with plain tensors only."
    )


def read_graph(data: bytes) -> StaticGraph:
    """Parse and check the bytes of a `.pt2` file. Raises `ModelNotSupported` and others."""
    if len(data) > MAX_TORCH:
        raise MalformedInput(f"a .pt2 file has at most {MAX_TORCH} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _Members(archive)
            return _graph(members.json("models/model.json"), members)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise MalformedInput("the graph is not one that torch.export.save writes") from error
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise MalformedInput("this is not a .pt2 file") from error


class _Members:
    """The members of the archive, under its one folder; none is larger than the file."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        folders = {name.split("/", 1)[0] for name in names}
        if not 1 <= len(entries) <= MAX_MEMBERS or len(set(names)) != len(names):
            raise MalformedInput(f"a .pt2 file has 1 to {MAX_MEMBERS} members, none twice")
        if len(folders) != 1 or any(
            entry.compress_type or entry.flag_bits & 1 for entry in entries
        ):
            raise MalformedInput("the members of a .pt2 file are stored plainly in one folder")
        self._archive = archive
        self._folder = folders.pop()
        self._sizes = {entry.filename: entry.file_size for entry in entries}
        self._spent = 0
        if self.read("archive_format", limit=16) != b"pt2":
            raise MalformedInput("this is not a .pt2 file")
        if self.read("byteorder", limit=16) != b"little":
            raise ModelNotSupported("the weights are not in little-endian order")

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a member. Raises `MalformedInput`."""
        path = f"{self._folder}/{name}"
        size = self._sizes.get(path)
        if size is None or size > limit:
            raise MalformedInput(f"the member {name[:80]!r} is missing or too large")
        self._spent += size
        if self._spent > MAX_TORCH:
            raise MalformedInput(f"the members have over {MAX_TORCH} bytes")
        return self._archive.read(path)

    def json(self, name: str) -> Any:
        """Return a JSON member."""
        return canonical.parse(
            self.read(name, limit=MAX_JSON), limit=MAX_JSON, depth=MAX_JSON_DEPTH
        )


def _graph(document: Any, members: _Members) -> StaticGraph:
    if document["schema_version"]["major"] != SCHEMA:
        raise ModelNotSupported(f"the graph's schema is not {SCHEMA}: use torch 2.9 or later")
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    if not 1 <= len(graph["nodes"]) <= MAX_NODES:
        raise ModelNotSupported(f"a graph has 1 to {MAX_NODES} nodes")
    table = members.json("data/weights/model_weights_config.json")["config"]
    table = {**members.json("data/constants/model_constants_config.json")["config"], **table}
    tensors, name = _inputs(signature, table)
    sizes = {str(key): value["sizes"] for key, value in graph["tensor_values"].items()}
    batch = sizes[name][0]
    if "as_int" in batch and batch["as_int"] != 1:
        raise ModelNotSupported("the input's first dimension is the batch: export with 1, or a Dim")
    shape = tuple(int(size["as_int"]) for size in sizes[name][1:])
    if not shape or len(shape) > MAX_RANK or min(shape) < 1 or math.prod(shape) > MAX_FEATURES:
        raise ModelNotSupported(f"the input has 1 to {MAX_FEATURES} numbers, behind the batch")
    constants: dict[str, Array] = {}
    symbols: set[str] = set()
    nodes: list[Node] = []
    weights = _Weights(members, tensors, table)
    for number, raw in enumerate(graph["nodes"]):
        call = Call.of(number, raw, sizes=sizes, batch=batch, symbols=symbols)
        for used in call.tensors:
            if used in tensors and used not in constants:
                constants[used] = weights.load(used)
        made, extra = translate(call, constants)
        nodes += made
        constants.update(extra)
    output = _output(signature)
    if len(nodes) > MAX_NODES:
        raise ModelNotSupported(f"a graph has 1 to {MAX_NODES} nodes")
    check_order(tuple(nodes), {name, *constants}, output)
    return StaticGraph(tuple(nodes), constants, name, shape, output, OPSET)


def _inputs(signature: Any, table: Any) -> tuple[dict[str, str], str]:
    """Return which graph inputs are which stored tensors, and the name of the model's input."""
    tensors: dict[str, str] = {}
    given: list[str] = []
    for spec in signature["input_specs"]:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            given.append(str(value["arg"].get("as_tensor", {"name": ""})["name"]))
        elif kind in _KINDS:
            stored = str(value[_KINDS[kind]])
            if stored not in table:
                raise MalformedInput(f"the weight {stored[:80]!r} is not in the file")
            tensors[str(value["arg"]["name"])] = stored
        else:
            raise ModelNotSupported(f"an input of the graph is a {str(kind)[:40]!r}")
    if len(given) != 1 or not given[0]:
        raise ModelNotSupported(f"the module has {len(given)} inputs; one tensor is supported")
    return tensors, given[0]


def _output(signature: Any) -> str:
    specs = signature["output_specs"]
    if len(specs) != 1 or "user_output" not in specs[0]:
        raise ModelNotSupported(
            "the module has other outputs than one tensor, or changes its buffers: export it after "
            ".eval(), with one output"
        )
    return str(specs[0]["user_output"]["arg"]["as_tensor"]["name"])


class _Weights:
    """The stored tensors, read once they are used; together bounded."""

    def __init__(self, members: _Members, tensors: dict[str, str], table: Any) -> None:
        self._members = members
        self._tensors = tensors
        self._table = table
        self._left = MAX_ELEMENTS

    def load(self, name: str) -> Array:
        """Return the tensor of a graph input: floats as float64, integers as int64."""
        stored = self._tensors[name]
        entry = self._table[stored]
        label = repr(stored[:80])
        if entry["use_pickle"] is not False:
            raise PickleInside(f"tensor {label} is a pickle, which runs code when it is opened")
        meta = entry["tensor_meta"]
        sizes, strides = (
            tuple(int(x["as_int"]) for x in meta[key]) for key in ("sizes", "strides")
        )
        offset, dtype = int(meta["storage_offset"]["as_int"]), _DTYPES.get(meta["dtype"])
        count = math.prod(sizes)
        if dtype is None or meta["device"]["type"] != "cpu":
            raise ModelNotSupported(f"tensor {label} is not of float32 or int64, on the CPU")
        if len(sizes) > MAX_RANK or len(strides) != len(sizes) or min((*sizes, 1)) < 0:
            raise MalformedInput(f"tensor {label} has no usable shape")
        self._left -= count
        if self._left < 0:
            raise ModelNotSupported(f"the tensors have over {MAX_ELEMENTS} numbers")
        folder = "weights" if str(entry["path_name"]).startswith("weight_") else "constants"
        path = f"data/{folder}/{entry['path_name']}"
        flat = np.frombuffer(self._members.read(path, limit=MAX_TORCH), dtype=dtype)
        reach = offset + sum(
            (size - 1) * stride for size, stride in zip(sizes, strides, strict=True)
        )
        if count and (min((offset, *strides)) < 0 or reach >= flat.size):
            raise MalformedInput(f"tensor {label} does not have the size of its shape")
        index = np.full(sizes, offset, dtype=np.int64)
        for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
            steps = np.arange(size, dtype=np.int64) * stride
            index += steps.reshape([-1 if k == axis else 1 for k in range(len(sizes))])
        result = flat[index]
        if dtype[1] == "i":
            return np.asarray(result, dtype=np.int64)
        if not np.isfinite(result).all():
            raise ModelNotSupported(f"tensor {label} is not finite")
        return np.asarray(result, dtype=np.float64)
