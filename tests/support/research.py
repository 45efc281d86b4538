"""A small transformer layer with random weights: the same code as MiniLM's, in a second or two."""

import numpy as np

from tensorguard.moai.research.layer import Dense, EncoderLayer, Norm

TOKENS, HIDDEN, HEADS, INTERMEDIATE = 4, 16, 2, 24


def reduced_layer():
    rng = np.random.default_rng(2025)

    def dense(outputs, inputs, spread=1.0):
        weight = rng.normal(size=(outputs, inputs)) * spread / np.sqrt(inputs)
        return Dense(weight, rng.normal(size=outputs) * 0.1)

    def norm():
        gain = rng.uniform(0.5, 1.5, HIDDEN)
        gain[3] = 1e-33  # MiniLM has such features: dead, but not quite zero
        return Norm(gain, rng.normal(size=HIDDEN) * 0.1, 1e-12)

    return EncoderLayer(
        heads=HEADS,
        query=dense(HIDDEN, HIDDEN),
        key=dense(HIDDEN, HIDDEN),
        value=dense(HIDDEN, HIDDEN),
        output=dense(HIDDEN, HIDDEN, 0.5),
        attention_norm=norm(),
        intermediate=dense(INTERMEDIATE, HIDDEN),
        final=dense(HIDDEN, INTERMEDIATE, 0.5),
        final_norm=norm(),
    )


def inputs(sequences, *, seed):
    """Return tokens whose features are as large as a LayerNorm's output."""
    x = np.random.default_rng(seed).normal(size=(sequences, TOKENS, HIDDEN))
    return (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)
