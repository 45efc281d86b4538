"""Small signed packs, built once per process, and a trust store folder that accepts them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.moai.compile import build_pack, compile_network
from tensorguard.moai.compile.network import Dense, Network


@cache
def signer() -> SoftwareHybridSigner:
    return SoftwareHybridSigner.generate()


@cache
def _compiled():
    layer = Dense("dense0", np.array([[0.5, -0.25], [0.75, 1.0]]), np.array([0.1, -0.2]), None)
    network = Network(
        (layer,),
        mean=np.zeros(2),
        std=np.ones(2),
        output_scale=np.ones(2),
        output_offset=np.zeros(2),
    )
    return compile_network(network, np.random.default_rng(1).uniform(-1, 1, (64, 2)))


@cache
def pack_bytes(version: str = "1.0", name: str = "tiny") -> bytes:
    """Return a pack by the trusted signer."""
    return build_pack(_compiled(), name=name, version=version, signer=signer())


@cache
def foreign_pack() -> bytes:
    """Return a pack by a signer whom nobody trusts."""
    return build_pack(
        _compiled(), name="tiny", version="1.0", signer=SoftwareHybridSigner.generate()
    )


def trust_folder(folder: Path) -> Path:
    """Return a new trust store with the signer."""
    folder.mkdir()
    (folder / "tests.pub.json").write_bytes(signer().public_key.to_json(name="tests"))
    return folder
