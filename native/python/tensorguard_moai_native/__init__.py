"""Evaluation of CKKS ciphertexts in SEAL's form: no part of this can make, hold or use a secret key."""

from __future__ import annotations

from tensorguard_moai_native._native import (
    Ciphertext,
    Context,
    Keys,
    Plaintext,
    SwitchingKey,
    Transform,
    add,
    add_plain,
    available_kernels,
    combine,
    drop,
    fold,
    multiply,
    multiply_plain,
    relinearise,
    relinearise_rescale,
    rescale,
    rotate,
    rotations,
    subtract,
)

__all__ = [
    "Ciphertext",
    "Context",
    "Keys",
    "Plaintext",
    "SwitchingKey",
    "Transform",
    "add",
    "add_plain",
    "available_kernels",
    "combine",
    "drop",
    "fold",
    "multiply",
    "multiply_plain",
    "relinearise",
    "relinearise_rescale",
    "rescale",
    "rotate",
    "rotations",
    "subtract",
]
__version__ = "0.1.0"
