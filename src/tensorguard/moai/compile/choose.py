"""The packing that costs least for so many samples at once, by the measured cost model.

In blocks one ciphertext is one sample: the answer comes soonest. In columns a ciphertext holds one
feature of as many samples as there are slots: a whole batch costs what a single sample would.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import msgspec

from tensorguard.errors import MalformedInput
from tensorguard.moai import cost
from tensorguard.moai.compile.build import DEFAULT_ERROR_BUDGET, Compiled, Floats, compile_network
from tensorguard.moai.compile.network import Network
from tensorguard.moai.plan import Layout, TooDeep, TooWide

MAX_BATCH = 1 << 20  # samples; a ciphertext has at most 16,384


def compile_for_batches(
    network: Network,
    calibration: Floats,
    *,
    batch: int,
    error_budget: float = DEFAULT_ERROR_BUDGET,
    degree: int | None = None,
    refit_last: bool = False,
) -> Compiled:
    """Compile for requests of `batch` samples, in the packing that is cheaper for each of them.

    The estimates of both, in milliseconds a sample, go into the provenance. Raises what
    `compile_network` raises when neither packing fits.
    """
    if not 1 <= batch <= MAX_BATCH:
        raise MalformedInput(f"a batch has 1 to {MAX_BATCH} samples")
    found: dict[Layout, tuple[float, Compiled]] = {}
    refusal: TooDeep | TooWide | None = None
    for layout in get_args(Layout):
        try:
            compiled = compile_network(
                network,
                calibration,
                error_budget=error_budget,
                degree=degree,
                refit_last=refit_last,
                layout=layout,
            )
        except (TooDeep, TooWide) as error:
            refusal = refusal or error
            continue
        found[layout] = (_per_sample(compiled, batch), compiled)
    if not found:
        assert refusal is not None  # noqa: S101 - there are two layouts
        raise refusal
    _, cheapest = min(found.values(), key=lambda pair: pair[0])
    options = {f"milliseconds-in-{layout}": f"{ms:.3g}" for layout, (ms, _) in found.items()}
    provenance = msgspec.structs.replace(
        cheapest.provenance,
        options={**cheapest.provenance.options, "batch-size": str(batch), **options},
    )
    return replace(cheapest, provenance=provenance)


def _per_sample(compiled: Compiled, batch: int) -> float:
    shapes = compiled.graph.shapes
    return cost.per_sample(compiled.plan, shapes, compiled.parameters, batch=batch)
