"""Nothing malformed gets past the native door: sizes, residues, levels, elements, foreign contexts."""

import numpy as np
import pytest
import tensorguard_moai_native as native

from support.seal_peer import SealPeer


@pytest.fixture(scope="module")
def peer():
    return SealPeer(1024, (50, 40, 40, 50), (1,))


@pytest.fixture(scope="module")
def context(peer):
    return native.Context(peer.degree, peer.primes)


@pytest.fixture(scope="module")
def fresh(peer):
    return peer.residues(peer.encrypt(np.ones(512)))


@pytest.mark.parametrize(
    ("degree", "bad"),
    [
        (1000, "degree"),
        (0, "degree"),
        (32, "degree"),
        (1 << 17, "degree"),
        (4096, "twice the ring degree"),
    ],
)
def test_bad_degrees(peer, degree, bad):
    with pytest.raises(ValueError, match=bad):
        native.Context(degree, peer.primes)


def test_bad_primes(peer):
    first, *rest = peer.primes
    for primes, bad in [
        ([first], "2 to 64"),
        ([], "2 to 64"),
        ([first, first, *rest], "distinct"),
        ([first * rest[0] % (1 << 60), *rest], "prime of 20 to 60 bits"),
        ([first + 2048, *rest], "prime of 20 to 60 bits"),
        ([0, *rest], "prime of 20 to 60 bits"),
        ([2**61 - 1, *rest], "prime of 20 to 60 bits"),
        ([1_000_003, *rest], "twice the ring degree"),
    ]:
        with pytest.raises(ValueError, match=bad):
            native.Context(1024, primes)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        native.Context(1024, [-first, *rest])


def test_bad_threads_and_kernels(peer):
    for threads in (0, 257):
        with pytest.raises(ValueError, match="threads"):
            native.Context(1024, peer.primes, threads=threads)
    with pytest.raises(ValueError, match="no kernels"):
        native.Context(1024, peer.primes, kernels="neon")


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("excess", [0, 1, 1 << 10])
def test_a_residue_not_below_its_prime(peer, context, fresh, place, excess):
    for polynomial in range(2):
        bad = fresh.copy()
        bad[polynomial, place, -1] = peer.primes[place] + excess
        with pytest.raises(ValueError, match="not below its prime"):
            context.ciphertext(bad)
    with pytest.raises(ValueError, match="not below its prime"):
        context.plaintext(bad[1])
    with pytest.raises(ValueError, match="not below its prime"):
        context.seeded_ciphertext(bad[1], bytes(64))


def test_bad_shapes_and_types(context, fresh):
    for bad in (fresh[:1], fresh[:, :, :-1].copy(), np.concatenate([fresh] * 2), fresh[:, :0]):
        with pytest.raises(ValueError, match=r"ciphertext|level"):
            context.ciphertext(bad)
    with pytest.raises(ValueError, match="level"):
        context.ciphertext(np.concatenate([fresh, fresh], axis=1))
    for bad in (
        fresh[0],
        fresh.astype(np.int64),
        fresh.astype(np.float64),
        fresh[:, :, ::-1],
        None,
    ):
        with pytest.raises(TypeError):
            context.ciphertext(bad)
    for seed in (b"", bytes(63), bytes(65)):
        with pytest.raises(ValueError, match="64 bytes"):
            context.seeded_ciphertext(fresh[0], seed)


def test_bad_keys(peer, context):
    good = peer.switching_keys(peer.galois)[(peer.element(1) - 1) // 2]
    for bad in (good[:-1], good[:, :1], good[:, :, :-1], good[..., :512]):
        with pytest.raises(ValueError, match="a key is"):
            context.key(np.ascontiguousarray(bad))
    wrong = good.copy()
    wrong[2, 1, 3, 5] = peer.primes[3]
    with pytest.raises(ValueError, match="not below its prime"):
        context.key(wrong)
    bodies = [row[0] for row in good]
    with pytest.raises(ValueError, match="seed"):
        context.seeded_key(bodies, bytes(64 * 2))
    with pytest.raises(ValueError, match="seed"):
        context.seeded_key(bodies[:2], bytes(64 * 3))
    with pytest.raises(ValueError, match="body"):
        context.seeded_key([body[:3].copy() for body in bodies], bytes(64 * 3))
    with pytest.raises(ValueError, match="Galois"):
        native.Keys().add_rotation(2, context.key(good))
    with pytest.raises(ValueError, match="Galois"):
        native.Keys().add_rotation(2049, context.key(good))


def test_operations_that_do_not_fit(peer, context, fresh):
    x = context.ciphertext(fresh)
    product = native.multiply(x, x)
    keys = native.Keys()
    stranger = native.Context(peer.degree, peer.primes).ciphertext(fresh)
    plain = context.encode(np.ones(512), 2, 2.0**20)
    extended = context.encode(np.ones(512), 3, 2.0**20, extended=True)
    for call in (
        lambda: native.add(x, native.drop(x, 1)),
        lambda: native.add(x, stranger),
        lambda: native.multiply(product, x),
        lambda: native.multiply_plain(x, plain),
        lambda: native.add_plain(x, extended),
        lambda: native.relinearise(x, keys),
        lambda: native.relinearise(product, keys),
        lambda: native.rotate(product, 3, keys),
        lambda: native.rotate(x, 3, keys),
        lambda: native.fold(x, [3], keys),
        lambda: native.rescale(native.drop(x, 1)),
        lambda: native.drop(x, 0),
        lambda: native.drop(native.drop(x, 1), 2),
        lambda: native.combine([x], np.zeros((1, 2), np.int64)),
        lambda: native.combine([x, native.drop(x, 2)], np.zeros((1, 2), np.int64)),
        lambda: native.combine([], np.zeros((0, 0), np.int64)),
        lambda: context.transform(3, [1], [1], [[None]]),
        lambda: context.transform(3, [1, 2], [1], [[extended, extended]]),
        lambda: context.transform(3, [1, 3], [1], [[extended, plain]]),
        lambda: context.transform(3, [1, 3], [1], [[extended]]),
        lambda: context.transform(1, [1, 3], [1], [[None, None]]),
        lambda: context.transform(3, [1, 3], [1], [[extended, extended]]).apply(x, keys),
        lambda: context.transform(3, [1, 3], [1], [[extended, extended]]).apply(stranger, keys),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            call()


def test_a_key_of_another_context_is_refused(peer, context, fresh):
    other = native.Context(peer.degree, peer.primes)
    keys = native.Keys()
    keys.add_rotation(3, other.key(peer.switching_keys(peer.galois)[1]))
    with pytest.raises(ValueError, match="another ring"):
        native.rotate(context.ciphertext(fresh), 3, keys)
