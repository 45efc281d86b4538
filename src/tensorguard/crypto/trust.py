"""A trust store is a named set of public keys; an empty one is refused, never permissive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorguard.crypto.files import read_bounded
from tensorguard.crypto.hybrid import MAX_PUBLIC_KEY_FILE, HybridPublicKey
from tensorguard.errors import ConfigurationError, MalformedInput, VerificationError

MAX_SIGNERS = 256  # a fleet has a handful; more only slows every start


class UntrustedSigner(VerificationError):
    code = "untrusted_signer"
    remedy = "Put the signer's *.pub.json into the trust store, if you do trust it."


class TrustStoreUnusable(ConfigurationError):
    code = "trust_store"
    remedy = "Give a folder with at least one *.pub.json, made by `tensorguard keys export-public`."


@dataclass(frozen=True, slots=True)
class TrustedSigner:
    """A public key and the name under which the operator trusts it."""

    name: str
    public_key: HybridPublicKey


class TrustStore:
    """The signers whose objects are accepted, by key id."""

    def __init__(self, signers: Mapping[str, TrustedSigner]) -> None:
        if not signers:
            raise TrustStoreUnusable("the trust store holds no key")
        self._signers = dict(signers)

    @classmethod
    def from_keys(cls, keys: Mapping[str, HybridPublicKey]) -> TrustStore:
        """Build a store from named keys. Raises `TrustStoreUnusable` when there are none."""
        return cls({key.key_id: TrustedSigner(name, key) for name, key in keys.items()})

    @classmethod
    def from_folder(cls, folder: Path) -> TrustStore:
        """Read every `*.pub.json` of `folder`; one bad file makes the whole store unusable."""
        return cls.from_files(files_of(folder))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> TrustStore:
        """Build a store from the contents of `*.pub.json` files, by file name."""
        signers: dict[str, TrustedSigner] = {}
        for file, content in files.items():
            try:
                name, key = HybridPublicKey.from_json(content)
            except MalformedInput as error:
                raise TrustStoreUnusable(f"{file}: {error}") from error
            signers[key.key_id] = TrustedSigner(name, key)
        return cls(signers)

    def signer(self, key_id: str) -> TrustedSigner:
        """Return the trusted signer `key_id`. Raises `UntrustedSigner`."""
        try:
            return self._signers[key_id]
        except KeyError:
            raise UntrustedSigner(f"no trusted signer has the key {key_id[:16]}…") from None

    def __len__(self) -> int:
        return len(self._signers)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every `*.pub.json` of `folder` by name, unread. Raises `TrustStoreUnusable`."""
    if not folder.is_dir():
        raise TrustStoreUnusable(f"{folder} is not a folder")
    paths = sorted(folder.glob("*.pub.json"))
    if len(paths) > MAX_SIGNERS:
        raise TrustStoreUnusable(f"{folder} holds more than {MAX_SIGNERS} keys")
    return {path.name: read_bounded(path, limit=MAX_PUBLIC_KEY_FILE) for path in paths}
