"""The layer with its polynomials, in plaintext: what the ciphertexts hold but for their noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tensorguard.moai.research.layer import EncoderLayer
from tensorguard.moai.research.recipe import Fit, Recipe

Floats = npt.NDArray[np.float64]


def attention(layer: EncoderLayer, recipe: Recipe, x: Floats) -> Floats:
    """Return the attention block of x (sequences, tokens, features)."""
    scores = layer.scores(x)
    centred = scores - scores.mean(axis=-1, keepdims=True)
    value = layer.value(x).reshape(*x.shape[:2], layer.heads, layer.head)
    mixed = np.empty_like(value)
    for head, softmax in enumerate(recipe.softmax):
        weights = softmax.exponential(centred[:, head])
        inverse = softmax.inverse(weights.sum(axis=-1, keepdims=True) * softmax.inverse.radius)
        mixed[:, :, head] = weights * inverse @ value[:, :, head]
    return x + layer.output(mixed.reshape(x.shape))


def feed_forward(layer: EncoderLayer, recipe: Recipe, y: Floats) -> Floats:
    """Return the feed-forward block, with the norm in front of it."""
    normalised = _norm(recipe.attention_norm, y, newton=0) * layer.attention_norm.gain
    normalised += layer.attention_norm.bias
    hidden = layer.intermediate(normalised)
    for unit, fit in enumerate(recipe.gelu):
        hidden[..., unit] = fit(hidden[..., unit])
    return np.asarray(normalised + layer.final(hidden))


def norm(layer: EncoderLayer, recipe: Recipe, z: Floats) -> Floats:
    """Return the final norm."""
    normalised = _norm(recipe.final_norm, z, newton=recipe.newton)
    return np.asarray(normalised * layer.final_norm.gain + layer.final_norm.bias)


def _norm(fit: Fit, y: Floats, *, newton: int) -> Floats:
    variance = y.var(axis=-1, keepdims=True)
    inverse = fit(variance)
    for _ in range(newton):
        inverse = inverse * (3 - variance * inverse**2) / 2
    return np.asarray((y - y.mean(axis=-1, keepdims=True)) * inverse)
