"""A matrix of (token, feature) becomes one ciphertext for each feature; slots are (token, sequence).

Sequences are interleaved: slot `token · sequences + sequence`. So a rotation by `i · sequences` moves
every sequence's tokens by i, cyclically, and the slots are always full (MOAI's column packing with
interleaved batching). Products of tokens by tokens come out as cyclic diagonals: diagonal i holds, at
token t, the entry (t, t + i).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Packing:
    """How many tokens a sequence has, and in how many slots. Raises `MalformedInput`."""

    tokens: int
    slots: int

    def __post_init__(self) -> None:
        if self.tokens < 2 or self.tokens & (self.tokens - 1) or self.slots % self.tokens:  # noqa: PLR2004 -- one has no diagonals
            raise MalformedInput(
                "the tokens are a power of two, at least 2, that divides the slots"
            )

    @property
    def sequences(self) -> int:
        """Return how many sequences one ciphertext holds."""
        return self.slots // self.tokens

    @property
    def baby(self) -> int:
        """Return the baby steps among the diagonals: the power of two not below their root."""
        return 1 << -(-(self.tokens.bit_length() - 1) // 2)

    @property
    def giant(self) -> int:
        """Return the giant steps among the diagonals."""
        return self.tokens // self.baby

    def step(self, tokens: int) -> int:
        """Return the rotation of the slots that moves every token's value `tokens` places ahead."""
        return tokens % self.tokens * self.sequences

    @property
    def steps(self) -> tuple[int, ...]:
        """Return all rotations that are ever needed."""
        return tuple(self.step(i) for i in range(1, self.tokens))

    def columns(self, x: Floats) -> Floats:
        """Lay out (sequences, tokens, features) as (features, slots). Raises `MalformedInput`."""
        sequences, tokens, features = x.shape
        if tokens != self.tokens or not 1 <= sequences <= self.sequences:
            raise MalformedInput(f"up to {self.sequences} sequences of {self.tokens} tokens fit")
        padded = np.zeros((self.sequences, tokens, features))
        padded[:sequences] = x
        # a place without a sequence repeats one: zeros may lie outside of what was calibrated
        padded[sequences:] = x[:1]
        return np.ascontiguousarray(padded.transpose(2, 1, 0).reshape(features, self.slots))

    def rows(self, columns: Floats, *, sequences: int) -> Floats:
        """Return the first `sequences` of (features, slots) as (sequences, tokens, features)."""
        cube = columns.reshape(len(columns), self.tokens, self.sequences)
        return np.ascontiguousarray(cube.transpose(2, 1, 0)[:sequences])
