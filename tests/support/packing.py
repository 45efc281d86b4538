"""Packs with another manifest, signed again: sound in all but what was changed."""

import json

from support import moai
from tensorguard.crypto import canonical, dsse
from tensorguard.moai import archive, pack


def repacked(data, *, manifest=None):
    """Return the pack with its manifest changed by a function, signed by the trusted signer."""
    unverified = pack.read(data, limit=moai.LIMIT)
    document = json.loads(unverified.manifest)
    body = canonical.encode(manifest(document) if manifest else document)
    envelope = dsse.seal(body, payload_type=pack.PAYLOAD_TYPE, signer=moai.signer())
    members = (body, unverified.weights, envelope)
    return archive.pack(dict(zip(pack.MEMBERS, members, strict=True)))
