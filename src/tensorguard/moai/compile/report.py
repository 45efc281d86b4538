"""The precision report: what the outputs lose on given data, by approximation and by encryption."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.moai.compile.fit import Fit
from tensorguard.moai.graph import Graph, Join, Layer, Linear, finish
from tensorguard.moai.manifest import LayerPrecision, PrecisionReport
from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import Plan
from tensorguard.moai.simulate import LayerSimulation, Simulation, simulate
from tensorguard.wire.models import OutputScaling

Floats = npt.NDArray[np.float64]
MIN_HEADROOM_BITS = 6.0  # with 5 bits, accuracy was measured to collapse
SIMULATED_ROWS = 1024  # more rows do not move a mean


def precision(
    graph: Graph,
    plan: Plan,
    parameters: CkksParameters,
    fits: Mapping[str, Fit],
    *,
    data: Floats,
    reference: Floats,
    budget: float,
) -> PrecisionReport:
    """Compare `graph` on `data` with `reference`, the original outputs before their activation."""
    sample = data[:: -(-len(data) // SIMULATED_ROWS)]
    simulation = simulate(graph, plan, parameters, sample)
    outputs = graph.apply(data)
    truth = finish(_activation_only(graph.output), reference)
    spread = np.ones(outputs.shape[1])
    if graph.output.meaning == "regression":
        spread = np.maximum(truth.max(axis=0) - truth.min(axis=0), 1e-12)
    error = (outputs - truth) / spread
    deviation = _output_deviation(graph, simulation, outputs)
    approximation, ckks = _rms(error), _rms(deviation / spread)
    return PrecisionReport(
        error_budget=budget,
        samples=len(data),
        approximation_rms=approximation,
        approximation_max=float(np.abs(error).max()),
        ckks_rms=ckks,
        ckks_absolute_rms=_rms(deviation),
        total_rms=math.hypot(approximation, ckks),
        headroom_bits=_headroom(parameters, simulation),
        layers=tuple(
            _layer(layer, fits.get(layer.name), simulated)
            for layer, simulated in zip(graph.layers, simulation.layers, strict=True)
        ),
    )


def _headroom(parameters: CkksParameters, simulation: Simulation) -> float:
    """Return by how many bits the outputs may grow before they wrap around."""
    bits = math.log2(parameters.primes[0] / 2) - parameters.scale_bits
    bits -= math.log2(max(simulation.largest, 1.0))
    if bits < MIN_HEADROOM_BITS:
        raise MalformedInput(f"the outputs leave only {bits:.1f} bits of headroom")
    return bits


def _activation_only(output: OutputScaling) -> OutputScaling:
    count = len(output.scale)
    return OutputScaling(
        meaning=output.meaning,
        activation=output.activation,
        scale=(1.0,) * count,
        offset=(0.0,) * count,
        labels=output.labels,
    )


def _output_deviation(graph: Graph, simulation: Simulation, outputs: Floats) -> Floats:
    """Return the predicted CKKS error of each output, through the activation's Jacobian."""
    variance = simulation.outputs * np.array(graph.output.scale) ** 2
    if graph.output.activation == "softmax":
        mixed = (outputs**2) @ variance
        own = variance * (1 - 2 * outputs)
        return np.asarray(np.sqrt(np.maximum(outputs**2 * (own + mixed[:, None]), 0)))
    if graph.output.activation == "logistic":
        slope = outputs[:, :1] * outputs[:, 1:]
        return np.asarray(np.repeat(slope * math.sqrt(variance[0]), 2, axis=1))
    return np.asarray(np.sqrt(variance)[None, :])


def _layer(layer: Layer, fitted: Fit | None, simulated: LayerSimulation) -> LayerPrecision:
    kind: Literal["linear", "polynomial", "add", "product"]
    if isinstance(layer, Join):
        kind, degree = layer.kind, 2 if layer.kind == "product" else 1
    elif isinstance(layer, Linear):
        kind, degree = "linear", 1
    else:
        kind, degree = "polynomial", layer.degree
    return LayerPrecision(
        name=layer.name,
        kind=kind,
        degree=degree,
        low=fitted.low if fitted else simulated.low,
        high=fitted.high if fitted else simulated.high,
        approximation_max=fitted.error_max if fitted else 0.0,
        approximation_rms=fitted.error_rms if fitted else 0.0,
        ckks_rms=math.sqrt(simulated.variance),
    )


def _rms(values: Floats) -> float:
    return float(np.sqrt((values**2).mean()))
