"""What a backend is, and the table of those that are supported.

A backend takes verified packs and gives models; a model takes frames and gives frames. The table
names modules; nothing is imported until a backend is chosen, and there is no fallback.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, cast

from tensorguard.errors import ConfigurationError
from tensorguard.moai.pack import VerifiedPack
from tensorguard.moai.spec import ModelSpec


class EvaluationKeys(Protocol):
    """A client's public evaluation keys, loaded for one model. Opaque to callers."""

    @property
    def parameters_id(self) -> bytes:
        """The id of the parameters that the keys are for."""
        ...


class Model(Protocol):
    """One pack, prepared for evaluation."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    def load_keys(self, frame: bytes) -> EvaluationKeys:
        """Validate and load a frame of evaluation keys. Raises a 4xx `TensorGuardError`."""
        ...

    def evaluate(self, keys: EvaluationKeys, frame: bytes) -> bytes:
        """Validate a ciphertext frame and return the frame of the result."""
        ...


class Backend(Protocol):
    """Prepares packs for evaluation."""

    @property
    def name(self) -> str:
        """The word of `TG_MOAI_BACKEND`."""
        ...

    def load(self, pack: VerifiedPack) -> Model:
        """Encode the pack's weights. Takes memory and seconds; done once."""
        ...


class BackendUnusable(ConfigurationError):
    code = "moai_backend"
    remedy = "Set TG_MOAI_BACKEND to tenseal, or install tensorguard-moai-native for native."


class LayoutUnsupported(ConfigurationError):
    code = "pack_layout_unsupported"
    remedy = "Set TG_MOAI_BACKEND to native, or build the pack without --batch."


@dataclass(frozen=True, slots=True)
class Row:
    """Where a backend lives."""

    module: str
    factory: str
    options: tuple[str, ...] = ()  # those of `open_backend` that it takes


SUPPORTED_BACKENDS: Mapping[str, Row] = MappingProxyType(
    {
        "tenseal": Row("tensorguard.moai.backends.tenseal", "TenSealBackend"),
        "native": Row("tensorguard.moai.backends.native", "NativeBackend", ("threads", "kernels")),
    }
)


def open_backend(name: str, *, threads: int = 1, kernels: str = "auto") -> Backend:
    """Import and return the backend of this name. Raises `BackendUnusable`.

    `threads` per request and `kernels` are the native backend's; the others have no choice.
    """
    row = SUPPORTED_BACKENDS.get(name)
    if row is None:
        raise BackendUnusable(f"there is no backend {name!r}")
    try:
        module = importlib.import_module(row.module)
    except ImportError as error:
        raise BackendUnusable(f"the backend {name} cannot be imported: {error}") from error
    choices = {"threads": threads, "kernels": kernels}
    options = {option: choices[option] for option in row.options}
    return cast("Backend", getattr(module, row.factory)(**options))
