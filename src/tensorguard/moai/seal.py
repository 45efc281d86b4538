"""The one door to SEAL (`tenseal.sealapi`): contexts from parameters, bytes through memory files.

SEAL's binding saves to and loads from paths only; `memfd_create` gives it one that is no disk.
Nothing here makes, holds or uses a secret key.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tenseal import sealapi

from tensorguard.errors import MalformedInput
from tensorguard.moai.parameters import CkksParameters

T = TypeVar("T")


def dump(thing: Any) -> bytes:
    """Return SEAL's serialisation of an object (zstd-compressed, as SEAL does)."""
    descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
    try:
        thing.save(f"/proc/self/fd/{descriptor}")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


class Seal:
    """A SEAL context, encoder and evaluator for one set of parameters."""

    def __init__(self, parameters: CkksParameters) -> None:
        chain = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        chain.set_poly_modulus_degree(parameters.degree)
        moduli = (*parameters.primes, parameters.special)
        chain.set_coeff_modulus([sealapi.Modulus(prime) for prime in moduli])
        self.parameters = parameters
        self.context = sealapi.SEALContext(chain, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise MalformedInput(f"SEAL refuses: {self.context.parameters_error_message()}")
        self.encoder = sealapi.CKKSEncoder(self.context)
        self.evaluator = sealapi.Evaluator(self.context)
        self._parms: dict[int, list[int]] = {
            level: np.frombuffer(parameters.parms_id(level), dtype="<u8").tolist()
            for level in range(1, parameters.levels + 1)
        }

    def parms(self, level: int) -> list[int]:
        """Return SEAL's id of the modulus chain with `level` primes left."""
        return self._parms[level]

    def load(self, kind: type[T], blob: bytes) -> T:
        """Load what `strict` has validated. Raises `MalformedInput`."""
        thing: Any = kind()
        descriptor = os.memfd_create("seal", os.MFD_CLOEXEC)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(blob)
            thing.load(self.context, f"/proc/self/fd/{descriptor}")
        except (RuntimeError, ValueError) as error:
            raise MalformedInput("SEAL cannot read this object") from error
        finally:
            os.close(descriptor)
        return thing  # type: ignore[no-any-return]

    def encode(self, values: npt.NDArray[np.float64], *, level: int, scale: float) -> Any:
        """Return the plaintext of `values` (slots,) at a level and scale."""
        plaintext = sealapi.Plaintext()
        self.encoder.encode(values.tolist(), self._parms[level], scale, plaintext)
        return plaintext

    def decode(self, plaintext: Any) -> npt.NDArray[np.float64]:
        """Return the slots of a plaintext."""
        return np.array(self.encoder.decode_double(plaintext), dtype=np.float64)
