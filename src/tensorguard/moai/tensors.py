"""Tensors are float64 of exactly the expected names and shapes, or the file is refused.

Format: safetensors (8-byte little-endian header size, JSON header, data without gaps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from tensorguard.crypto import canonical
from tensorguard.errors import MalformedInput

Floats = npt.NDArray[np.float64]
MAX_HEADER = 1 << 20  # a few hundred tensors take some 30 kB
MAX_TENSORS = 256


def save(values: Mapping[str, Floats]) -> bytes:
    """Return the file. The order is by name, so equal tensors give equal bytes."""
    result = save_safetensors(
        {name: np.ascontiguousarray(values[name], dtype=np.float64) for name in sorted(values)}
    )
    return bytes(result)


def load(data: bytes, *, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    """Return exactly the tensors that `shapes` names, all float64. Raises `MalformedInput`."""
    header = _header(data)
    if header.keys() != shapes.keys():
        raise MalformedInput("the tensors are not exactly those of the layer graph")
    for name, shape in shapes.items():
        entry = header[name]
        if entry.get("dtype") != "F64" or entry.get("shape") != list(shape):
            raise MalformedInput(f"tensor {name} is not float64 of shape {shape}")
    if sum(math.prod(shape) for shape in shapes.values()) * 8 > len(data):
        raise MalformedInput("the tensors are larger than their file")
    return load_any(data)


def load_any(data: bytes) -> dict[str, Floats]:
    """Return every tensor of a bounded file, as float64. Raises `MalformedInput`."""
    header = _header(data)
    if not 1 <= len(header) <= MAX_TENSORS:
        raise MalformedInput(f"a weight file has 1 to {MAX_TENSORS} tensors")
    for name, entry in header.items():
        if entry.get("dtype") not in {"F64", "F32", "F16"}:
            raise MalformedInput(f"tensor {name} is not of floating point")
    try:
        loaded = load_safetensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise MalformedInput("this is not a safetensors file") from error
    return {name: np.asarray(value, dtype=np.float64) for name, value in loaded.items()}


def _header(data: bytes) -> dict[str, dict[str, object]]:
    if len(data) < 8:  # noqa: PLR2004 -- the size field
        raise MalformedInput("this is not a safetensors file")
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER or size > len(data) - 8:
        raise MalformedInput("the safetensors header is too large")
    value = canonical.parse(data[8 : 8 + size].rstrip(b" "), limit=MAX_HEADER, depth=4)
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise MalformedInput("the safetensors header is not an object of objects")
    value.pop("__metadata__", None)
    return value
