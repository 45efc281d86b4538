"""The manifest of a pack, typed: what is not in these records is refused when the pack is read.

Canonical JSON carries it; `decode` checks it against the types. Tensors are in
`weights.safetensors`, under names that follow from the layers.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from tensorguard.crypto import canonical
from tensorguard.errors import VerificationError
from tensorguard.moai.bases import Basis
from tensorguard.moai.plan import MAX_DEGREE, MAX_LAYERS
from tensorguard.wire.models import (
    MAX_FEATURES,
    MAX_ROTATIONS,
    InputScaling,
    Name,
    OutputScaling,
    Packing,
    Parameters,
    Record,
    Sha256,
    Version,
)

FORMAT: Final = "tensorguard.moai/1"
MAX_MANIFEST_BYTES = 4 << 20  # 4,096 features with four scalings each are about 400 kB

LayerName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Width = Annotated[int, Meta(ge=1, le=16384)]
Text = Annotated[str, Meta(max_length=1024)]


class PackInvalid(VerificationError):
    """The pack is authentic in form or signature, and still not one that we evaluate."""

    code = "pack_invalid"
    remedy = "Build the pack again with `tensorguard pack build` of this version."


class LinearLayer(Record, frozen=True, omit_defaults=True, tag="linear", tag_field="kind"):
    """Tensors `<name>.weight` (outputs, inputs) and `<name>.bias` (outputs,).

    Every kind of layer takes the one before it, or the earlier one that `of` names.
    """

    name: LayerName
    inputs: Width
    outputs: Width
    of: LayerName | None = None


class PolynomialLayer(Record, frozen=True, omit_defaults=True, tag="polynomial", tag_field="kind"):
    """Tensor `<name>.coefficients` (width, degree + 1), for values in [-1, 1], by `basis`."""

    name: LayerName
    width: Width
    degree: Annotated[int, Meta(ge=1, le=MAX_DEGREE)]
    basis: Basis
    stands_for: Literal[
        "relu", "tanh", "logistic", "gelu", "gelu_tanh", "silu", "rsqrt", "polynomial"
    ]
    of: LayerName | None = None


class AddLayer(Record, frozen=True, omit_defaults=True, tag="add", tag_field="kind"):
    """The sum with the earlier layer `other`, slot by slot. No tensor."""

    name: LayerName
    width: Width
    other: LayerName
    of: LayerName | None = None


class ProductLayer(Record, frozen=True, omit_defaults=True, tag="product", tag_field="kind"):
    """The product with the earlier layer `other`, slot by slot. No tensor."""

    name: LayerName
    width: Width
    other: LayerName
    of: LayerName | None = None


ManifestLayer = LinearLayer | PolynomialLayer | AddLayer | ProductLayer


class LayerPrecision(Record, frozen=True):
    """What a layer was calibrated on and what it loses.

    `low`, `high`: of an activation, the calibrated range that it is applied to; of other layers, the
    range of their normalised values. Errors of activations are in units of the activation's own output;
    `ckks_rms` is in normalised units (values about 1).
    """

    name: LayerName
    kind: Literal["linear", "polynomial", "add", "product"]
    degree: Annotated[int, Meta(ge=1, le=MAX_DEGREE)]
    low: float
    high: float
    approximation_max: float
    approximation_rms: float
    ckks_rms: float


class PrecisionReport(Record, frozen=True):
    """Predicted errors of the outputs on the calibration data.

    All but `ckks_absolute_rms` are relative: to each output's calibrated spread (regression) or in
    units of probability (classification).
    """

    error_budget: float
    samples: Annotated[int, Meta(ge=1)]
    approximation_rms: float
    approximation_max: float
    ckks_rms: float
    ckks_absolute_rms: float
    total_rms: float
    headroom_bits: float
    layers: Annotated[tuple[LayerPrecision, ...], Meta(min_length=1, max_length=MAX_LAYERS)]


class Provenance(Record, frozen=True):
    """Where the numbers came from. No times: the same inputs give the same pack."""

    source: Literal["scikit-learn", "safetensors", "onnx", "pytorch"]
    source_sha256: Sha256 | None
    calibration_sha256: Sha256
    calibration_rows: Annotated[int, Meta(ge=1)]
    compiler: Text
    options: dict[LayerName, Text]


class FileDigest(Record, frozen=True):
    """What a member of the archive must be."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=1)]


class Manifest(Record, frozen=True):
    """Everything about a model except its tensors."""

    format: Literal["tensorguard.moai/1"]
    name: Name
    version: Version
    layers: Annotated[tuple[ManifestLayer, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    parameters: Parameters
    parameters_id: Sha256
    packing: Packing
    rotations: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=MAX_FEATURES * 4)], ...], Meta(max_length=MAX_ROTATIONS)
    ]
    levels: Annotated[tuple[int, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    input: InputScaling
    output: OutputScaling
    precision: PrecisionReport
    provenance: Provenance
    files: dict[Literal["weights.safetensors"], FileDigest]

    def to_json(self) -> bytes:
        """Return the canonical encoding, which is what gets signed."""
        return canonical.encode(msgspec.to_builtins(self))


def decode(data: bytes) -> Manifest:
    """Read canonical JSON as a manifest. Raises `MalformedInput` or `PackInvalid`."""
    value: Any = canonical.decode(data, limit=MAX_MANIFEST_BYTES)
    try:
        return msgspec.convert(value, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PackInvalid(f"the manifest is not one of {FORMAT}: {error}") from error
