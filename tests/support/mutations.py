"""Seeded damage: the ways in which bytes go wrong on a wire, on a disk, or on purpose."""

import random


def mutations(good, *, count, seed):
    """Yield `count` damaged copies of `good`, always the same ones for a seed."""
    rng = random.Random(seed)
    yield b""
    for _ in range(count - 1):
        yield _damage(good, rng)


def _damage(good, rng):
    at = rng.randrange(min(len(good), 256)) if rng.random() < 0.5 else rng.randrange(len(good))
    size = rng.choice((1, 2, 8, 64))
    match rng.randrange(8):
        case 0:
            return good[:at]
        case 1:
            return good[:at] + good[at + size :]
        case 2:
            return good[:at] + rng.randbytes(size) + good[at:]
        case 3:
            return good[:at] + b"\xff" * size + good[at + size :]
        case 4:
            return good[:at] + bytes(size) + good[at + size :]
        case 5:
            return good + rng.randbytes(size)
        case 6:
            return good[:at] + good[:size] + good[at + size :]
        case _:
            return good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :]
