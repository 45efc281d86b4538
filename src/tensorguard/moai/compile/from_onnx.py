"""ONNX files, read as static graphs and lowered like every other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tensorguard.moai.compile.build import DEFAULT_ERROR_BUDGET, Compiled, compile_network
from tensorguard.moai.compile.lowering import lowered
from tensorguard.moai.compile.network import Network
from tensorguard.moai.compile.onnx_file import read_graph

Floats = npt.NDArray[np.float64]


def from_onnx(
    data: bytes,
    calibration: Floats,
    *,
    labels: Sequence[str] = (),
    error_budget: float = DEFAULT_ERROR_BUDGET,
    degree: int | None = None,
    refit_last: bool = False,
) -> Compiled:
    """Compile the bytes of an `.onnx` file. `calibration` (n, features) is flattened in C order."""
    return compile_network(
        network_of(data, labels=labels),
        np.asarray(calibration, dtype=np.float64),
        error_budget=error_budget,
        degree=degree,
        refit_last=refit_last,
    )


def network_of(data: bytes, *, labels: Sequence[str] = ()) -> Network:
    """Return the network in an `.onnx` file. Raises `ModelNotSupported` and others.

    `labels` name the classes; with them, plain outputs are taken for logits.
    """
    digest = hashlib.sha256(data).hexdigest()
    return lowered(read_graph(data), labels=labels, source="onnx", source_sha256=digest)
