"""What calibration decides: the range of every polynomial, and its coefficients.

A polynomial knows nothing outside of its range, so ranges get room beyond what was seen, and where a
bound can be proven it is used: scores are centred at their mean over a query's keys, which softmax
does not see, and so a sum of `tokens` exponentials is never below `tokens` (Jensen).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from tensorguard.errors import MalformedInput
from tensorguard.moai.research.layer import EncoderLayer, gelu

Floats = npt.NDArray[np.float64]
EXP_DEGREE, INVERSE_DEGREE, NORM_DEGREE, GELU_DEGREE = 15, 31, 15, 15
NEWTON_STEPS = 2  # of the last norm, whose variances spread widest
SCORE_ROOM = 0.1  # of the half-width, on either side
SUM_ROOM = 2.5  # times the largest sum of exponentials that was seen
VARIANCE_ROOM = 2.0  # times the largest, and below the smallest
UNIT_ROOM = 0.15  # of the half-width of a unit before GELU
GRID = 257  # points over the whole range, in Chebyshev's density
GRID_WEIGHT = 0.05  # of the data's weight
MAX_FIT_ROWS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """f(centre + radius · t) is about Σ coefficients[k] · T_k(t), for t in [-1, 1]."""

    centre: float
    radius: float
    coefficients: Floats

    def __call__(self, x: Floats) -> Floats:
        """Evaluate in plaintext."""
        return np.asarray(chebyshev.chebval((x - self.centre) / self.radius, self.coefficients))


@dataclass(frozen=True, slots=True, eq=False)
class Softmax:
    """One head: exponentials of centred scores (divided by the inverse's radius), and the inverse.

    `balance` is how much the keys are scaled up and the queries down, so that both use their bits.
    """

    exponential: Fit
    inverse: Fit
    balance: float


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """The polynomials of one layer."""

    softmax: tuple[Softmax, ...]
    attention_norm: Fit
    gelu: tuple[Fit, ...]
    final_norm: Fit
    newton: int


def calibrate(layer: EncoderLayer, x: Floats, *, newton: int = NEWTON_STEPS) -> Recipe:
    """Fit the layer's polynomials to the activations of `x` (sequences, tokens, features)."""
    if x.ndim != 3 or not len(x):  # noqa: PLR2004 -- sequences, tokens, features
        raise MalformedInput("calibration needs sequences")
    scores = layer.scores(x)
    centred = scores - scores.mean(axis=-1, keepdims=True)
    q, k = (
        np.abs(dense(x)).reshape(-1, layer.heads, layer.head) for dense in (layer.query, layer.key)
    )
    softmax = tuple(
        _softmax(centred[:, head], balance=float(np.sqrt(q[:, head].max() / k[:, head].max())))
        for head in range(layer.heads)
    )
    y = layer.attention(x)
    before = layer.intermediate(layer.attention_norm(y)).reshape(-1, len(layer.intermediate.bias))
    units = tuple(_unit(column) for column in before.T)
    return Recipe(
        softmax,
        _inverse_root(y, layer.attention_norm.epsilon),
        units,
        _inverse_root(layer.feed_forward(y), layer.final_norm.epsilon),
        newton,
    )


def fit(
    function: Callable[[Floats], Floats],
    low: float,
    high: float,
    degree: int,
    data: Floats,
    *,
    relative: bool = False,
) -> Fit:
    """Fit by least squares on `data` and a grid over the range; `relative`: the relative error."""
    centre, radius = (low + high) / 2, (high - low) / 2
    rows = data.ravel()[:: -(-data.size // MAX_FIT_ROWS)]
    grid = np.cos(np.linspace(0, np.pi, GRID))
    t = np.concatenate([(rows - centre) / radius, grid])
    target = function(centre + radius * t)
    weights = np.ones(len(t))
    weights[len(rows) :] = np.sqrt(GRID_WEIGHT * len(rows) / GRID)
    if relative:
        weights /= np.abs(target)
    design = chebyshev.chebvander(t, degree) * weights[:, None]
    coefficients = np.linalg.lstsq(design, target * weights, rcond=None)[0]
    return Fit(centre, radius, np.asarray(coefficients))


def _softmax(centred: Floats, *, balance: float) -> Softmax:
    tokens = centred.shape[-1]
    low, high = float(centred.min()), float(centred.max())
    room = (high - low) / 2 * SCORE_ROOM
    sums = np.exp(centred).sum(axis=-1)
    most = float(sums.max()) * SUM_ROOM
    radius = (most - tokens) / 2
    inverse = fit(lambda s: radius / s, float(tokens), most, INVERSE_DEGREE, sums, relative=True)
    exponential = fit(lambda s: np.exp(s) / radius, low - room, high + room, EXP_DEGREE, centred)
    return Softmax(exponential, inverse, balance)


def _inverse_root(y: Floats, epsilon: float) -> Fit:
    variance = y.var(axis=-1)
    low, high = float(variance.min()) / VARIANCE_ROOM, float(variance.max()) * VARIANCE_ROOM
    return fit(
        lambda v: 1 / np.sqrt(np.asarray(v) + epsilon),
        low,
        high,
        NORM_DEGREE,
        variance,
        relative=True,
    )


def _unit(h: Floats) -> Fit:
    low, high = float(h.min()), float(h.max())
    room = (high - low) / 2 * UNIT_ROOM + 1e-3  # a unit may stand still
    return fit(gelu, low - room, high + room, GELU_DEGREE, h)
