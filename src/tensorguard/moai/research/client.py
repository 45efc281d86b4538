"""The client's half: parameters, keys, packing, and the refresh between blocks.

A refresh decrypts a block's result and encrypts it anew at full level. The values go back to the
evaluator encrypted only; decrypted ones must not be sent to it (IND-CPA-D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tensorguard.moai.client import ColumnKeys
from tensorguard.moai.parameters import CkksParameters, make_parameters
from tensorguard.moai.research.packing import Packing

Floats = npt.NDArray[np.float64]
DEGREE, DEPTH, SCALE_BITS, HEADROOM_BITS = 16384, 12, 30, 6


def parameters() -> CkksParameters:
    """Return the one set of parameters of this tier: 12 multiplications at 128 bits."""
    return make_parameters(DEGREE, depth=DEPTH, scale_bits=SCALE_BITS, headroom_bits=HEADROOM_BITS)


class Client:
    """Owns a secret key and knows how many tokens its sequences have."""

    def __init__(self, tokens: int) -> None:
        self.packing = Packing(tokens, DEGREE // 2)
        self.keys = ColumnKeys(parameters())

    def rotation_keys(self) -> Iterator[tuple[int, bytes]]:
        """Yield each rotation's step and its public key, one by one: they are large."""
        for step in self.packing.steps:
            yield step, self.keys.rotation_key(step)

    def encrypt(self, x: Floats, *, level: int) -> Iterator[bytes]:
        """Yield a ciphertext for each feature of x (sequences, tokens, features)."""
        for column in self.packing.columns(x):
            yield self.keys.encrypt(column, level=level)

    def decrypt(self, results: Sequence[bytes], *, sequences: int) -> Floats:
        """Return (sequences, tokens, features) of a block's results."""
        columns = np.stack([self.keys.decrypt(blob) for blob in results])
        return self.packing.rows(columns, sequences=sequences)
