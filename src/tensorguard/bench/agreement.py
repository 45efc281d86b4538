"""Whether encrypted answers are the plaintext's, and whether packs predict their own error.

The prediction is a root mean square, so it is compared with one: over all copies of the outputs that
the slots hold, under several secret keys. A rounding error is multiplied by the secret, whose size at
one slot is a matter of chance (exponentially distributed squares); few outputs under one key say little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.bench.heads import Head, spread
from tensorguard.bench.ours import Signed, copies
from tensorguard.bench.report import Ratio, Result
from tensorguard.moai.backends.base import Model
from tensorguard.moai.client import ClientKeys
from tensorguard.moai.plan import LinearPlan

Floats = npt.NDArray[np.float64]
ARGMAX_BAR = 0.995  # of the images, whose class must be the plaintext network's
PREDICTION_BAR = 0.5  # of the other one: predicted and measured error are within 2x, both ways
ARGMAX, ERROR = "argmax", "error-rms"
PLAINTEXT, PREDICTED = "plaintext", "predicted"


@dataclass(frozen=True, slots=True)
class Effort:
    """How many images are classified; how many keys are made, with how many inputs each."""

    images: int
    keys: int
    inputs: int


FULL = Effort(images=450, keys=6, inputs=6)
QUICK = Effort(images=24, keys=2, inputs=4)


def prediction(
    case: str, head: Head, signed: Signed, models: Mapping[str, Model], effort: Effort
) -> list[Result]:
    """Return the root mean square error of each model, and that which the pack's manifest names."""
    spec, report = signed.pack.spec, signed.pack.manifest.precision
    errors: dict[str, list[float]] = {name: [] for name in models}
    rows = spread(head.inputs, effort.keys * effort.inputs)
    for turn in range(effort.keys):
        client = ClientKeys.generate(spec.view())
        frame = client.evaluation_keys()
        keys = {name: model.load_keys(frame) for name, model in models.items()}
        if head.batch:
            batch = head.inputs[: spec.parameters.slots]
            encrypted = client.encrypt_batch(batch)
            truth = spec.graph.apply(batch)
            for name, model in models.items():
                result = model.evaluate(keys[name], encrypted)
                found = client.decrypt_batch(result, samples=len(batch))
                errors[name].append(float(((found - truth) ** 2).mean()))
            continue
        for x in rows[turn :: effort.keys]:
            encrypted = client.encrypt(x)
            for name, model in models.items():
                result = model.evaluate(keys[name], encrypted)
                errors[name].append(_of_copies(signed, client, x, result))
    results = [
        Result.root_mean_square(case, name, ERROR, "rms", squares)
        for name, squares in errors.items()
    ]
    predicted = report.ckks_absolute_rms
    return [*results, Result.single(case, PREDICTED, ERROR, "rms", predicted, n=report.samples)]


def classes(
    case: str, head: Head, signed: Signed, models: Mapping[str, Model], effort: Effort
) -> list[Result]:
    """Return on how many per cent of the images each model finds the class of the plaintext network."""
    images = head.calibration if head.batch else spread(head.calibration, effort.images)
    if head.batch:
        images = images[: signed.pack.spec.parameters.slots]
    truth = head.network.raw(images).argmax(axis=1)
    results = [Result.single(case, PLAINTEXT, ARGMAX, "%", 100.0, n=len(images))]
    found: dict[str, list[int]] = {name: [] for name in models}
    keys = {name: model.load_keys(signed.keys) for name, model in models.items()}
    client = signed.client
    for frame in (
        [client.encrypt_batch(images)] if head.batch else (client.encrypt(x) for x in images)
    ):
        for name, model in models.items():
            result = model.evaluate(keys[name], frame)
            if head.batch:
                outputs = client.decrypt_batch(result, samples=len(images))
            else:
                outputs = client.decrypt(result)[None]
            found[name] += outputs.argmax(axis=1).tolist()
    for name, values in found.items():
        share = float((np.array(values) == truth).mean())
        results.append(Result.single(case, name, ARGMAX, "%", 100 * share, n=len(images)))
    return results


def bars(results: Sequence[Result]) -> tuple[Ratio, ...]:
    """Hold every agreement that `results` name to its bar."""
    found = list(_pairs(results, PLAINTEXT, ARGMAX))
    ratios = [
        Ratio.at_least(other, base, other.median / base.median, ARGMAX_BAR) for base, other in found
    ]
    for base, other in _pairs(results, PREDICTED, ERROR):
        ratios += [
            Ratio.at_least(other, base, base.median / other.median, PREDICTION_BAR),
            Ratio.at_least(base, other, other.median / base.median, PREDICTION_BAR),
        ]
    return tuple(ratios)


def _of_copies(signed: Signed, client: ClientKeys, x: Floats, result: bytes) -> float:
    graph, last = signed.pack.spec.graph, signed.pack.spec.plan.layers[-1]
    if not isinstance(last, LinearPlan):
        raise TypeError("a plan ends with a linear layer")
    error = copies(client, last, result) - graph.slots(x[None])
    return float(((error * np.array(graph.output.scale)) ** 2).mean())


def _pairs(results: Sequence[Result], against: str, metric: str) -> Iterable[tuple[Result, Result]]:
    for base in results:
        if (base.variant, base.metric) == (against, metric):
            for other in results:
                if (other.case, other.metric) == (base.case, metric) and other is not base:
                    yield base, other
