"""PyTorch modules, exported to a static graph and lowered like every other.

A `.pt2` file (`torch.export.save`) is read without torch; only a module in memory needs it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorguard.errors import ConfigurationError
from tensorguard.moai.compile.build import DEFAULT_ERROR_BUDGET, Compiled, compile_network
from tensorguard.moai.compile.lowering import lowered
from tensorguard.moai.compile.network import ModelNotSupported, Network
from tensorguard.moai.compile.torch_file import read_graph

Floats = npt.NDArray[np.float64]


class TorchMissing(ConfigurationError):
    code = "torch_missing"
    remedy = "Install the extra: pip install 'tensorguard[torch]', or save a .pt2 file elsewhere."


def from_torch(
    module: Any,
    example: Any,
    calibration: Floats,
    *,
    labels: Sequence[str] = (),
    error_budget: float = DEFAULT_ERROR_BUDGET,
    degree: int | None = None,
    refit_last: bool = False,
) -> Compiled:
    """Compile an `nn.Module` in eval mode, or an `ExportedProgram` (whose `example` is not used).

    `example` is one input with its batch axis; `calibration` (n, features) is flattened in C order.
    """
    return compile_network(
        network_of(exported(module, example), labels=labels),
        np.asarray(calibration, dtype=np.float64),
        error_budget=error_budget,
        degree=degree,
        refit_last=refit_last,
    )


def exported(module: Any, example: Any) -> bytes:
    """Return the bytes of the `.pt2` file of a module. Raises `TorchMissing`, `ModelNotSupported`."""
    try:
        import torch
    except ImportError as error:
        raise TorchMissing("torch is not installed") from error
    if not isinstance(module, torch.export.ExportedProgram):
        if module.training:
            raise ModelNotSupported("the module is in training mode: call .eval() first")
        module = torch.export.export(module, (example[:1],))
    buffer = io.BytesIO()
    torch.export.save(module, buffer)
    return buffer.getvalue()


def network_of(data: bytes, *, labels: Sequence[str] = ()) -> Network:
    """Return the network in a `.pt2` file. Raises `ModelNotSupported` and others.

    `labels` name the classes; with them, plain outputs are taken for logits.
    """
    digest = hashlib.sha256(data).hexdigest()
    return lowered(read_graph(data), labels=labels, source="pytorch", source_sha256=digest)
