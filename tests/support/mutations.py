"""Seeded damage: the ways in which bytes go wrong on a wire, on a disk, or on purpose."""

import itertools
import random

from tensorguard.errors import InputError


def mutations(good, *, count, seed):
    """Yield `count` damaged copies of `good`, always the same ones for a seed."""
    rng = random.Random(seed)
    yield b""
    for _ in range(count - 1):
        yield _damage(good, rng)


def damaged(good, *, count, seed):
    """Yield `count` mutations that do differ from `good`."""
    different = (bad for bad in mutations(good, count=2 * count + 10, seed=seed) if bad != good)
    return itertools.islice(different, count)


def accepted(read, good, *, count, seed):
    """Count the damaged copies that `read` takes; it may refuse with an InputError, nothing else."""
    taken = 0
    for bad in damaged(good, count=count, seed=seed):
        try:
            read(bad)
        except InputError:
            continue
        taken += 1
    return taken


def _damage(good, rng):
    at = rng.randrange(min(len(good), 256)) if rng.random() < 0.5 else rng.randrange(len(good))
    size = rng.choice((1, 2, 8, 64))
    head, tail = good[:at], good[at + size :]
    ways = (
        head,
        head + tail,
        head + rng.randbytes(size) + good[at:],
        head + b"\xff" * size + tail,
        head + bytes(size) + tail,
        good + rng.randbytes(size),
        head + good[:size] + tail,
        head + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :],
    )
    return rng.choice(ways)
