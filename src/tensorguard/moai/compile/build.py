"""The compiler: a network and calibration data become a graph that keeps an error budget, or nothing.

The budget bounds the root mean square error of the outputs on the calibration data, polynomial
approximation and predicted CKKS error together: relative to each output's calibrated spread
(regression), or of the class probabilities (classification).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tensorguard import __version__
from tensorguard.crypto.hybrid import HybridSigner
from tensorguard.errors import InputError, MalformedInput
from tensorguard.moai import pack, tensors
from tensorguard.moai.compile.fit import MARGIN, Fit, refit
from tensorguard.moai.compile.network import Network, merged, separated
from tensorguard.moai.compile.normalise import normalise
from tensorguard.moai.compile.report import precision
from tensorguard.moai.graph import Graph, Join, Layer, Linear, Polynomial
from tensorguard.moai.manifest import (
    FORMAT,
    AddLayer,
    FileDigest,
    LinearLayer,
    Manifest,
    ManifestLayer,
    PolynomialLayer,
    PrecisionReport,
    ProductLayer,
    Provenance,
)
from tensorguard.moai.parameters import MAX_LOG_QP, CkksParameters
from tensorguard.moai.plan import Layout, Plan, TooDeep, check_keys, choose_parameters, plan_network
from tensorguard.moai.spec import packing_of
from tensorguard.wire.models import InputScaling, OutputScaling

Floats = npt.NDArray[np.float64]
DEGREES = (2, 3, 5, 7, 15, 27)  # those that may be asked for
AUTOMATIC = (3, 5, 7)  # 2 takes as many levels as 3 and is never better
DEFAULT_ERROR_BUDGET = 0.05
MIN_CALIBRATION_ROWS = 16  # fewer say nothing about a range
_ROOT_SHARE = 0.1  # of the budget, for the relative error of one inverse square root
_CKKS_SHARE = 0.25  # of the budget, that the encryption may use before a larger ring is taken


class OverErrorBudget(InputError):
    code = "over_error_budget"
    status = 422
    remedy = (
        "Raise --error-budget or --degree, pass --refit-last, calibrate on data like that of "
        "use, or train with a polynomial activation, which is exact."
    )


@dataclass(frozen=True)
class Compiled:
    """A graph within its error budget, and everything that a pack says about it."""

    graph: Graph
    plan: Plan
    parameters: CkksParameters
    precision: PrecisionReport
    provenance: Provenance
    fits: Mapping[str, Fit]  # of each approximated activation, by layer


def compile_network(
    network: Network,
    calibration: Floats,
    *,
    error_budget: float = DEFAULT_ERROR_BUDGET,
    degree: int | None = None,
    refit_last: bool = False,
    layout: Layout = "blocks",
) -> Compiled:
    """Return the cheapest graph within `error_budget`; `degree` fixes that of all activations.

    `layout`: "blocks" for one sample at once (latency), "columns" for batches (throughput).

    `calibration` (n, features) is in raw input units. Raises `OverErrorBudget`, `TooDeep`, …
    """
    if calibration.ndim != 2 or calibration.shape[1] != len(network.mean):  # noqa: PLR2004 -- rows by features
        raise MalformedInput(f"calibration data are rows of {len(network.mean)} numbers")
    if len(calibration) < MIN_CALIBRATION_ROWS or not np.isfinite(calibration).all():
        raise MalformedInput(f"calibration data are at least {MIN_CALIBRATION_ROWS} finite rows")
    if not (math.isfinite(error_budget) and error_budget > 0):
        raise MalformedInput("an error budget is a positive number")
    if degree is not None and degree not in DEGREES:
        raise MalformedInput(f"the degree is one of {DEGREES}")
    network = replace(network, steps=separated(merged(network.steps)))
    options = {"margin": str(MARGIN), "refit-last": str(refit_last).lower(), **network.options}
    best: Compiled | None = None
    for candidate in _degrees(network, degree):
        try:
            compiled = _compile(
                network, calibration, candidate, error_budget, options, refit_last, layout
            )
        except TooDeep:
            if best is None:
                raise
            break
        if compiled.precision.total_rms <= error_budget:
            return compiled
        if best is None or compiled.precision.total_rms < best.precision.total_rms:
            best = compiled
    raise _refused(best)


def build_pack(compiled: Compiled, *, name: str, version: str, signer: HybridSigner) -> bytes:
    """Return the signed pack (`*.moai`). The same inputs give the same pack id."""
    values: dict[str, Floats] = {}
    for layer in compiled.graph.layers:
        if isinstance(layer, Linear):
            values[f"{layer.name}.weight"], values[f"{layer.name}.bias"] = layer.weight, layer.bias
        elif isinstance(layer, Polynomial):
            values[f"{layer.name}.coefficients"] = layer.coefficients
    weights = tensors.save(values)
    digest = FileDigest(sha256=hashlib.sha256(weights).hexdigest(), size=len(weights))
    content = Manifest(
        format=FORMAT,
        name=name,
        version=version,
        layers=tuple(_manifest_layer(layer) for layer in compiled.graph.layers),
        parameters=compiled.parameters.to_wire(),
        parameters_id=compiled.parameters.id.hex(),
        packing=packing_of(compiled.plan),
        rotations=compiled.plan.rotations,
        levels=tuple(layer.level for layer in compiled.plan.layers),
        input=compiled.graph.input,
        output=compiled.graph.output,
        precision=compiled.precision,
        provenance=compiled.provenance,
        files={pack.WEIGHTS: digest},
    )
    return pack.write(content, weights, signer=signer)


def _manifest_layer(layer: Layer) -> ManifestLayer:
    name, of = layer.name, layer.of
    if isinstance(layer, Linear):
        return LinearLayer(name=name, inputs=layer.inputs, outputs=layer.width, of=of)
    if isinstance(layer, Join):
        kind = AddLayer if layer.kind == "add" else ProductLayer
        return kind(name=name, width=layer.width, other=layer.other, of=of)
    return PolynomialLayer(
        name=name,
        width=layer.width,
        degree=layer.degree,
        basis=layer.basis,
        stands_for=layer.stands_for,
        of=of,
    )


def _degrees(network: Network, degree: int | None) -> Sequence[int]:
    activations = [layer.activation for layer in network.layers]
    if all(x is None or x.coefficients or x.function == "rsqrt" for x in activations):
        return (1,)  # nothing is approximated but roots, which have their own degree
    return AUTOMATIC if degree is None else (degree,)


def _compile(
    network: Network,
    calibration: Floats,
    degree: int,
    budget: float,
    options: dict[str, str],
    refit_last: bool,  # noqa: FBT001 -- private
    layout: Layout,
) -> Compiled:
    graph, fits = _graph(network, calibration, degree, budget, refit_last=refit_last)
    reference = network.raw(calibration) * network.output_scale + network.output_offset
    result: tuple[CkksParameters, Plan, PrecisionReport] | None = None
    for ring in MAX_LOG_QP:
        try:
            parameters = choose_parameters(graph.shapes, minimum_degree=ring, layout=layout)
            plan = plan_network(graph.shapes, slots=parameters.slots, layout=layout)
            check_keys(plan, parameters)
        except TooDeep:
            if result is None:
                raise
            break
        if result is not None and parameters.degree <= result[0].degree:
            continue
        report = precision(
            graph, plan, parameters, fits, data=calibration, reference=reference, budget=budget
        )
        result = (parameters, plan, report)
        if report.ckks_rms <= _CKKS_SHARE * budget:
            break
    if result is None:
        raise MalformedInput("no ring was tried")
    provenance = Provenance(
        source=network.source,
        source_sha256=network.source_sha256,
        calibration_sha256=hashlib.sha256(calibration.tobytes()).hexdigest(),
        calibration_rows=len(calibration),
        compiler=f"tensorguard {__version__}",
        options=options,
    )
    return Compiled(graph, result[1], result[0], result[2], provenance, fits)


def _graph(
    network: Network, calibration: Floats, degree: int, budget: float, *, refit_last: bool
) -> tuple[Graph, Mapping[str, Fit]]:
    values = (calibration - network.mean) / network.std
    made = normalise(network.steps, values, degree=degree, root_error=_ROOT_SHARE * budget)
    last = network.last
    weight, bias = last.weight * made.gain, last.bias
    if refit_last:
        weight, bias = refit(made.values, network.raw(calibration))
    outputs = made.values @ weight.T + bias
    low, high = outputs.min(axis=0), outputs.max(axis=0)
    centre, radius = (low + high) / 2, np.maximum((high - low) / 2, 1e-9)
    radius[radius < 1e-6 * radius.max()] = radius.max()
    name = f"linear{len(network.steps) - 1}"
    before = made.layers[-1].name if made.layers else None
    source = None if made.source == before else made.source
    final = Linear(name, weight / radius[:, None], (bias - centre) / radius, source)
    output = OutputScaling(
        meaning="regression" if network.output_activation == "identity" else "classification",
        activation=network.output_activation,
        scale=tuple((radius * network.output_scale).tolist()),
        offset=tuple((centre * network.output_scale + network.output_offset).tolist()),
        labels=network.labels,
    )
    layers = (*made.layers, final)
    return Graph(layers, _input_scaling(network, calibration), output), made.fits


def _input_scaling(network: Network, calibration: Floats) -> InputScaling:
    low, high = calibration.min(axis=0), calibration.max(axis=0)
    margin = MARGIN * (high - low) / 2 + 1e-9 * (1 + np.abs(low) + np.abs(high))
    return InputScaling(
        mean=tuple(network.mean.tolist()),
        std=tuple(network.std.tolist()),
        low=tuple((low - margin).tolist()),
        high=tuple((high + margin).tolist()),
    )


def _refused(best: Compiled | None) -> OverErrorBudget:
    if best is None:
        raise MalformedInput("no degree was tried")
    report = best.precision
    worst = max(report.layers, key=lambda layer: layer.approximation_rms)
    return OverErrorBudget(
        f"the best error is {report.total_rms:.3g}, over the budget of {report.error_budget:g}; "
        f"layer {worst.name} loses most (rms {worst.approximation_rms:.3g} at degree "
        f"{worst.degree} on [{worst.low:.3g}, {worst.high:.3g}]); the encryption adds "
        f"{report.ckks_rms:.2g}"
    )
