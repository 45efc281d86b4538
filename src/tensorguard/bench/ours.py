"""What the inference bench runs of ours: a signed pack, one client, every backend of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tensorguard.bench.heads import Head
from tensorguard.bench.naive import in_batches
from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.crypto.trust import TrustStore
from tensorguard.moai import pack
from tensorguard.moai.backends.base import (
    Backend,
    BackendUnusable,
    LayoutUnsupported,
    Model,
    open_backend,
)
from tensorguard.moai.client import ClientKeys
from tensorguard.moai.compile import build_pack, compile_network
from tensorguard.moai.plan import Layout, LinearPlan

Floats = npt.NDArray[np.float64]
KERNELS = ("scalar", "avx2", "ifma")
_PACK_LIMIT = 1 << 26


@dataclass(frozen=True)
class Signed:
    """A signed and verified pack of a head, and one client of it."""

    pack: pack.VerifiedPack

    @classmethod
    def of(cls, head: Head) -> Signed:
        """Compile, sign and verify."""
        signer = SoftwareHybridSigner.generate()
        layout: Layout = "columns" if head.batch else "blocks"
        compiled = compile_network(head.network, head.calibration, layout=layout)
        data = build_pack(compiled, name="bench", version="1", signer=signer)
        trust = TrustStore.from_keys({"bench": signer.public_key})
        return cls(pack.verify(pack.read(data, limit=_PACK_LIMIT), trust))

    @cached_property
    def client(self) -> ClientKeys:
        """The client, with a fresh secret key."""
        return ClientKeys.generate(self.pack.spec.view())

    @cached_property
    def keys(self) -> bytes:
        """The frame of the client's evaluation keys."""
        return self.client.evaluation_keys()

    def models(self, backends: Mapping[str, Backend]) -> tuple[dict[str, Model], list[str]]:
        """Return the pack's model for each backend, and the names of those without one, with why."""
        found, missing = {}, []
        for name, backend in backends.items():
            try:
                found[name] = backend.load(self.pack)
            except LayoutUnsupported as refusal:
                missing.append(f"{name}: {refusal}")
        return found, missing


class Ours:
    """Encrypts, evaluates and decrypts through a signed pack, a backend and the client."""

    def __init__(self, signed: Signed, model: Model) -> None:
        self._client = signed.client
        self._model = model
        self._keys = model.load_keys(signed.keys)

    def encrypt(self, x: Floats) -> bytes:
        """Return the frame of one raw input."""
        return self._client.encrypt(x)

    def evaluate(self, encrypted: bytes) -> bytes:
        """Do what the server does."""
        return self._model.evaluate(self._keys, encrypted)

    def decrypt(self, encrypted: bytes) -> Floats:
        """Return the outputs."""
        return self._client.decrypt(encrypted)


class OursInBatches:
    """The same for many samples; a frame holds as many as a ciphertext has slots."""

    def __init__(self, signed: Signed, model: Model) -> None:
        self._client = signed.client
        self._model = model
        self._keys = model.load_keys(signed.keys)
        self._samples = signed.pack.spec.parameters.slots
        self._rows = 0  # of what was encrypted last

    def encrypt(self, x: Floats) -> list[bytes]:
        """Return the frames of rows of raw inputs."""
        self._rows = len(x)
        return [self._client.encrypt_batch(part) for part in in_batches(x, self._samples)]

    def evaluate(self, encrypted: list[bytes]) -> list[bytes]:
        """Do what the server does."""
        return [self._model.evaluate(self._keys, frame) for frame in encrypted]

    def decrypt(self, encrypted: list[bytes]) -> Floats:
        """Return the outputs by rows."""
        parts = [self._client.decrypt_batch(x, samples=self._samples) for x in encrypted]
        return np.concatenate(parts)[: self._rows]


def backends() -> tuple[dict[str, Backend], list[str]]:
    """Return our backends by the name of their variant, and what this machine cannot run."""
    found, missing = {"tenseal": open_backend("tenseal")}, []
    for name in KERNELS:
        try:
            found[f"native-{name}"] = open_backend("native", kernels=name)
        except BackendUnusable as error:
            missing.append(f"native-{name}: {error}")
    return found, missing


def copies(client: ClientKeys, plan: LinearPlan, frame: bytes) -> Floats:
    """Return all copies (copies, outputs) of one sample's outputs that the slots of a result hold.

    Only the first is an answer; the others carry independent noise, which is what they are read for.
    """
    (slots,) = client.decrypt_slots(frame)
    outputs = len(client.view.output.scale)
    return np.asarray(slots.reshape(-1, plan.period_out)[:, :outputs])
