"""What clients and the gateway say to each other besides frames and model views."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from tensorguard.wire.models import ModelView, Name, Record, Sha256, Version

KEYS_HEADER: Final = "TG-Evaluation-Keys"  # the digest of the evaluation keys to use
PACK_HEADER: Final = "TG-Pack-Id"  # asked: refuse any other pack; answered: the pack that was used
DEADLINE_HEADER: Final = "TG-Deadline"  # asked: milliseconds from now, 1 to MAX_DEADLINE_MS
MAX_DEADLINE_MS: Final = 600_000
TIMING_HEADER: Final = "Server-Timing"  # milliseconds: queue;dur=…, evaluate;dur=…
SCOPE: Final = "serving:infer"


class ModelSummary(Record, frozen=True):
    """One row of the list of models."""

    name: Name
    version: Version
    pack_id: Sha256
    parameters_id: Sha256
    features: int
    outputs: int


class ModelList(Record, frozen=True):
    """The models that the caller's grant names."""

    models: Annotated[tuple[ModelSummary, ...], Meta(max_length=1024)]


class KeysView(Record, frozen=True):
    """Evaluation keys that the gateway holds for the caller's tenant."""

    sha256: Sha256
    size: int
    parameters_id: Sha256


class InferRequest(Record, frozen=True):
    """The JSON form of a request; bytes are base64."""

    model: Name
    evaluation_keys: Sha256
    ciphertext: bytes
    version: Version | None = None
    pack_id: Sha256 | None = None


class Timings(Record, frozen=True):
    """Where the gateway's time went, in milliseconds."""

    queue_ms: float
    evaluate_ms: float


class InferResponse(Record, frozen=True):
    """The JSON form of an answer; bytes are base64."""

    ciphertext: bytes
    pack_id: Sha256
    timings: Timings


def summary(view: ModelView) -> ModelSummary:
    """Return the row of one model."""
    return ModelSummary(
        name=view.name,
        version=view.version,
        pack_id=view.pack_id,
        parameters_id=view.parameters_id,
        features=view.features,
        outputs=len(view.output.scale),
    )


def server_timing(timings: Timings) -> str:
    """Return the value of the Server-Timing header."""
    return f"queue;dur={timings.queue_ms:.3f}, evaluate;dur={timings.evaluate_ms:.3f}"


def read_server_timing(value: str) -> Timings | None:
    """Return what a Server-Timing header says, or None where it does not say both."""
    found: dict[str, float] = {}
    for part in value[:1024].split(","):
        name, _, duration = part.strip().partition(";dur=")
        try:
            found[name] = float(duration)
        except ValueError:
            continue
    try:
        return msgspec.convert(
            {"queue_ms": found["queue"], "evaluate_ms": found["evaluate"]}, Timings
        )
    except KeyError:
        return None
