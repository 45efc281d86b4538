"""What clients send, taken apart and validated alike for every backend, without SEAL."""

from __future__ import annotations

from dataclasses import dataclass

from tensorguard.errors import MalformedInput
from tensorguard.moai import strict
from tensorguard.moai.spec import ModelSpec
from tensorguard.wire.frames import HEADER_SIZE, Kind, parse_frame

_SLACK = 4096  # headers of a frame and of SEAL, and zstd's own overhead on random data
_WORD = 8


@dataclass(frozen=True, slots=True)
class KeyBlobs:
    """Validated SEAL objects, uncompressed; `None` where the model needs none."""

    key_id: bytes
    galois: bytes | None
    relinearisation: bytes | None


def read_keys(spec: ModelSpec, frame: bytes) -> KeyBlobs:
    """Validate a frame of evaluation keys. Raises a 4xx `TensorGuardError`."""
    parameters, plan = spec.parameters, spec.plan
    # (1) the frame is of a bounded size, of our kind and parameters, and holds no secret
    entry = (parameters.levels + 1) * parameters.degree * _WORD + _SLACK
    lists = len(plan.rotations) + 1
    limit = lists * parameters.levels * entry + parameters.degree * _WORD + _SLACK
    strict.refuse_secret_key(frame)
    parsed = parse_frame(frame, kind=Kind.evaluation_keys, parameters_id=parameters.id, limit=limit)
    for item in parsed.items:
        strict.refuse_secret_key(item)
    if len(parsed.items) != spec.key_items:
        raise MalformedInput(f"{spec.key_items} key objects were expected")
    # (2) its objects are exactly the keys of the model
    items = list(parsed.items)
    galois = relinearisation = None
    if plan.rotations:
        galois = strict.parse_galois_keys(items.pop(0), parameters, elements=spec.galois_elements)
    if plan.relinearisation:
        relinearisation = strict.parse_relinearisation_keys(items.pop(0), parameters)
    return KeyBlobs(parsed.key_id, galois, relinearisation)


def read_inputs(spec: ModelSpec, frame: bytes, *, key_id: bytes) -> tuple[bytes, ...]:
    """Validate a frame of fresh ciphertexts: one, or one for each column of a batch.

    Raises a 4xx `TensorGuardError`.

    `key_id` is that of the evaluation keys: a ciphertext of another secret is a `WrongKey`.
    """
    parameters = spec.parameters
    count = spec.columns or 1
    entry = 2 * parameters.levels * parameters.degree * _WORD + _SLACK
    strict.refuse_secret_key(frame)
    parsed = parse_frame(
        frame,
        kind=Kind.ciphertext,
        parameters_id=parameters.id,
        limit=HEADER_SIZE + count * entry,
        columns=spec.columns,
    )
    for item in parsed.items:
        strict.refuse_secret_key(item)
    parsed = parsed.of_key(key_id)
    if len(parsed.items) != count:
        raise MalformedInput("a ciphertext frame has one item")
    return tuple(
        strict.parse_ciphertext(item, parameters, level=parameters.levels, scale=parameters.scale)
        for item in parsed.items
    )
