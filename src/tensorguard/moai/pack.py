"""A model pack is trusted only after its signature: `Unverified` packs have bytes, no meaning.

A `*.moai` file is a deterministic, uncompressed ZIP of exactly `manifest.json` (canonical JSON),
`weights.safetensors` and `signature.json` (a DSSE envelope over the manifest), in this order. The
pack id is the SHA-256 of the manifest. Specified in docs/formats/model-pack.md.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from tensorguard.crypto import dsse
from tensorguard.crypto.hybrid import HybridSigner
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import TooLarge, VerificationError
from tensorguard.moai import archive, manifest, tensors
from tensorguard.moai.graph import Graph, Join, Layer, Linear, Polynomial
from tensorguard.moai.manifest import (
    AddLayer,
    LinearLayer,
    Manifest,
    ManifestLayer,
    PackInvalid,
    PolynomialLayer,
)
from tensorguard.moai.parameters import CkksParameters
from tensorguard.moai.plan import plan_network
from tensorguard.moai.spec import ModelSpec, packing_of

PAYLOAD_TYPE = "application/vnd.tensorguard.moai.manifest+json"
MANIFEST, SIGNATURE = "manifest.json", "signature.json"
WEIGHTS: Final = "weights.safetensors"
MEMBERS = (MANIFEST, WEIGHTS, SIGNATURE)


class PackTampered(VerificationError):
    code = "pack_tampered"
    remedy = "Do not load this pack. Fetch it again from its signer."


@dataclass(frozen=True)
class UnverifiedPack:
    """The three members of a well-formed archive. Nothing in them was interpreted."""

    manifest: bytes
    weights: bytes
    signature: bytes

    @cached_property
    def pack_id(self) -> str:
        """Lower-case hex SHA-256 of the manifest, as it claims to be."""
        return hashlib.sha256(self.manifest).hexdigest()


@dataclass(frozen=True)
class VerifiedPack:
    """A pack whose signature, digests and meaning were checked. Only `verify` makes one."""

    pack_id: str
    signer_name: str
    signer_key_id: str
    manifest: Manifest
    spec: ModelSpec


def read(data: bytes, *, limit: int) -> UnverifiedPack:
    """Take the archive apart. Raises `TooLarge` or `MalformedInput`."""
    if len(data) > limit:
        raise TooLarge(f"a pack of {len(data)} bytes is over the limit of {limit}")
    return UnverifiedPack(*archive.unpack(data, names=MEMBERS))


def verify(pack: UnverifiedPack, trust: TrustStore) -> VerifiedPack:
    """Return the pack once everything about it holds.

    Raises `VerificationError` or `MalformedInput`; the steps are those of the format's document.
    """
    # (1) the envelope is signed, with both algorithms, by someone in the trust store
    opened = dsse.open_envelope(
        pack.signature, payload_type=PAYLOAD_TYPE, trust=trust, limit=manifest.MAX_MANIFEST_BYTES
    )
    # (2) what was signed is the manifest beside it
    if not hmac.compare_digest(opened.payload, pack.manifest):
        raise PackTampered("the signature is over another manifest")
    # (3) the manifest is canonical and has exactly the known fields and layer kinds
    content = manifest.decode(pack.manifest)
    # (4) the weights are those that the manifest names
    expected = content.files.get(WEIGHTS)
    if expected is None:
        raise PackInvalid("the manifest has no digest of the weights")
    if (len(pack.weights), hashlib.sha256(pack.weights).hexdigest()) != (
        expected.size,
        expected.sha256,
    ):
        raise PackTampered("the weights are not those that were signed")
    # (5) graph, parameters and plan are sound and agree with each other
    spec = _interpret(content, pack.weights, pack.pack_id)
    return VerifiedPack(pack.pack_id, opened.signer_name, opened.key_id, content, spec)


def write(content: Manifest, weights: bytes, *, signer: HybridSigner) -> bytes:
    """Sign and return the archive. The same content and signer keys give one pack id."""
    body = content.to_json()
    _interpret(content, weights, hashlib.sha256(body).hexdigest())  # we sign what loads
    envelope = dsse.seal(body, payload_type=PAYLOAD_TYPE, signer=signer)
    return archive.pack(dict(zip(MEMBERS, (body, weights, envelope), strict=True)))


def _interpret(content: Manifest, weights: bytes, pack_id: str) -> ModelSpec:
    parameters = CkksParameters.from_wire(content.parameters)
    graph = Graph(_layers(content, weights), content.input, content.output)
    plan = plan_network(graph.shapes, slots=parameters.slots, layout=content.packing.layout)
    claims = (
        content.parameters_id,
        parameters.levels,
        content.packing,
        content.rotations,
        content.levels,
    )
    facts = (
        parameters.id.hex(),
        plan.depth + 1,
        packing_of(plan),
        plan.rotations,
        tuple(layer.level for layer in plan.layers),
    )
    if claims != facts:
        raise PackInvalid("packing, rotations or levels are not those of the layer graph")
    return ModelSpec(content.name, content.version, pack_id, parameters, plan, graph)


def _layers(content: Manifest, weights: bytes) -> tuple[Layer, ...]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in content.layers:
        if isinstance(layer, LinearLayer):
            shapes[f"{layer.name}.weight"] = (layer.outputs, layer.inputs)
            shapes[f"{layer.name}.bias"] = (layer.outputs,)
        elif isinstance(layer, PolynomialLayer):
            shapes[f"{layer.name}.coefficients"] = (layer.width, layer.degree + 1)
    values = tensors.load(weights, shapes=shapes)
    return tuple(_layer(layer, values) for layer in content.layers)


def _layer(layer: ManifestLayer, values: dict[str, tensors.Floats]) -> Layer:
    name = layer.name
    if isinstance(layer, LinearLayer):
        return Linear(name, values[f"{name}.weight"], values[f"{name}.bias"], layer.of)
    if isinstance(layer, PolynomialLayer):
        coefficients = values[f"{name}.coefficients"]
        return Polynomial(name, coefficients, layer.stands_for, layer.basis, layer.of)
    kind: Literal["add", "product"] = "add" if isinstance(layer, AddLayer) else "product"
    return Join(name, kind, layer.width, layer.other, layer.of)
