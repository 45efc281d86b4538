"""One transformer encoder layer (post-LayerNorm, as BERT's) in plaintext: what the ciphertexts are held against.

`examples/minilm/check_torch.py` checks this against PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """y = weight · x + bias, with weight (outputs, inputs)."""

    weight: Floats
    bias: Floats

    def __call__(self, x: Floats) -> Floats:
        """Return the layer's output for rows of `x`."""
        return np.asarray(x @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """y = gain · (x - mean) / sqrt(variance + epsilon) + bias, over the features."""

    gain: Floats
    bias: Floats
    epsilon: float

    def __call__(self, x: Floats) -> Floats:
        """Return the normalised rows of `x`."""
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return np.asarray(centred / spread * self.gain + self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class EncoderLayer:
    """The weights of one layer. Raises `MalformedInput` if they do not fit together."""

    heads: int
    query: Dense
    key: Dense
    value: Dense
    output: Dense
    attention_norm: Norm
    intermediate: Dense
    final: Dense
    final_norm: Norm

    def __post_init__(self) -> None:
        hidden, inner = self.hidden, self.intermediate.weight.shape[0]
        square = (self.query, self.key, self.value, self.output)
        shapes = [dense.weight.shape for dense in (*square, self.intermediate, self.final)]
        if shapes != [(hidden, hidden)] * 4 + [(inner, hidden), (hidden, inner)]:
            raise MalformedInput("the matrices are not those of one layer")
        if self.heads < 1 or hidden % self.heads:
            raise MalformedInput("the heads do not share out the features")

    @property
    def hidden(self) -> int:
        """Return the number of features of a token."""
        return len(self.attention_norm.gain)

    @property
    def head(self) -> int:
        """Return the number of features of one head."""
        return self.hidden // self.heads

    def scores(self, x: Floats) -> Floats:
        """Return q·k / sqrt(head) as (sequences, heads, tokens, tokens)."""
        q, k = self._split(self.query(x)), self._split(self.key(x))
        return np.asarray(q @ k.swapaxes(-1, -2) / math.sqrt(self.head))

    def attention(self, x: Floats) -> Floats:
        """Return x + self-attention(x), for x (sequences, tokens, features)."""
        scores = self.scores(x)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ self._split(self.value(x))).swapaxes(1, 2).reshape(x.shape)
        return x + self.output(mixed)

    def feed_forward(self, y: Floats) -> Floats:
        """Return n + dense(gelu(dense(n))) with n the LayerNorm of y."""
        normalised = self.attention_norm(y)
        return normalised + self.final(gelu(self.intermediate(normalised)))

    def __call__(self, x: Floats) -> Floats:
        """Return the layer's output."""
        return self.final_norm(self.feed_forward(self.attention(x)))

    def _split(self, x: Floats) -> Floats:
        return x.reshape(*x.shape[:2], self.heads, self.head).swapaxes(1, 2)


def gelu(x: Floats) -> Floats:
    """Return x · Φ(x), exactly (not the tanh form)."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(x * (1 + erf(x / math.sqrt(2))) / 2)


def from_tensors(tensors: Mapping[str, npt.NDArray[np.float32]], *, heads: int) -> EncoderLayer:
    """Take a layer from BERT's tensors, named as in `encoder.layer.N.` without that prefix."""

    def array(name: str) -> Floats:
        try:
            return np.asarray(tensors[name], dtype=np.float64)
        except KeyError as error:
            raise MalformedInput(f"there is no tensor {name}") from error

    def dense(name: str) -> Dense:
        return Dense(array(f"{name}.weight"), array(f"{name}.bias"))

    def norm(name: str) -> Norm:
        return Norm(array(f"{name}.weight"), array(f"{name}.bias"), 1e-12)

    return EncoderLayer(
        heads=heads,
        query=dense("attention.self.query"),
        key=dense("attention.self.key"),
        value=dense("attention.self.value"),
        output=dense("attention.output.dense"),
        attention_norm=norm("attention.output.LayerNorm"),
        intermediate=dense("intermediate.dense"),
        final=dense("output.dense"),
        final_norm=norm("output.LayerNorm"),
    )
