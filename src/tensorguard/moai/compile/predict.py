"""Predicts what a finished pack loses on other data than it was calibrated on."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.moai.compile.report import precision
from tensorguard.moai.manifest import PrecisionReport
from tensorguard.moai.pack import VerifiedPack

Floats = npt.NDArray[np.float64]


def predict_pack(pack: VerifiedPack, data: Floats) -> PrecisionReport:
    """Return the report for rows of raw inputs `data` (n, features).

    The pack no longer has the original activations: its approximation errors are those of its own
    report, the CKKS errors and the headroom are predicted anew.
    """
    graph, stored = pack.spec.graph, pack.manifest.precision
    if data.ndim != 2 or data.shape[1] != graph.features or not np.isfinite(data).all():  # noqa: PLR2004 -- rows by features
        raise MalformedInput(f"the data are finite rows of {graph.features} numbers")
    fresh = precision(
        graph,
        pack.spec.plan,
        pack.spec.parameters,
        {},
        data=data,
        reference=graph.raw(data),
        budget=stored.error_budget,
    )
    layers = tuple(
        msgspec.structs.replace(old, ckks_rms=new.ckks_rms)
        for old, new in zip(stored.layers, fresh.layers, strict=True)
    )
    return msgspec.structs.replace(
        fresh,
        approximation_rms=stored.approximation_rms,
        approximation_max=stored.approximation_max,
        total_rms=float(np.hypot(stored.approximation_rms, fresh.ckks_rms)),
        layers=layers,
    )
