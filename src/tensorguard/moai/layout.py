"""Where numbers sit in the slots: the client's input layout and the diagonals that match it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensorguard.moai.plan import LinearPlan

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def input_index(*, slots: int, period: int, block_length: int, blocks: int, shift: int) -> Indices:
    """Return for every slot the number of the (padded) input that it holds: int array (slots,)."""
    slot = np.arange(slots)
    return ((slot % block_length) + (slot // block_length % blocks) * shift) % period


def diagonals(plan: LinearPlan, weight: Floats, *, slots: int) -> Floats:
    """Return the weights by giant step, baby step and slot: (giant, baby, slots).

    Multiplying the input rotated by each baby step, summing, rotating each sum by its giant step and
    folding gives `weight @ x` with period `period_out` (Halevi-Shoup 2014, 2018).
    """
    outputs, inputs = weight.shape
    padded = np.zeros((plan.period_out, plan.period_in))
    padded[:outputs, :inputs] = weight
    slot = np.arange(slots)
    source = input_index(
        slots=slots,
        period=plan.period_in,
        block_length=plan.block_length,
        blocks=plan.blocks,
        shift=plan.shift,
    )
    result = np.empty((plan.giant, plan.baby, slots))
    for giant in range(plan.giant):
        turn = giant * plan.baby
        for baby in range(plan.baby):
            column = source[(slot + turn + baby) % slots]
            result[giant, baby] = np.roll(padded[slot % plan.period_out, column], turn)
    return result


def tiled(values: Floats, *, period: int, slots: int) -> Floats:
    """Return `values`, padded with zeros to `period` and repeated through all slots."""
    padded = np.zeros(period)
    padded[: len(values)] = values
    return np.tile(padded, slots // period)
