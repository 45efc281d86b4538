"""The file key provider: one sealed file per key, opened only by the master key, never rolled back.

`DIR/KEY.tgkey` is canonical JSON: a header (key id, algorithm, purpose, generation, versions with
their public keys) and, per version, the private bytes under AES-256-GCM. Each key has a sealing key
of its own, HKDF-SHA256(master, info = key id); the associated data is the canonical header, so that
no field can be edited and no file swapped. `DIR/index.tgkeys` holds the newest generation of each
key under HMAC: an older file that is put back is refused. (Putting back the whole folder is
invisible to any provider that keeps its state in that folder; see docs/threat-model.md.)
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import SecretBytes

from tensorguard.crypto import canonical
from tensorguard.crypto.files import private_folder, read_bounded, write_atomic
from tensorguard.crypto.hybrid import SoftwareHybridSigner, unbase64
from tensorguard.errors import MalformedInput
from tensorguard.keys.provider import (
    Algorithm,
    KeyExists,
    KeyId,
    KeyInfo,
    KeyNotFound,
    KeyProviderUnusable,
    KeyState,
    KeyUnusable,
    PublicKey,
    Purpose,
    Signature,
    WrapContext,
    WrongContext,
    WrongKeyUse,
    es256_raw,
    key_id,
)

FORMAT: Final = "tensorguard-key-1"
MASTER_BYTES, NONCE_BYTES, SEED_BYTES = 32, 12, 32
MAX_KEY_FILE, MAX_INDEX_FILE = 1 << 20, 1 << 20  # hundreds of versions, thousands of keys
MAX_DATA_KEY = 64  # bytes; a data key is 32
VERSION_BYTES = 4  # a wrapped key begins with the version that wrapped it


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class FileKeyProvider:
    """Keys in files under one folder, sealed by a 32-byte master key."""

    name = "file"

    def __init__(self, folder: Path, master: SecretBytes, *, now: Callable[[], datetime]) -> None:
        if len(master.get_secret_value()) != MASTER_BYTES:
            raise KeyProviderUnusable(f"the master key must have {MASTER_BYTES} bytes")
        self._folder = private_folder(folder)
        self._master = master
        self._now = now
        self._opened: dict[KeyId, tuple[tuple[int, int], dict[str, Any], dict[int, _Material]]] = {}

    # --- what callers ask -----------------------------------------------------------------

    def create(self, key: KeyId, *, algorithm: Algorithm, purpose: Purpose) -> KeyInfo:
        """Make a key with version 1. Raises `KeyExists`."""
        path = self._path(key)
        with self._locked():
            if path.exists() or key in self._generations():
                raise KeyExists(f"the key {key} exists")
            header: dict[str, Any] = {
                "algorithm": algorithm.value,
                "format": FORMAT,
                "generation": 1,
                "key_id": key,
                "purpose": purpose.value,
                "versions": [],
            }
            material = _Material.generate(algorithm)
            header["versions"].append(
                {
                    "created": self._now().isoformat(),
                    "public": _b64(material.public),
                    "state": KeyState.active.value,
                    "version": 1,
                }
            )
            self._store(path, header, {1: material})
        return self.describe(key)

    def describe(self, key: KeyId) -> KeyInfo:
        """Return what is known of the newest version. Raises `KeyNotFound`, `KeyUnusable`."""
        header, _ = self._load(key)
        newest = header["versions"][-1]
        return KeyInfo(
            key,
            newest["version"],
            Algorithm(header["algorithm"]),
            Purpose(header["purpose"]),
            KeyState(newest["state"]),
            datetime.fromisoformat(newest["created"]),
        )

    def list_keys(self) -> tuple[KeyInfo, ...]:
        """Return every key's newest version, ordered by id."""
        names = sorted(path.stem for path in self._folder.glob("*.tgkey"))
        return tuple(self.describe(key_id(name)) for name in names)

    def public_key(self, key: KeyId, version: int | None = None) -> PublicKey:
        """Return a public key, by default of the active version."""
        header, _ = self._load(key)
        algorithm = Algorithm(header["algorithm"])
        if not algorithm.signs:
            raise WrongKeyUse(f"{key} has no public key")
        for entry in reversed(header["versions"]):
            wanted = (
                entry["state"] == KeyState.active
                if version is None
                else (entry["version"] == version)
            )
            if wanted:
                return PublicKey(key, entry["version"], algorithm, unbase64(entry["public"]))
        raise KeyNotFound(f"the key {key} has no such version")

    def sign(self, key: KeyId, message: bytes) -> Signature:
        """Sign with the active version."""
        version, algorithm, material = self._active(key)
        return Signature(key, version, algorithm, material.sign(message))

    def wrap(self, key: KeyId, data_key: bytes, context: WrapContext) -> bytes:
        """Return version (4) ‖ nonce (12) ‖ ciphertext and tag."""
        if not 0 < len(data_key) <= MAX_DATA_KEY:
            raise WrongKeyUse(f"a data key has 1 to {MAX_DATA_KEY} bytes")
        version, algorithm, material = self._active(key)
        if algorithm is not Algorithm.aes256_gcm:
            raise WrongKeyUse(f"{key} does not wrap data keys")
        nonce = os.urandom(NONCE_BYTES)
        sealed = material.aead().encrypt(nonce, data_key, context.associated_data(key, version))
        return version.to_bytes(VERSION_BYTES, "big") + nonce + sealed

    def unwrap(self, key: KeyId, wrapped: bytes, context: WrapContext) -> bytes:
        """Open what `wrap` made. Raises `WrongContext`."""
        header, materials = self._load(key)
        version = int.from_bytes(wrapped[:VERSION_BYTES], "big")
        material = materials.get(version)
        if Algorithm(header["algorithm"]) is not Algorithm.aes256_gcm:
            raise WrongKeyUse(f"{key} does not wrap data keys")
        if material is None or len(wrapped) > VERSION_BYTES + NONCE_BYTES + MAX_DATA_KEY + 16:
            raise WrongContext("the wrapped key was not made by this key")
        nonce, sealed = wrapped[VERSION_BYTES : VERSION_BYTES + NONCE_BYTES], wrapped[16:]
        try:
            return material.aead().decrypt(nonce, sealed, context.associated_data(key, version))
        except (InvalidTag, ValueError) as error:
            raise WrongContext("the wrapped key does not open under this context") from error

    # --- files ----------------------------------------------------------------------------

    def _path(self, key: KeyId) -> Path:
        return self._folder / f"{key_id(key)}.tgkey"

    def _active(self, key: KeyId) -> tuple[int, Algorithm, _Material]:
        header, materials = self._load(key)
        for entry in reversed(header["versions"]):
            if entry["state"] == KeyState.active:
                return entry["version"], Algorithm(header["algorithm"]), materials[entry["version"]]
        raise KeyNotFound(f"the key {key} has no active version")

    def _derive(self, purpose: str) -> bytes:
        hkdf = HKDF(hashes.SHA256(), 32, salt=None, info=f"{FORMAT}/{purpose}".encode())
        return hkdf.derive(self._master.get_secret_value())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _store(self, path: Path, header: dict[str, Any], materials: dict[int, _Material]) -> None:
        aead = AESGCM(self._derive(f"seal/{header['key_id']}"))
        sealed = {}
        for version, material in materials.items():
            nonce = os.urandom(NONCE_BYTES)
            bound = canonical.encode({"header": header, "version": version})
            sealed[str(version)] = _b64(nonce + aead.encrypt(nonce, material.private, bound))
        write_atomic(path, canonical.encode({"header": header, "sealed": sealed}))
        self._record(KeyId(header["key_id"]), header["generation"])

    def _load(self, key: KeyId) -> tuple[dict[str, Any], dict[int, _Material]]:
        path = self._path(key)
        try:
            status = path.lstat()
        except FileNotFoundError as error:
            if key in self._generations():
                raise KeyUnusable(f"the file of the key {key} was removed") from error
            raise KeyNotFound(f"there is no key {key}") from error
        stamp = (status.st_mtime_ns, status.st_ino)
        known = self._opened.get(key)
        if known is not None and known[0] == stamp:
            return known[1], known[2]
        data = read_bounded(path, limit=MAX_KEY_FILE, private=True)
        try:
            header, materials = self._open(key, data)
        except (MalformedInput, InvalidTag, KeyError, TypeError, ValueError) as error:
            raise KeyUnusable(f"the file of the key {key} does not open") from error
        recorded = self._generations().get(key, 0)
        if header["generation"] < recorded:
            raise KeyUnusable(f"the file of the key {key} is older than the last one written")
        if header["generation"] > recorded:  # a crash came between file and index
            with self._locked():
                self._record(key, header["generation"])
        self._opened[key] = (stamp, header, materials)
        return header, materials

    def _open(self, key: KeyId, data: bytes) -> tuple[dict[str, Any], dict[int, _Material]]:
        value = canonical.decode(data, limit=MAX_KEY_FILE)
        header = value["header"]
        if header["format"] != FORMAT or header["key_id"] != key:
            raise MalformedInput("the file belongs to another key")
        aead = AESGCM(self._derive(f"seal/{key}"))
        materials = {}
        for text, box in value["sealed"].items():
            raw = unbase64(box)
            bound = canonical.encode({"header": header, "version": int(text)})
            private = aead.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], bound)
            materials[int(text)] = _Material.open(Algorithm(header["algorithm"]), private)
        return header, materials

    # --- the index of generations ---------------------------------------------------------

    def _generations(self) -> dict[KeyId, int]:
        path = self._folder / "index.tgkeys"
        if not path.exists():
            if any(self._folder.glob("*.tgkey")):
                raise KeyUnusable("the index of the key folder was removed")
            return {}
        data = read_bounded(path, limit=MAX_INDEX_FILE, private=True)
        try:
            value = canonical.decode(data, limit=MAX_INDEX_FILE)
            mac = unbase64(value["mac"], size=32)
            generations: dict[KeyId, int] = value["generations"]
            expected = self._mac(generations)
        except (MalformedInput, KeyError, TypeError) as error:
            raise KeyUnusable("the index of the key folder is damaged") from error
        if not hmac.compare_digest(mac, expected):
            raise KeyUnusable("the master key is not the one that sealed this folder")
        return generations

    def _record(self, key: KeyId, generation: int) -> None:
        path = self._folder / "index.tgkeys"
        generations = self._generations() if path.exists() else {}
        generations[key] = generation
        body = {"generations": generations, "mac": _b64(self._mac(generations))}
        write_atomic(path, canonical.encode(body))

    def _mac(self, generations: dict[KeyId, int]) -> bytes:
        return hmac.digest(self._derive("index"), canonical.encode(generations), "sha256")


class _Material:
    """The opened bytes of one key version, and what can be done with them."""

    __slots__ = ("_signer", "algorithm", "private", "public")

    def __init__(self, algorithm: Algorithm, private: bytes) -> None:
        self.algorithm = algorithm
        self.private = private
        self.public = b""
        self._signer: Callable[[bytes], bytes] | None = None
        match algorithm:
            case Algorithm.ed25519:
                ed25519 = Ed25519PrivateKey.from_private_bytes(private)
                self.public, self._signer = ed25519.public_key().public_bytes_raw(), ed25519.sign
            case Algorithm.es256:
                p256 = ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1())
                self.public = p256.public_key().public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                )
                self._signer = lambda m: es256_raw(p256.sign(m, ec.ECDSA(hashes.SHA256())))
            case Algorithm.hybrid:
                hybrid = SoftwareHybridSigner(
                    SecretBytes(private[:SEED_BYTES]), SecretBytes(private[SEED_BYTES:])
                )
                self.public = hybrid.public_key.ed25519 + hybrid.public_key.ml_dsa_65
                self._signer = lambda m: (s := hybrid.sign(m)).ed25519 + s.ml_dsa_65
            case Algorithm.aes256_gcm:
                pass

    @classmethod
    def generate(cls, algorithm: Algorithm) -> _Material:
        match algorithm:
            case Algorithm.es256:
                number = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
                return cls(algorithm, number.to_bytes(SEED_BYTES, "big"))
            case Algorithm.hybrid:
                return cls(algorithm, os.urandom(2 * SEED_BYTES))
            case _:
                return cls(algorithm, os.urandom(SEED_BYTES))

    @classmethod
    def open(cls, algorithm: Algorithm, private: bytes) -> _Material:
        return cls(algorithm, private)

    def sign(self, message: bytes) -> bytes:
        if self._signer is None:
            raise WrongKeyUse("a key-encryption key signs nothing")
        return self._signer(message)

    def aead(self) -> AESGCM:
        return AESGCM(self.private)
