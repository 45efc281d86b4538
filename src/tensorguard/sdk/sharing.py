"""Results that others may see: flooded with noise that hides what a CKKS result tells of its key.

A decrypted CKKS value is the exact one plus an error that depends on the secret key; who knows enough of
such errors learns the key (Li and Micciancio, EUROCRYPT 2021). Gaussian noise of a deviation far over the
error hides it (Li, Micciancio, Schultz and Sorrell, CRYPTO 2022). docs/serving.md derives the formula.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from tensorguard.errors import Conflict, InputError, VerificationError
from tensorguard.moai.pack import VerifiedPack
from tensorguard.wire.models import ModelView

Floats = npt.NDArray[np.float64]
SECURITY_BITS: Final = 30  # a distinguisher's advantage over all results: below 2^-17
MIN_SECURITY_BITS, MAX_SECURITY_BITS = 20, 128
BOUND_FACTOR: Final = 16  # 2: the prediction holds within that; 8 deviations: exceeded once in 2^49
LEAST_BITS: Final = 4.0  # fewer than a sixteenth of the output's range is no result
MAX_RESULTS: Final = 1 << 20


class PrecisionTooLow(VerificationError):
    code = "precision_too_low"
    remedy = (
        "Build the pack with a smaller --error-budget (a larger ring with less noise), share fewer "
        "results, or share only what you decide from the result."
    )


class ResultsSpent(Conflict):
    code = "results_spent"
    remedy = "Open the model again: its new keys have a new budget."


class KeysOutliveTheirCount(InputError):
    code = "keys_outlive_their_count"
    remedy = "Use a client without keys_path: its keys end with the process that counts."


class OtherPack(VerificationError):
    code = "other_pack"
    remedy = "Give the pack whose id the gateway serves, verified against your trust store."


class Gaussian(Protocol):
    """Where the noise comes from: `secrets.SystemRandom`, or a seeded `random.Random` in tests."""

    def gauss(self, mu: float, sigma: float) -> float:
        """Return one sample."""
        ...


@dataclass(frozen=True, slots=True)
class Flood:
    """Noise of one deviation, and the grid to which it is rounded; in normalised outputs."""

    deviation: float
    grid: float

    @classmethod
    def over(cls, error: float, *, outputs: int, results: int, security_bits: int) -> Flood:
        """Return the noise that hides errors of `error` (RMS, predicted) in `results` results.

        sigma = sqrt(12 results) 2^(security_bits / 2) t, where t bounds the error's norm over the outputs.
        """
        bound = BOUND_FACTOR * math.sqrt(outputs) * error
        deviation = math.sqrt(12 * results) * 2 ** (security_bits / 2) * bound
        return cls(deviation, 2.0 ** math.floor(math.log2(deviation)))

    @property
    def bits(self) -> float:
        """Return the precision that is left, in bits of an output of magnitude 1."""
        return -math.log2(self.deviation)

    def apply(self, values: Floats, random: Gaussian) -> Floats:
        """Add noise to every value, then round: no digit below the noise is shown."""
        noise = np.array([random.gauss(0.0, self.deviation) for _ in range(values.size)])
        return np.asarray(np.round((values + noise.reshape(values.shape)) / self.grid) * self.grid)


class SharedResults:
    """Predictions under one secret key that others may see; a bounded number of them."""

    def __init__(
        self,
        view: ModelView,
        pack: VerifiedPack,
        predict: Callable[[npt.ArrayLike, Callable[[Floats], Floats]], Floats],
        *,
        results: int,
        security_bits: int = SECURITY_BITS,
        least_bits: float = LEAST_BITS,
        random: Gaussian | None = None,
    ) -> None:
        if pack.pack_id != view.pack_id:
            raise OtherPack("the error was predicted for another pack than the one that is served")
        if not 1 <= results <= MAX_RESULTS:
            raise InputError(f"a key may give 1 to {MAX_RESULTS} shared results")
        if not MIN_SECURITY_BITS <= security_bits <= MAX_SECURITY_BITS:
            raise InputError(f"security is {MIN_SECURITY_BITS} to {MAX_SECURITY_BITS} bits")
        outputs = len(view.output.scale)
        self.flood = Flood.over(
            pack.manifest.precision.layers[-1].ckks_rms,
            outputs=outputs,
            results=results,
            security_bits=security_bits,
        )
        if self.flood.bits < least_bits:
            raise PrecisionTooLow(
                f"{max(self.flood.bits, 0):.1f} bits of the result would be left, "
                f"{least_bits:g} are needed"
            )
        self.left = results
        self._predict = predict
        self._random = secrets.SystemRandom() if random is None else random
        self._scale = np.array(view.output.scale)

    @property
    def deviation(self) -> Floats:
        """Return the noise's standard deviation for each output, in its own units."""
        return np.asarray(self.flood.deviation * self._scale)

    def predict(self, x: npt.ArrayLike) -> Floats:
        """Return outputs for one input that may be shown to anybody. Raises `ResultsSpent`."""
        if self.left < 1:
            raise ResultsSpent("these keys have given all the results that may be shared")
        self.left -= 1  # before the result exists: what fails later is spent all the same
        return self._predict(x, lambda values: self.flood.apply(values, self._random))
