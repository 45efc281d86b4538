"""How many operations a layer takes, from the packing alone: held against the counters by a test.

n tokens, d features, H heads, f intermediate units; baby · giant = n. A Chebyshev polynomial of degree
2^k - 1 takes k - 1 squarings and 2^(k-1) - 1 other products, 2^(k-2) + k - 1 relinearisations (each
with a rescale), and 2^(k-1) products by scalars (each with a rescale).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tensorguard.moai.research.layer import EncoderLayer
from tensorguard.moai.research.packing import Packing
from tensorguard.moai.research.recipe import (
    EXP_DEGREE,
    GELU_DEGREE,
    INVERSE_DEGREE,
    NORM_DEGREE,
    Recipe,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that decide the counts."""

    tokens: int
    baby: int
    hidden: int
    heads: int
    intermediate: int
    newton: int

    @classmethod
    def of(cls, layer: EncoderLayer, packing: Packing, recipe: Recipe) -> Shape:
        """Take the sizes from what is evaluated."""
        return cls(
            tokens=packing.tokens,
            baby=packing.baby,
            hidden=layer.hidden,
            heads=layer.heads,
            intermediate=len(layer.intermediate.bias),
            newton=recipe.newton,
        )


def polynomial(degree: int) -> Counter[str]:
    """Return the operations of one polynomial of degree 2^k - 1."""
    k = (degree + 1).bit_length() - 1
    scalars, relinearisations = 1 << (k - 1), (1 << (k - 2)) + k - 1
    return Counter(
        products=(1 << (k - 1)) - 1 + k - 1,
        relinearisations=relinearisations,
        scalar_products=scalars,
        rescales=scalars + relinearisations,
    )


def attention_stages(shape: Shape) -> dict[str, Counter[str]]:
    """Return the operations of the attention block."""
    n, d, heads = shape.tokens, shape.hidden, shape.heads
    giant = n // shape.baby
    exponentials = _times(polynomial(EXP_DEGREE), heads * n)
    return {
        "projections": Counter(scalar_products=3 * d * d, rescales=3 * d),
        "scores": Counter(
            rotations=d * (n - 1),
            decompositions=d,
            products=d * n,
            relinearisations=heads * n,
            rescales=heads * n,
        ),
        "softmax": exponentials + _times(polynomial(INVERSE_DEGREE), heads),
        "values": Counter(
            rotations=heads * (n - shape.baby) + d * (shape.baby - 1) + d * (giant - 1),
            decompositions=heads * (n - shape.baby) + d + d * (giant - 1),
            products=d * n,
            relinearisations=d * giant,
            rescales=d * giant,
        ),
        "output": Counter(
            scalar_products=d * d,
            products=heads * d,
            relinearisations=d,
            rescales=heads * d + d,
        ),
    }


def feed_forward_stages(shape: Shape) -> dict[str, Counter[str]]:
    """Return the operations of the feed-forward block, its norm aside."""
    d, f = shape.hidden, shape.intermediate
    return {
        "intermediate": Counter(
            scalar_products=f * d, products=f, relinearisations=f, rescales=2 * f
        ),
        "gelu": _times(polynomial(GELU_DEGREE), f),
        "final": Counter(scalar_products=d * f, rescales=d),
    }


def norm_stage(shape: Shape, *, newton: int) -> Counter[str]:
    """Return the operations of one LayerNorm."""
    d = shape.hidden
    sums = Counter(
        # two means, a scaled column and a gain for each feature; a square and a product for each
        scalar_products=4 * d,
        products=2 * d,
        relinearisations=d + 1,
        rescales=3 * d + 3,
    )
    step = Counter(products=3, relinearisations=3, scalar_products=2, rescales=5)
    return sums + polynomial(NORM_DEGREE) + _times(step, newton)


def expected(shape: Shape) -> dict[str, Counter[str]]:
    """Return the operations of a whole layer, by stage, as `Runtime.counts` holds them."""
    norms = norm_stage(shape, newton=0) + norm_stage(shape, newton=shape.newton)
    return {**attention_stages(shape), "norm": norms, **feed_forward_stages(shape)}


def _times(counter: Counter[str], factor: int) -> Counter[str]:
    return Counter({name: count * factor for name, count in counter.items()})
