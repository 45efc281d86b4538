"""What `GET /v1/models/{name}` answers: all that a client needs to encrypt, and nothing else.

A view comes from a server, so a client checks it (`tensorguard.moai.client`) before it makes keys.
Integers over 2^53 travel as decimal strings.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tensorguard.errors import MalformedInput

MAX_VIEW_BYTES = 1 << 20  # a view with 4,096 features has about 400 kB
MAX_FEATURES = 4096
MAX_OUTPUTS = 4096
MAX_ROTATIONS = 512

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Version = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Prime = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,18}$")]
Positive = Annotated[int, Meta(ge=1, le=1 << 20)]
Numbers = Annotated[tuple[float, ...], Meta(min_length=1, max_length=MAX_FEATURES)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message: immutable, and an unknown field in it is an error."""


class Parameters(Record, frozen=True):
    """The CKKS parameters. `primes` is in chain order: the last is dropped first."""

    scheme: Literal["CKKS"]
    poly_modulus_degree: Annotated[int, Meta(ge=8192, le=32768)]
    primes: Annotated[tuple[Prime, ...], Meta(min_length=2, max_length=40)]
    special_prime: Prime
    scale_bits: Annotated[int, Meta(ge=20, le=50)]


class Packing(Record, frozen=True, omit_defaults=True):
    """How a client lays out its input in the slots.

    "blocks": one ciphertext of one input vector. "columns": one ciphertext for each feature, in which
    slot k holds that feature of sample k. With blocks, slot k holds the (zero-padded, standardised) input number
    `((k % block_length) + (k // block_length % blocks) * shift) % period`.
    """

    slots: Positive
    period: Positive
    block_length: Positive
    blocks: Positive
    shift: Positive
    layout: Literal["blocks", "columns"] = "blocks"


class InputScaling(Record, frozen=True):
    """z = (x - mean) / std; `low` and `high` bound the x that the pack was calibrated for."""

    mean: Numbers
    std: Numbers
    low: Numbers
    high: Numbers


class OutputScaling(Record, frozen=True):
    """y = slots * scale + offset, then `activation`, all on the client."""

    meaning: Literal["regression", "classification"]
    activation: Literal["identity", "softmax", "logistic"]
    scale: Numbers
    offset: Numbers
    labels: Annotated[
        tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=MAX_OUTPUTS)
    ]


class ModelView(Record, frozen=True):
    """One served model, as a client sees it."""

    name: Name
    version: Version
    pack_id: Sha256
    parameters: Parameters
    parameters_id: Sha256
    rotations: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=16384)], ...], Meta(max_length=MAX_ROTATIONS)
    ]
    relinearisation: bool
    features: Annotated[int, Meta(ge=1, le=MAX_FEATURES)]
    packing: Packing
    input: InputScaling
    output: OutputScaling

    def to_json(self) -> bytes:
        """Return the JSON that the gateway sends."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> ModelView:
        """Parse what a gateway sent, strictly and bounded. Raises `MalformedInput`."""
        if len(data) > MAX_VIEW_BYTES:
            raise MalformedInput(f"a model view is at most {MAX_VIEW_BYTES} bytes")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise MalformedInput(f"this is not a model view: {error}") from error
