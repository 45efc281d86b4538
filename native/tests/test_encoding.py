"""Encoded slots and expanded seeds are SEAL's."""

import numpy as np
import pytest
import tensorguard_moai_native as native
from tenseal import sealapi

from support.seal_peer import SealPeer, dump, payload, read_ciphertext

BITS = (50, 40, 40, 58)


@pytest.fixture(scope="module")
def peer():
    return SealPeer(4096, BITS, (1,))


@pytest.fixture(params=native.available_kernels())
def context(peer, request):
    return native.Context(peer.degree, peer.primes, kernels=request.param)


def coefficients(context, peer, difference, place):
    q = peer.primes[place]
    values = context.ntt(difference % q, place, inverse=True).astype(np.int64)
    return np.where(values > q // 2, values - q, values)


@pytest.mark.parametrize("scale", [2.0**20, 2.0**40, float(2**41 + 12345), 2.0**70])
@pytest.mark.parametrize("shape", ["noise", "constant", "one", "large"])
def test_coefficients_differ_from_seals_by_one_rounding_at_most(peer, context, scale, shape):
    rng = np.random.default_rng(0)
    slots = {
        "noise": rng.normal(size=2048),
        "constant": np.full(2048, 0.7),
        "one": np.eye(1, 2048, 5)[0],
        "large": rng.normal(size=2048) * 1e5,
    }[shape]
    theirs = peer.plain_residues(peer.encode_for_keys(slots, scale=scale))
    ours = context.encode(slots, 3, scale, extended=True).residues()
    # doubles carry 53 bits: beyond them both encoders round coefficients, each in its own FFT
    largest = np.abs(slots).max() * scale
    allowed = 1 + largest * 2.0**-48
    for place in range(4):
        q = peer.primes[place]
        difference = ((theirs[place].astype(object) - ours[place].astype(object)) % q).astype(
            np.uint64
        )
        assert np.abs(coefficients(context, peer, difference, place)).max() <= allowed
        if allowed >= 2:
            break  # a larger difference shows its size only at the widest prime


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_level_is_a_prefix_of_the_primes(context, level):
    slots = np.linspace(-1, 1, 2048)
    full = context.encode(slots, 3, 2.0**30, extended=True).residues()
    assert np.array_equal(context.encode(slots, level, 2.0**30).residues(), full[:level])
    extended = context.encode(slots, level, 2.0**30, extended=True).residues()
    assert np.array_equal(extended, full[[*range(level), 3]])


def test_values_that_do_not_fit_are_refused(context):
    slots = np.ones(2048)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            context.encode(np.where(np.arange(2048) == 7, bad, slots), 2, 2.0**30)
    with pytest.raises(ValueError, match="do not fit"):
        context.encode(slots * 1e6, 1, 2.0**40)
    with pytest.raises(ValueError, match="each slot"):
        context.encode(slots[:-1], 1, 2.0**30)
    for scale in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="scale"):
            context.encode(slots, 1, scale)
    for level in (0, 4, 1 << 40):
        with pytest.raises(ValueError, match="level"):
            context.encode(slots, level, 2.0**30)


def test_seeded_ciphertexts_expand_as_in_seal(peer, context):
    for seed in range(3):
        slots = np.random.default_rng(seed).normal(size=2048)
        blob = dump(peer.encryptor.encrypt_symmetric(peer.encode(slots)))
        body, secret_free_seed, _ = read_ciphertext(payload(blob), 0)
        theirs = peer.residues(peer.load(sealapi.Ciphertext(), blob))
        ours = context.seeded_ciphertext(body[0], secret_free_seed)
        assert np.array_equal(ours.residues(), theirs)


def test_seeded_keys_expand_as_in_seal(peer, context):
    seeded = peer.generator.create_galois_keys([peer.element(1)])
    full = peer.switching_keys(peer.load(sealapi.GaloisKeys(), dump(seeded)))
    ((place, (bodies, seeds)),) = peer.seeded_keys(seeded).items()
    assert np.array_equal(context.seeded_key(bodies, seeds).residues(), full[place])


def test_the_ntt_is_seals(peer, context):
    """SEAL encodes in NTT form, so the inverse of an encoded constant is a constant polynomial."""
    plain = peer.plain_residues(peer.encode(np.full(2048, 3.0), scale=2.0**20))
    for place in range(3):
        values = context.ntt(plain[place], place, inverse=True)
        assert values[0] == 3 << 20
        assert not values[1:].any()
        assert np.array_equal(context.ntt(values, place), plain[place])
