"""CKKS parameters come from the 128-bit table or are refused; nobody's word is taken for it.

The table is that of the Homomorphic Encryption Standard (HomomorphicEncryption.org, 2018), uniform
ternary secrets, classical 128-bit security: an upper bound on log2(QP) for each ring degree.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from tensorguard.crypto import canonical
from tensorguard.errors import VerificationError
from tensorguard.wire import models as wire

MAX_LOG_QP = {8192: 218, 16384: 438, 32768: 881}
MAX_PRIME_BITS = 60  # SEAL's own bound
MIN_PRIME_BITS = 20
MAX_SPECIAL_EXTRA = 10  # bits of the special prime over the first; more gains nothing
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # decides all n < 3.3e24


class InsecureParameters(VerificationError):
    code = "insecure_parameters"
    remedy = "Do not use this model. Its parameters are outside the 128-bit table."


@dataclass(frozen=True)
class CkksParameters:
    """Ring degree, data primes in chain order (the last is dropped first), special prime, scale.

    Creating one checks it. Raises `InsecureParameters`.
    """

    degree: int
    primes: tuple[int, ...]
    special: int
    scale_bits: int

    def __post_init__(self) -> None:
        limit = MAX_LOG_QP.get(self.degree)
        if limit is None:
            raise InsecureParameters(f"the ring degree {self.degree} is not in the table")
        chain = (*self.primes, self.special)
        if len(self.primes) < 2 or len(set(chain)) != len(chain):  # noqa: PLR2004 -- one multiplication needs two
            raise InsecureParameters("the moduli are too few or not distinct")
        for prime in chain:
            if not MIN_PRIME_BITS <= prime.bit_length() <= MAX_PRIME_BITS:
                raise InsecureParameters(f"the modulus {prime} is not of 20 to 60 bits")
            if prime % (2 * self.degree) != 1 or not is_prime(prime):
                raise InsecureParameters(f"the modulus {prime} is no NTT prime of this ring")
        if math.prod(chain).bit_length() > limit:
            raise InsecureParameters(f"log2(QP) is over {limit} for degree {self.degree}")
        if self.special < max(self.primes):
            raise InsecureParameters("the special prime is smaller than a data prime")
        if not MIN_PRIME_BITS <= self.scale_bits < self.primes[0].bit_length():
            raise InsecureParameters("the scale does not fit the first prime")

    @property
    def slots(self) -> int:
        """Return how many numbers one ciphertext holds."""
        return self.degree // 2

    @property
    def levels(self) -> int:
        """Return how many data primes a fresh ciphertext has."""
        return len(self.primes)

    @property
    def scale(self) -> float:
        """Return the scale of a fresh ciphertext."""
        return float(1 << self.scale_bits)

    @cached_property
    def id(self) -> bytes:
        """32 bytes: SHA-256 of the canonical JSON of the parameters."""
        return bytes.fromhex(canonical.digest(_plain(self)))

    def parms_id(self, level: int | None = None) -> bytes:
        """Return SEAL's 32-byte id of this chain at `level` data primes; `None`: the key level.

        SEAL hashes scheme, degree, moduli and the (absent) plain modulus with BLAKE2b-256.
        """
        moduli = (*self.primes, self.special) if level is None else self.primes[:level]
        words = (_SEAL_CKKS, self.degree, *moduli, 0)
        return hashlib.blake2b(
            b"".join(word.to_bytes(8, "little") for word in words), digest_size=32
        ).digest()

    def galois_element(self, rotation: int) -> int:
        """Return the Galois element of a rotation of the slots to the left."""
        return pow(3, rotation, 2 * self.degree)

    def to_wire(self) -> wire.Parameters:
        """Return the message form."""
        return wire.Parameters(
            scheme="CKKS",
            poly_modulus_degree=self.degree,
            primes=tuple(map(str, self.primes)),
            special_prime=str(self.special),
            scale_bits=self.scale_bits,
        )

    @classmethod
    def from_wire(cls, message: wire.Parameters) -> CkksParameters:
        """Check and convert a message. Raises `InsecureParameters`."""
        return cls(
            degree=message.poly_modulus_degree,
            primes=tuple(map(int, message.primes)),
            special=int(message.special_prime),
            scale_bits=message.scale_bits,
        )


_SEAL_CKKS = 2  # seal::scheme_type::ckks


def _plain(parameters: CkksParameters) -> dict[str, object]:
    return {
        "poly_modulus_degree": parameters.degree,
        "primes": [str(prime) for prime in parameters.primes],
        "scale_bits": parameters.scale_bits,
        "scheme": "CKKS",
        "special_prime": str(parameters.special),
    }


def is_prime(number: int) -> bool:
    """Decide primality (Miller-Rabin with witnesses that are exact below 2^64)."""
    if number < 2 or any(number % p == 0 for p in _WITNESSES):  # noqa: PLR2004 -- no prime below 2
        return number in _WITNESSES
    odd, power = number - 1, 0
    while odd % 2 == 0:
        odd, power = odd // 2, power + 1
    for witness in _WITNESSES:
        squares = [pow(witness, odd << i, number) for i in range(power + 1)]
        if squares[-1] != 1:
            return False
        if any(b == 1 and a not in {1, number - 1} for a, b in pairwise(squares)):
            return False
    return True


def ntt_primes(degree: int, bits: int, count: int) -> tuple[int, ...]:
    """Return the `count` largest primes of exactly `bits` bits that are 1 modulo 2·degree."""
    found: list[int] = []
    candidate = (1 << bits) + 1
    while len(found) < count:
        candidate -= 2 * degree
        if candidate.bit_length() < bits:
            raise InsecureParameters(f"there are not {count} NTT primes of {bits} bits")
        if is_prime(candidate):
            found.append(candidate)
    return tuple(found)


def make_parameters(
    degree: int, *, depth: int, scale_bits: int, headroom_bits: int
) -> CkksParameters:
    """Build a chain for `depth` multiplications whose result may reach 2^headroom_bits / 2.

    The special prime takes what the table leaves, at least the size of the first prime. Six bits more
    are wanted: SEAL does not centre the digits of a key switch, and their mean meets the slot whose
    root is nearest to 1 about 100 times harder than the others, unless P is that much larger.
    """
    first_bits = scale_bits + headroom_bits
    left = MAX_LOG_QP[degree] - first_bits - depth * scale_bits
    special_bits = max(first_bits, min(left, first_bits + MAX_SPECIAL_EXTRA, MAX_PRIME_BITS))
    rest = ntt_primes(degree, scale_bits, depth)
    if special_bits == first_bits:
        special, first = ntt_primes(degree, first_bits, 2)
    else:
        (special,), (first,) = (
            ntt_primes(degree, special_bits, 1),
            ntt_primes(degree, first_bits, 1),
        )
    return CkksParameters(degree, (first, *rest), special, scale_bits)
