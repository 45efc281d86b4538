"""Hoisted transforms, folds and column sums compute what they say, with every kernel alike."""

import numpy as np
import pytest
import tensorguard_moai_native as native

from support.seal_peer import SealPeer

SCALE = 2.0**30
ROTATIONS = (1, 2, 3, 4, 8, 12, 16)


@pytest.fixture(scope="module")
def peer():
    return SealPeer(2048, (50, 40, 40, 58), ROTATIONS)


class Side:
    def __init__(self, peer, **options):
        self.peer = peer
        self.context = native.Context(peer.degree, peer.primes, **options)
        self.keys = native.Keys()
        for place, residues in peer.switching_keys(peer.galois).items():
            self.keys.add_rotation(2 * place + 1, self.context.key(residues))

    def ciphertext(self, slots, scale=SCALE):
        return self.context.ciphertext(self.peer.residues(self.peer.encrypt(slots, scale=scale)))

    def value(self, ciphertext, scale=SCALE):
        return self.peer.decrypt(ciphertext.residues(), scale=scale)


@pytest.fixture(params=native.available_kernels())
def side(peer, request):
    return Side(peer, kernels=request.param)


def transform(side, level, diagonals, *, missing=()):
    giant, baby, _ = diagonals.shape
    dropped = float(side.peer.primes[level - 1])
    rows = [
        [
            None
            if (g, b) in missing
            else side.context.encode(
                np.roll(diagonals[g, b], g * baby), level, dropped, giant * baby > 1
            )
            for b in range(baby)
        ]
        for g in range(giant)
    ]
    babies = [side.peer.element(b) for b in range(baby)]
    giants = [side.peer.element(g * baby) for g in range(giant)]
    return side.context.transform(level, babies, giants, rows)


@pytest.mark.parametrize(("giant", "baby"), [(1, 1), (1, 2), (1, 4), (4, 1), (2, 2), (4, 4)])
@pytest.mark.parametrize("level", [2, 3])
def test_a_transform_is_the_sum_of_its_diagonals(side, giant, baby, level):
    rng = np.random.default_rng(giant * 10 + baby)
    x, diagonals = rng.uniform(-1, 1, 1024), rng.uniform(-1, 1, (giant, baby, 1024))
    ciphertext = native.drop(side.ciphertext(x), level)
    result = transform(side, level, diagonals).apply(ciphertext, side.keys)
    expected = sum(
        diagonals[g, b] * np.roll(x, -(g * baby + b)) for g in range(giant) for b in range(baby)
    )
    assert result.level == level - 1
    assert np.abs(side.value(result) - expected).max() < 1e-3


def test_zero_diagonals_and_whole_zero_rows_are_left_out(side):
    rng = np.random.default_rng(3)
    x, diagonals = rng.uniform(-1, 1, 1024), rng.uniform(-1, 1, (4, 4, 1024))
    missing = {(0, 0), (0, 1), (0, 2), (0, 3), (2, 1), (3, 0)}
    result = transform(side, 3, diagonals, missing=missing).apply(side.ciphertext(x), side.keys)
    expected = sum(
        diagonals[g, b] * np.roll(x, -(g * 4 + b))
        for g in range(4)
        for b in range(4)
        if (g, b) not in missing
    )
    assert np.abs(side.value(result) - expected).max() < 1e-3


def test_folds_are_rotations_added(side):
    x = np.random.default_rng(4).uniform(-1, 1, 1024)
    elements = [side.peer.element(step) for step in (4, 8, 16)]
    result = native.fold(side.ciphertext(x), elements, side.keys)
    expected = sum(np.roll(x, -4 * i) for i in range(8))
    assert np.abs(side.value(result) - expected).max() < 1e-3
    start = side.ciphertext(x)
    assert np.array_equal(native.fold(start, [], side.keys).residues(), start.residues())


def test_rotations_of_one_ciphertext_are_each_its_rotation(side):
    x = np.random.default_rng(7).uniform(-1, 1, 1024)
    elements = [side.peer.element(step) for step in (1, 8, 16)]
    for level in (3, 1):
        start = native.drop(side.ciphertext(x), level)
        results = native.rotations(start, elements, side.keys)
        for step, element, result in zip((1, 8, 16), elements, results, strict=True):
            assert (result.size, result.level) == (2, level)
            assert np.abs(side.value(result) - np.roll(x, -step)).max() < 1e-4
            alone = side.value(native.rotate(start, element, side.keys))
            assert np.abs(side.value(result) - alone).max() < 1e-4
    assert native.rotations(side.ciphertext(x), [], side.keys) == []


def test_rotations_without_a_key_or_of_a_product_are_refused(side):
    ciphertext = side.ciphertext(np.zeros(1024))
    with pytest.raises(ValueError, match="no key for this Galois element"):
        native.rotations(ciphertext, [side.peer.element(5)], side.keys)
    with pytest.raises(ValueError, match="two polynomials"):
        native.rotations(native.multiply(ciphertext, ciphertext), [], side.keys)


def test_column_sums_are_a_linear_layer_without_rotations(side):
    rng = np.random.default_rng(5)
    columns, weights = rng.uniform(-1, 1, (6, 1024)), rng.uniform(-1, 1, (5, 6))
    q = side.peer.primes[2]
    integers = np.rint(weights * q).astype(np.int64)
    results = native.combine([side.ciphertext(x) for x in columns], integers)
    for row, result in zip(weights @ columns, results, strict=True):
        assert result.level == 2
        assert np.abs(side.value(result) - row).max() < 1e-4


def test_kernels_and_threads_never_change_a_residue(peer):
    rng = np.random.default_rng(6)
    x, diagonals = rng.uniform(-1, 1, 1024), rng.uniform(-1, 1, (4, 4, 1024))
    encrypted = peer.residues(peer.encrypt(x))
    seen = set()
    for kernels in native.available_kernels():
        for threads in (1, 2, 5):
            side = Side(peer, kernels=kernels, threads=threads)
            ciphertext = side.context.ciphertext(encrypted)
            folded = native.fold(
                transform(side, 3, diagonals).apply(ciphertext, side.keys),
                [peer.element(4)],
                side.keys,
            )
            (summed,) = native.combine([folded], np.array([[-7]]))
            (turned,) = native.rotations(ciphertext, [peer.element(4)], side.keys)
            seen.add(b"".join(y.residues().tobytes() for y in (folded, summed, turned)))
    assert len(seen) == 1
