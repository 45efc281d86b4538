"""Random circuits of up to 8 operations give SEAL's residues, with every kind of kernels."""

import contextlib
import random

import numpy as np
import pytest
import tensorguard_moai_native as native
from tenseal import sealapi

from support.seal_peer import SealPeer

ROTATIONS = (1, 2, 3, 7, 64, 511, 509)
CIRCUITS_PER_CHAIN = 500
# (ring degree, bits of the data primes and the special prime): at the limit of the vector kernels, just
# over it, at SEAL's own limit, and mixed
CHAINS = {
    "ours": (1024, (48, 40, 40, 40, 50)),
    "vector-limit": (1024, (50, 50, 50, 50, 50)),
    "mixed": (2048, (60, 30, 45, 52, 60)),
    "seal-limit": (1024, (60, 60, 60, 60)),
}


class Both:
    """A SEAL peer and native contexts with the same keys; values are held by all of them."""

    def __init__(self, degree, bits):
        self.peer = SealPeer(degree, bits, ROTATIONS)
        self.contexts = [
            native.Context(degree, self.peer.primes, threads=1 + i % 2, kernels=name)
            for i, name in enumerate(native.available_kernels())
        ]
        galois = self.peer.switching_keys(self.peer.galois)
        relinearisation = self.peer.switching_keys(self.peer.relinearisation)[0]
        self.keys = []
        for context in self.contexts:
            keys = native.Keys()
            for place, residues in galois.items():
                keys.add_rotation(2 * place + 1, context.key(residues))
            keys.set_relinearisation(context.key(relinearisation))
            self.keys.append(keys)

    def fresh(self, values):
        theirs = self.peer.encrypt(values)
        residues = self.peer.residues(theirs)
        return theirs, [context.ciphertext(residues) for context in self.contexts]


class Transparent(Exception):
    """SEAL does not compute x - x, whose second polynomial is zero."""


def seal(operation, *operands):
    result = sealapi.Ciphertext()
    try:
        operation(*operands, result)
    except RuntimeError as error:
        if "transparent" not in str(error):
            raise
        raise Transparent from error
    result.scale = 2.0**10  # residues do not depend on it, and it must not run out
    return result


def step(both, rng, pool):
    """Apply one random operation to members of the pool and return the result."""
    peer, evaluator = both.peer, both.peer.evaluator
    theirs, ours = rng.choice(pool)
    level = theirs.coeff_modulus_size()
    choices = ["add", "sub", "mul_plain", "switch", "rescale"]
    choices += ["relinearize"] * 3 if theirs.size() == 3 else ["mul"] * 2 + ["rotate"] * 2
    match rng.choice(choices):
        case "add" | "sub" | "mul" as name:
            other, others = rng.choice(pool)
            if other is theirs or (name == "mul" and other.size() == 3):
                other, others = both.fresh(rng_values(rng, peer))
            low = min(level, other.coeff_modulus_size())
            left, right = sealapi.Ciphertext(), sealapi.Ciphertext()
            evaluator.mod_switch_to(theirs, peer.parms(low), left)
            evaluator.mod_switch_to(other, peer.parms(low), right)
            left.scale = right.scale = 2.0**10
            pairs = [
                (native.drop(a, low), native.drop(b, low))
                for a, b in zip(ours, others, strict=True)
            ]
            theirs_f = {"add": evaluator.add, "sub": evaluator.sub, "mul": evaluator.multiply}[name]
            ours_f = {"add": native.add, "sub": native.subtract, "mul": native.multiply}[name]
            return seal(theirs_f, left, right), [ours_f(a, b) for a, b in pairs]
        case "mul_plain":
            plain = peer.encode(rng_values(rng, peer), level=level, scale=2.0**20)
            residues = peer.plain_residues(plain)
            plain.scale = 1.0
            return seal(evaluator.multiply_plain, theirs, plain), [
                native.multiply_plain(x, context.plaintext(residues))
                for x, context in zip(ours, both.contexts, strict=True)
            ]
        case "relinearize":
            return seal(
                lambda x, out: evaluator.relinearize(x, peer.relinearisation, out), theirs
            ), [native.relinearise(x, keys) for x, keys in zip(ours, both.keys, strict=True)]
        case "rotate":
            rotation = rng.choice(ROTATIONS)
            element = peer.element(rotation)
            return seal(
                lambda x, out: evaluator.rotate_vector(x, rotation, peer.galois, out), theirs
            ), [native.rotate(x, element, keys) for x, keys in zip(ours, both.keys, strict=True)]
        case "rescale" if level > 1:
            return seal(evaluator.rescale_to_next, theirs), [native.rescale(x) for x in ours]
        case _:
            low = rng.randint(1, level)
            return seal(lambda x, out: evaluator.mod_switch_to(x, peer.parms(low), out), theirs), [
                native.drop(x, low) for x in ours
            ]


def rng_values(rng, peer):
    return [rng.uniform(-1, 1) for _ in range(peer.degree // 2)]


@pytest.fixture(scope="module")
def sides():
    made = {}

    def get(chain):
        if chain not in made:
            made[chain] = Both(*CHAINS[chain])
        return made[chain]

    return get


@pytest.mark.parametrize("chain", CHAINS)
def test_random_circuits_have_equal_residues(sides, chain):
    both = sides(chain)
    start = [both.fresh(rng_values(random.Random(0), both.peer)) for _ in range(4)]
    seen = set()
    for seed in range(CIRCUITS_PER_CHAIN):
        rng = random.Random(f"{chain} {seed}")
        pool = rng.sample(start, 2)
        for _ in range(rng.randint(1, 8)):
            with contextlib.suppress(Transparent):
                pool.append(step(both, rng, pool))
        theirs, ours = pool[-1]
        residues = both.peer.residues(theirs)
        seen.add((theirs.size(), theirs.coeff_modulus_size()))
        for name, result in zip(native.available_kernels(), ours, strict=True):
            assert np.array_equal(residues, result.residues()), (chain, seed, name)
    assert len(seen) >= 2 * (len(CHAINS[chain][1]) - 2)  # the circuits reach most sizes and levels


@pytest.mark.parametrize("chain", CHAINS)
def test_relinearise_rescale_is_the_two_operations(sides, chain):
    both = sides(chain)
    (a, ours_a), (b, ours_b) = (both.fresh(np.linspace(-1, 1, both.peer.degree // 2)) for _ in "ab")
    product = seal(both.peer.evaluator.multiply, a, b)
    both.peer.evaluator.relinearize_inplace(product, both.peer.relinearisation)
    both.peer.evaluator.rescale_to_next_inplace(product)
    expected = both.peer.residues(product)
    for x, y, keys in zip(ours_a, ours_b, both.keys, strict=True):
        result = native.relinearise_rescale(native.multiply(x, y), keys)
        assert np.array_equal(result.residues(), expected)
